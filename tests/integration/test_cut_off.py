"""Files that were cut off: told before they are mapped, for who reads behind the end of a map is killed by SIGBUS."""

import os
import re
import struct
from contextlib import closing
from pathlib import Path

import pytest

import batchd
from batchd.core import entries as e
from batchd.edge.damage import check_batch, open_file
from batchd.edge.journal import BatchJournal
from batchd.edge.survey import FILE, FREE
from batchd.errors import JournalDamaged
from batchd.formats import tables
from tests.ruin import PAGE_BYTES, original, overwritten, place_of

INPUTS, OUTCOMES, LOG = (table.decode() for table in (tables.INPUTS, tables.OUTCOMES, tables.LOG))


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 8192, 8193, 20_000, 60_000, 150_000, -PAGE_BYTES, -1])
@pytest.mark.covers("J2")
def test_a_file_that_was_cut_off_is_damage_and_no_signal(tmp_path: Path, length: int) -> None:
    made = original()
    place = place_of(tmp_path, made.data[:length])
    findings = check_batch(place).findings
    if length == -1:
        assert all(finding.table in {OUTCOMES, INPUTS, "functions", FREE, LOG, FILE} for finding in findings)
    elif length >= 0:
        assert findings
        assert any(finding.table == FILE for finding in findings), "nobody tried to open it"


@pytest.mark.covers("J2")
@pytest.mark.parametrize("is_writer", [False, True])
def test_a_file_that_lacks_a_page_it_needs_is_not_opened(tmp_path: Path, is_writer: bool) -> None:
    """The page is one of the last: opening does not read it, and what reads it later would be killed."""
    made = original()
    large = next(number for number in range(2, 1 << 16) if b"z" * 3_000 in made.page(number))
    place = place_of(tmp_path, made.data[: large * PAGE_BYTES])
    told = f"batch b does not read back: {place / 'data.mdb'} was cut off; put a copy of it back"
    with pytest.raises(JournalDamaged, match=re.escape(told)):
        BatchJournal(place, is_writer=is_writer)
    assert f"batchd cannot read it: {told}" in [finding.what for finding in check_batch(place).findings]


@pytest.mark.covers("J2")
@pytest.mark.parametrize("length", [0, 100, PAGE_BYTES])
def test_a_writer_makes_no_new_batch_of_what_is_left_of_an_old_one(tmp_path: Path, length: int) -> None:
    place = place_of(tmp_path, original().data[:length])
    with pytest.raises(JournalDamaged, match="was cut off"):
        BatchJournal(place, is_writer=True)
    assert (place / "data.mdb").stat().st_size == length


def test_a_file_that_lacks_pages_which_nothing_needs_is_whole(tmp_path: Path) -> None:
    """A transaction may take pages at the end of the file and give them back before they are written."""
    made = original()
    header, number = made.header, made.header.number
    last = made.page(number).index(struct.pack("=2Q", header.last_page, header.transaction))
    data = overwritten(made.data, number * PAGE_BYTES + last, struct.pack("=Q", header.last_page + 9))
    place = place_of(tmp_path, data)
    with closing(open_file(place)) as file:
        assert file.newest
        assert file.size < (file.newest.last_page + 1) * PAGE_BYTES
    with closing(BatchJournal(place, is_writer=True)) as journal:
        assert journal.facts.size == made.size
        journal.commit([e.Attached("b", journal.facts.stint + 1)])
    with closing(BatchJournal(place)) as journal:
        assert journal.facts.size == made.size


@pytest.mark.covers("J2")
def test_a_named_map_of_a_batch_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    def run() -> list[int]:
        return list(batchd.map(abs, range(3_000), name="b", journal=tmp_path / "journal", workers=1))

    assert run() == list(range(3_000))
    (data,) = tmp_path.glob("journal/batches/*/data.mdb")
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(JournalDamaged, match="was cut off"):
        run()
