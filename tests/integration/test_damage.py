"""Damage is found wherever it is, named by its jobs, and is never the end of the process that looks for it."""

import json
import re
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from lmdb.verify import VerifyError, verify

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.damage import check_batch, open_file
from batchd.edge.datafile import DataFile
from batchd.edge.environment import DATA_NAME
from batchd.edge.isolation import Isolated, Tell
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.survey import FILE, FREE, ROOT, Finding, blocks_in
from batchd.edge.watch import Watch
from batchd.errors import JournalError, JournalNewer
from batchd.formats import pages, tables
from batchd.formats.segment import Block, pack_vector
from batchd.settings import FORMAT_VERSION
from tests.author import submission, success
from tests.fault.ledger import Tally
from tests.ruin import (
    PAGE_BYTES,
    SPEC,
    Outcome,
    change,
    deadly,
    flipped,
    node_offset,
    original,
    overwritten,
    place_of,
    stored,
)

INPUTS, OUTCOMES, LOG, META = (table.decode() for table in (tables.INPUTS, tables.OUTCOMES, tables.LOG, tables.META))


def found_in(place: Path) -> list[Finding]:
    return check_batch(place).findings


def ranges_of(findings: list[Finding], table: str) -> set[tuple[int | None, int | None]]:
    return {(finding.start, finding.stop) for finding in findings if finding.table == table}


def texts(findings: list[Finding]) -> str:
    """Return the findings as people read them, without the pages."""
    return re.sub(r" \(page \d+\)", "", "\n".join(map(str, findings)))


# --- What is well ----------------------------------------------------------------------------------------------


def test_a_batch_as_it_was_written_is_well(tmp_path: Path) -> None:
    made = original()
    diagnosis = check_batch(place_of(tmp_path, made.data))
    assert diagnosis.findings == []
    assert diagnosis.is_well
    assert (diagnosis.size, diagnosis.done) == (made.size, len(made.outcomes))


def test_an_empty_batch_is_well(tmp_path: Path) -> None:
    BatchJournal.create(tmp_path / "b", SPEC).close()
    assert check_batch(tmp_path / "b") == ("b", 0, 0, [], 0)


@pytest.mark.covers("J3")
def test_a_lost_lock_file_is_made_again(tmp_path: Path) -> None:
    place = place_of(tmp_path, original().data)
    assert not (place / "lock.mdb").exists()
    assert check_batch(place).is_well
    (place / "lock.mdb").write_bytes(b"")
    assert check_batch(place).is_well


def write_on(tell: Tell, place: Path) -> None:
    """Write commit after commit; a pipe that nobody reads holds it up."""
    writer = BatchJournal(place, is_writer=True)
    writer.commit([e.Attached("b", 1)])
    for turn in range(1_000_000):
        first = writer.facts.size
        given = submission(writer.facts, [turn] * 50, sequence=turn + 1)
        writer.commit([given, success("b", first, ["v" * 50] * 26)])
        tell({"turn": turn})


def test_a_batch_is_checked_while_it_is_written(tmp_path: Path) -> None:
    BatchJournal.create(tmp_path / "b", {**SPEC, "durability": "process"}).close()
    with Isolated(lambda tell: write_on(tell, tmp_path / "b")) as child:
        turns = (fields["turn"] for fields in child.told())
        sizes = []
        for _ in range(3):
            seen = next(turns)
            while next(turns) < seen + 500:
                pass
            diagnosis = check_batch(tmp_path / "b")
            assert diagnosis.findings == []
            assert diagnosis.done * 50 == diagnosis.size * 26
            sizes.append(diagnosis.size)
    assert sizes == sorted(set(sizes)), "nothing was written between the checks"


class OvertakenFile(DataFile):
    """Commits come in behind the first page that is read of it."""

    commits = 0

    def _header(self, offset: int) -> pages.Header | str:
        header = super()._header(offset)
        if not self.commits:
            with closing(BatchJournal(self.folder, is_writer=True)) as journal:
                for generation in range(1, 6):
                    journal.commit([e.Attached("b", generation)])
                    self.commits += 1
        return header


def test_the_two_headers_are_read_as_of_one_moment(tmp_path: Path) -> None:
    BatchJournal.create(tmp_path / "b", {**SPEC, "durability": "process"}).close()
    with closing(OvertakenFile(tmp_path / "b" / DATA_NAME)) as file:
        first, second = (header for header in file.headers if isinstance(header, pages.Header))
        assert file.commits == 5
        assert abs(first.transaction - second.transaction) == 1


@pytest.mark.covers("J3")
def test_a_lock_file_that_was_removed_under_a_writer_is_told_of(tmp_path: Path) -> None:
    BatchJournal.create(tmp_path / "b", {**SPEC, "durability": "process"}).close()
    with Isolated(lambda tell: write_on(tell, tmp_path / "b")) as child:
        turns = (fields["turn"] for fields in child.told())
        while next(turns) < 50:
            pass
        (tmp_path / "b" / "lock.mdb").unlink()
        assert texts(found_in(tmp_path / "b")) == (
            "file: lock.mdb was removed under whoever is writing it: end that run, then check again"
        )


def test_a_moment_is_held_while_the_batch_goes_on(tmp_path: Path) -> None:
    journal = BatchJournal.create(tmp_path / "b", {**SPEC, "durability": "process"})
    journal.commit([e.Attached("b", 1), submission(journal.facts, list(range(100)))])
    journal.close()  # The child must not inherit it.
    with Watch(tmp_path / "b") as watch:
        assert watch.header is not None
        before = watch.header.transaction
        journal = BatchJournal(tmp_path / "b", is_writer=True)
        journal.commit([success("b", 0, [1])])
        journal.close()
        watch.finish()
        assert (watch.trouble, watch.header.transaction) == ("", before)
    with Watch(tmp_path / "b") as watch:
        assert watch.header is not None
        assert watch.header.transaction == before + 1


def test_finished_jobs_of_a_throwaway_batch_may_be_forgotten(tmp_path: Path) -> None:
    for name, spec in (("kept", SPEC), ("thrown", {**SPEC, "is_throwaway": True})):
        journal = BatchJournal.create(tmp_path / name, spec)
        journal.commit([e.Attached(name, 1), submission(journal.facts, ["a", "b"])])
        journal.commit([submission(journal.facts, ["c", "d"], sequence=2), success(name, 0, [1, 2])])
        journal.commit([e.Trimmed(name, ((0, 2),))])
        journal.close()
    assert ranges_of(found_in(tmp_path / "kept"), INPUTS) == {(0, 2)}
    assert ranges_of(found_in(tmp_path / "kept"), OUTCOMES) == {(0, 2)}
    assert found_in(tmp_path / "thrown") == []


# --- Flipped bits ----------------------------------------------------------------------------------------------


def reads_the_same(place: Path) -> bool:
    """Whether batchd reads back of the batch what was written."""
    (place / "lock.mdb").unlink(missing_ok=True)
    journal = BatchJournal(place)
    outcomes: dict[int, Outcome] = {}
    for span in Outcomes(journal).spans(journal.facts.done, journal.facts.generation):
        if span.state is JobState.SUCCEEDED:
            outcomes |= {span.start + at: (span.state, value) for at, value in enumerate(span.values())}
        else:
            outcomes |= {index: (span.state, failure.message) for index, failure in span.failures()}
    journal.close()
    return outcomes == original().outcomes and journal.facts.size == original().size


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 27))])
@pytest.mark.covers("J1")
def test_what_is_called_well_reads_as_it_was_written(tmp_path: Path, seed: int, tally: Tally) -> None:
    """Bits are flipped anywhere, often in the heads of pages. LMDB's own verifier must have nothing to add."""
    made, random = original(), Random(seed)
    found = 0
    for _ in range(40):
        page = random.randrange(len(made.data) // PAGE_BYTES) if random.random() < 0.8 else random.randrange(2)
        offset = page * PAGE_BYTES + random.randrange(64 if random.random() < 0.5 else PAGE_BYTES)
        bit = random.randrange(8)
        place = place_of(tmp_path, flipped(made.data, offset, bit))
        if not check_batch(place).is_well:
            found += 1
            continue
        where = f"seed {seed}: page {page}, byte {offset % PAGE_BYTES}, bit {bit}"
        try:
            assert verify(str(place)) == [], where  # type: ignore[no-untyped-call]
        except VerifyError as error:
            pytest.fail(f"{where}: {error}")
        assert reads_the_same(place), where
    tally.injected(40)
    tally.count("bit flips", 40)
    assert 5 < found < 35, "the flips hit nothing, or the check cries at everything"


@pytest.mark.parametrize("table", [tables.INPUTS, tables.OUTCOMES])
@pytest.mark.covers("J1")
def test_a_flipped_bit_in_a_record_costs_that_record(tmp_path: Path, table: bytes) -> None:
    made = original()
    page = made.leaf(table)
    nodes, _ = pages.nodes_of(made.page(page), is_branch=False)
    number = next(at for at, node in enumerate(nodes) if node.page == pages.NO_PAGE and at > 1)
    offset = page * PAGE_BYTES + nodes[number].offset + nodes[number].length - 1
    findings = found_in(place_of(tmp_path, flipped(made.data, offset)))
    first = int.from_bytes(nodes[number].key[-8:])
    assert [finding.page for finding in findings] == [page]
    assert "checksum does not match" in findings[0].what
    assert findings[0].start == first
    stop = int.from_bytes(nodes[number + 1].key[-8:])
    assert findings[0].stop is not None
    assert first < findings[0].stop <= stop


@pytest.mark.covers("J1")
def test_a_flipped_bit_in_a_large_value_costs_that_value(tmp_path: Path) -> None:
    made = original()
    page = next(number for number in range(2, 1 << 16) if b"z" * 3_000 in made.page(number))
    findings = found_in(place_of(tmp_path, flipped(made.data, page * PAGE_BYTES + 2_000)))
    first = max(made.outcomes) - 3
    assert [(finding.table, finding.start, finding.stop) for finding in findings] == [(OUTCOMES, first, first + 4)]


@pytest.mark.parametrize(("offset", "what"), [(10, b"\0"), (8, b"x"), (0, b"\xff")])
def test_the_head_of_a_large_value_is_looked_at(tmp_path: Path, offset: int, what: bytes) -> None:
    made = original()
    page = next(number for number in range(2, 1 << 16) if b"z" * 3_000 in made.page(number))
    findings = found_in(place_of(tmp_path, overwritten(made.data, page * PAGE_BYTES + offset, what)))
    if offset == 8:
        assert findings == []  # Padding, which nobody reads.
    else:
        assert f"the header of page {page} is damaged" in texts(findings)


@pytest.mark.parametrize("table", [tables.INPUTS, tables.OUTCOMES, tables.LOG, tables.META])
def test_a_changed_key_is_found(tmp_path: Path, table: bytes) -> None:
    made = original()
    page = made.leaf(table)
    offset = page * PAGE_BYTES + node_offset(made.page(page), 0) + 8
    for bit in (0, 7):
        findings = found_in(place_of(tmp_path, flipped(made.data, offset, bit)))
        assert any(finding.table == table.decode() for finding in findings), f"bit {bit}"


@pytest.mark.parametrize("table", [tables.CAUSES, tables.FUNCTIONS, tables.NOTES])
def test_a_key_of_another_length_is_found(tmp_path: Path, table: bytes) -> None:
    place = place_of(tmp_path, original().data)
    change(place, table, b"odd", b"value")
    assert "an entry has the key b'odd'" in texts(found_in(place))


# --- Pages -----------------------------------------------------------------------------------------------------


def test_a_page_without_its_header_names_the_jobs_behind_it(tmp_path: Path) -> None:
    made = original()
    page = made.leaf(tables.OUTCOMES)
    place = place_of(tmp_path, overwritten(made.data, page * PAGE_BYTES, bytes(PAGE_BYTES)))
    findings = [finding for finding in found_in(place) if finding.table == OUTCOMES]
    assert any((finding.page, finding.what) == (page, "it is no page of a tree") for finding in findings)
    assert all(finding.start is not None for finding in findings)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 5))])
@pytest.mark.covers("J1")
def test_every_page_in_use_matters(tmp_path: Path, part: int) -> None:
    """Each page is overwritten in turn: only the free ones may go unnoticed."""
    made = original()
    noticed = set()
    numbers = range(part, len(made.data) // PAGE_BYTES, 5)
    for number in numbers:
        place = place_of(tmp_path, overwritten(made.data, number * PAGE_BYTES, Random(number).randbytes(PAGE_BYTES)))
        if found_in(place):
            noticed.add(number)
    tree = made.header.free
    free = set()
    for number in _leaves(tree.root):
        for node in pages.nodes_of(made.page(number), is_branch=False)[0]:
            assert node.page == pages.NO_PAGE
            free |= set(pages.free_pages_of(made.page(number)[node.offset : node.offset + node.length]))
    assert noticed == set(numbers) - free


def _leaves(root: int) -> list[int]:
    made = original()
    if pages.flags_of(made.page(root)) == pages.LEAF:
        return [root]
    return [leaf for node in pages.nodes_of(made.page(root), is_branch=True)[0] for leaf in _leaves(node.page)]


def test_a_tree_that_leads_into_itself_has_an_end(tmp_path: Path) -> None:
    made = original()
    root = made.tree(tables.OUTCOMES).root
    offset = root * PAGE_BYTES + node_offset(made.page(root), 1)
    place = place_of(tmp_path, overwritten(made.data, offset, root.to_bytes(4, "little")))
    assert (root, "a page that is in use elsewhere") in {(each.page, each.what) for each in found_in(place)}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("offset", "what"), [(0, b"\7"), (10, b"\0"), (16, b"\0"), (20, b"\7"), (40, b"\1"), (144, b"\xfe")]
)
@pytest.mark.covers("J1")
def test_both_headers_must_be_whole(tmp_path: Path, number: int, offset: int, what: bytes) -> None:
    place = place_of(tmp_path, overwritten(original().data, number * PAGE_BYTES + offset, what))
    assert FILE in {finding.table for finding in found_in(place)}


def test_the_table_of_tables_is_looked_at(tmp_path: Path) -> None:
    made = original()
    root = made.header.main.root
    page = made.page(root)
    key = root * PAGE_BYTES + node_offset(page, 0) + 8
    findings = found_in(place_of(tmp_path, flipped(made.data, key)))
    assert ROOT in {finding.table for finding in findings}
    assert "the table is missing" in texts(findings)


def test_a_page_that_is_free_and_in_use_is_found(tmp_path: Path) -> None:
    made = original()
    leaf = _leaves(made.header.free.root)[0]
    node = next(node for node in pages.nodes_of(made.page(leaf), is_branch=False)[0] if node.length > 8)
    offset = leaf * PAGE_BYTES + node.offset + 8
    place = place_of(tmp_path, overwritten(made.data, offset, made.header.main.root.to_bytes(8, "little")))
    assert [finding.table for finding in found_in(place)] == [FREE]


def test_what_is_no_batch_is_damage(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    assert texts(found_in(tmp_path / "hollow")) == "file: there is no data.mdb"
    for content in (b"x" * 10_000, b"\0" * 65_536, b"text" * 30_000):
        assert FILE in {finding.table for finding in found_in(place_of(tmp_path, content))}


def test_what_cannot_be_read_is_an_error_and_no_damage(tmp_path: Path) -> None:
    place = place_of(tmp_path, original().data)
    (place / "data.mdb").unlink()
    (place / "data.mdb").symlink_to("data.mdb")
    with pytest.raises(JournalError, match="cannot be read: Too many levels of symbolic links"):
        open_file(place)


# --- Records that contradict each other ------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A batch with three input records, a checkpoint, and outcomes on both sides of it."""
    journal = BatchJournal.create(tmp_path / "b", SPEC)
    for sequence in (1, 2, 3):
        journal.commit([submission(journal.facts, list(range(10)), sequence=sequence)])
    failure = e.Recorded("b", 5, 2, JobState.FAILED)
    journal.commit([e.Attached("b", 1), success("b", 0, ["a", "b"]), failure])
    journal.commit([e.Detached("b")])
    journal.commit([e.Attached("b", 2), success("b", 12, ["c"])])
    journal.commit([success("b", 20, ["d"])])
    journal.close()
    assert found_in(tmp_path / "b") == []
    return tmp_path / "b"


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        (tables.INPUTS, tables.INDEX.pack(10), "inputs, jobs 10-19: missing"),
        (tables.INPUTS, tables.INDEX.pack(20), "inputs, jobs 20-29: missing"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 0), "outcomes, jobs 0-1: missing"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 5), "outcomes, jobs 5-6: missing"),
        (tables.LOG, tables.INDEX.pack(5), "log, entry 5: missing"),
        (tables.META, tables.META_CHECKPOINT, "meta: the checkpoint is missing"),
        (tables.META, tables.META_SPEC, "meta: spec is missing"),
        (tables.META, tables.META_FORMAT, "meta: format is missing"),
    ],
)
def test_a_record_that_is_missing_is_named(place: Path, table: bytes, key: bytes, expected: str) -> None:
    if table == tables.LOG:
        journal = BatchJournal(place, is_writer=True)
        journal.commit([e.Stopped("b", "enough")])
        journal.close()
        key = min(stored(place, tables.LOG))
        expected = f"log, entry {int.from_bytes(key)}: missing"
    change(place, table, key, None)
    assert expected in texts(found_in(place))


def checkpoint_of(place: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads(stored(place, tables.META)[tables.META_CHECKPOINT])
    return told


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"records": 9}, "the checkpoint tells of 9 outcome records, 2 are there"),
        ({"counts": {"3": 3, "4": 2}}, "the checkpoint tells of 3 jobs that are succeeded, 2 are there"),
        ({"counts": {"3": 2, "5": 2}}, "the checkpoint tells of 0 jobs that are failed, 2 are there"),
        ({"done": [[0, 2], [5, 8]]}, "outcomes, job 7: missing"),
        ({"done": [[0, 2]]}, "the checkpoint tells of 2 outcome records, 1 are there"),
        ({"done": [[0, 2], [5, 6]]}, "outcomes, jobs 5-6: some of them are done already"),
        ({"size": 31}, "inputs, job 30: missing"),
        ({"size": 29}, "inputs, job 29: jobs that were never given"),
        ({"size": "many"}, "the checkpoint does not read back"),
        ({"counts": {"3": "two", "4": 2}}, "the checkpoint tells of two jobs that are succeeded, 2 are there"),
        ({"generation": -1}, "the checkpoint does not read back"),
        ({"done": 5}, "the checkpoint does not read back"),
        ({"counts": {"x": 1}}, "the checkpoint does not read back"),
        ({"log": "x"}, "the checkpoint does not read back"),
    ],
)
def test_a_checkpoint_that_disagrees_is_found(place: Path, fields: dict[str, object], expected: str) -> None:
    change(place, tables.META, tables.META_CHECKPOINT, json.dumps({**checkpoint_of(place), **fields}).encode())
    assert expected in texts(found_in(place))


@pytest.mark.parametrize(
    ("table", "key", "value", "expected"),
    [
        (tables.INPUTS, tables.INDEX.pack(10), b"nonsense", "inputs, jobs 10-19"),
        (tables.INPUTS, tables.INDEX.pack(10), b"", "inputs, jobs 10-19: it is no block of inputs"),
        (tables.INPUTS, tables.INDEX.pack(10), pack_vector(0, 3, [1] * 10), "inputs, jobs 10-19: it is no block of"),
        (tables.INPUTS, tables.INDEX.pack(15), pack_vector(0, 0, [1] * 10), "inputs, jobs 15-19: its key says"),
        (tables.INPUTS, b"odd", b"", "inputs: it is no block of inputs"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 5), b"short", "outcomes, jobs 5-"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 6), success("b", 6, [1]).block, "outcomes, job 6: recorded twice"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 25), success("b", 26, [1]).block, "outcomes, job 26: its key says"),
        (tables.OUTCOMES, tables.OUTCOME.pack(4, 8), success("b", 8, [1]).block, "of generation 4, and the batch"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 30), success("b", 30, [1]).block, "job 30: jobs that were never"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 25), pack_vector(25, 1, [1]), "job 25: it is no block of outcomes"),
        (tables.OUTCOMES, b"odd", success("b", 25, [1]).block, "a record has the key b'odd'"),
        (tables.LOG, tables.INDEX.pack(99), b"[]", "missing"),
        (tables.LOG, tables.INDEX.pack(99), b"nonsense", "log, entry 99"),
        (tables.LOG, tables.INDEX.pack(99), b"5", "log, entry 99"),
        (tables.LOG, tables.INDEX.pack(99), b'[{"entry": "Unknown"}]', "log, entry 99"),
        (tables.META, b"what", b"{}", "meta: what is not what batchd writes"),
        (tables.META, tables.META_USAGE, b"[", "meta: usage is no JSON"),
        (tables.META, tables.META_SPEC, b"[]", "meta: spec is not what batchd writes"),
    ],
)
def test_a_record_that_cannot_be_is_named(place: Path, table: bytes, key: bytes, value: bytes, expected: str) -> None:
    change(place, table, key, value)
    assert expected in texts(found_in(place))


@pytest.mark.covers("J7")
def test_a_newer_batch_is_no_damage(place: Path) -> None:
    change(place, tables.META, tables.META_FORMAT, json.dumps({"format": FORMAT_VERSION + 1}).encode())
    with pytest.raises(JournalNewer, match="update batchd"):
        check_batch(place)


def test_a_block_in_a_record_that_is_damaged_costs_no_other() -> None:
    blocks = [pack_vector(first, 3, [f"value {first}", "more"]) for first in (0, 2, 4)]
    for at in range(len(blocks[0]), len(blocks[0]) + len(blocks[1])):
        record = flipped(b"".join(blocks), at, 3)
        told = [block.first for _, block in blocks_in(record) if isinstance(block, Block)]
        assert told == [0, 4], f"byte {at}"
        assert sum(isinstance(block, str) for _, block in blocks_in(record)) == 1


@pytest.mark.covers("J1")
def test_lmdb_that_dies_of_a_file_is_damage(tmp_path: Path) -> None:
    findings = texts(found_in(place_of(tmp_path, deadly())))
    assert "file: batchd cannot read it: whoever reads it dies: it was killed by SIGABRT" in findings
