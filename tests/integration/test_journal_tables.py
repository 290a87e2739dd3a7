"""What else a batch's journal holds: functions, keys and its specification; and what is done now and then."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Literal

import lmdb
import pytest

from batchd.core import entries as e
from batchd.core.facts import BatchFacts, apply
from batchd.edge import drafts, environment
from batchd.edge import journal as journal_module
from batchd.edge.drafts import remove_drafts
from batchd.edge.journal import BatchJournal, join
from batchd.edge.outcomes import Outcomes
from batchd.errors import JournalDamaged, JournalError, JournalNewer
from batchd.formats import tables
from batchd.settings import FORMAT_VERSION
from tests.author import submission, success
from tests.commands import WAIT_S


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "b"


def test_functions_are_kept_under_their_marks(place: Path) -> None:
    journal = BatchJournal.create(place, {}, payload=b"the task")
    journal.commit([e.Defined("b", b"mark", b"a function")])
    assert (journal.function(tables.TASK_MARK), journal.function(b"mark")) == (b"the task", b"a function")
    with pytest.raises(JournalDamaged, match="the function 6e6f is missing"):
        journal.function(b"no")
    for _ in range(2):
        journal.replace_function(b"mark", b"another")
        assert journal.function(b"mark") == b"another"
    journal.close()


def test_a_job_is_known_by_its_key(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    given = submission(journal.facts, [1, 2])
    keys = b"".join(bytes([number]) * 16 + bytes([number]) * (tables.KEY_BYTES - 16) for number in (1, 2))
    journal.commit([e.Submitted("b", 0, 2, given.segments, "c", 1, "", keys)])
    index, of_input = journal.known_key(b"\2" * 16) or (None, b"")
    assert (index, of_input) == (1, b"\2" * (tables.KEY_BYTES - 16))
    assert journal.known_key(b"\3" * 16) is None
    journal.close()


def test_another_specification_may_be_stored(place: Path) -> None:
    journal = BatchJournal.create(place, {"digest": "old"})
    journal.replace_spec({"digest": "new"})
    assert journal.spec == {"digest": "new"}
    journal.close()
    again = BatchJournal(place)
    assert again.spec == {"digest": "new"}
    again.close()


@pytest.mark.covers("J7")
@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.commit([e.Attached("b", 2)]),
        lambda journal: journal.replace_spec({}),
        lambda journal: journal.replace_function(tables.TASK_MARK, b"x"),
    ],
)
def test_a_batch_that_goes_on_takes_the_format_of_who_writes_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[BatchJournal], object]
) -> None:
    """Or an older batchd would open it, and meet records it cannot read."""
    with monkeypatch.context() as older:
        older.setattr(drafts, "FORMAT_VERSION", FORMAT_VERSION - 1)
        BatchJournal.create(place, {}).close()
    journal = BatchJournal(place, is_writer=True)
    assert format_of(journal) == FORMAT_VERSION - 1, "opening it changes nothing yet"
    with monkeypatch.context() as full:
        full.setattr(journal, "_put_checkpoint", fail)
        with pytest.raises(lmdb.DiskError):
            journal.commit([submission(journal.facts, [1]), e.Detached("b")])
    assert format_of(journal) == FORMAT_VERSION - 1, "what was written is taken back whole"
    write(journal)
    assert format_of(journal) == FORMAT_VERSION
    write(journal)
    journal.close()
    monkeypatch.setattr(journal_module, "FORMAT_VERSION", FORMAT_VERSION - 1)
    with pytest.raises(JournalNewer, match=f"has format {FORMAT_VERSION}"):
        BatchJournal(place)


def format_of(journal: BatchJournal) -> int:
    with journal.begin() as txn:
        found = json.loads(bytes(txn.get(tables.META_FORMAT, db=journal.table(tables.META)) or b""))
    assert found["lmdb"], "what else is said of it stays"
    return int(found["format"])


def fail(*_: object) -> None:
    raise lmdb.DiskError("full")


def test_drafts_are_removed_and_nothing_else(place: Path) -> None:
    BatchJournal.create(place, {}).close()
    for name in (".new-other", ".old-other"):
        place.with_name(name).mkdir()
    place.with_name(".new-file").touch()
    remove_drafts(place.parent)
    assert {path.name for path in place.parent.iterdir()} == {"b", ".old-other", ".new-file"}


def test_what_cannot_be_written_is_told_with_the_folder(place: Path) -> None:
    """Which a reader's environment never can."""
    BatchJournal.create(place, {}).close()
    journal = BatchJournal(place)
    with pytest.raises(JournalError, match="cannot write to the batch in"):
        journal.replace_spec({})
    with pytest.raises(JournalError, match="cannot write to the batch in"):
        journal.replace_function(b"mark", b"x")
    journal.close()


def test_a_copy_of_the_facts_does_not_change(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    journal.commit([submission(journal.facts, [1, 2, 3])])
    before = journal.snapshot()
    journal.commit([success("b", 0, [1])])
    assert (before.done.size, journal.snapshot().done.size) == (0, 1)
    journal.close()


def test_slots_of_dead_readers_are_looked_for_now_and_then(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "READERS_CHECK_COMMITS", 2)
    journal = BatchJournal.create(place, {})
    for turn in range(5):
        journal.commit([submission(journal.facts, [turn], sequence=turn + 1)])
    assert journal.facts.size == 5
    journal.close()


def test_who_reads_for_as_many_commits_is_known_as_long_as_he_does(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "READERS_CHECK_COMMITS", 4)
    journal = BatchJournal.create(place, {"durability": "process"})
    with journal.begin() as txn:
        late = []
        for turn in range(12):
            with journal.begin():  # Reads, but not for long.
                journal.commit([submission(journal.facts, [turn], sequence=turn + 1)])
                late.append(journal.late_readers())
        told = [{(os.getpid(), txn.id()): commits} for commits in (4, 8, 12)]
    assert late == [{}] * 3 + [told[0]] * 4 + [told[1]] * 4 + [told[2]]
    assert journal.late_readers() == {}
    journal.close()


def test_files_that_are_removed_or_replaced_are_missed(place: Path, tmp_path: Path) -> None:
    journal = BatchJournal.create(place, {"durability": "process"})
    assert journal.opened.lost() == ""
    for file in (place / "data.mdb", place / "lock.mdb"):
        file.rename(tmp_path / "aside")
        assert journal.opened.lost() == file.name
        file.touch()
        assert journal.opened.lost() == file.name
        (tmp_path / "aside").rename(file)
        assert journal.opened.lost() == ""
    place.rename(place.with_name("other"))
    place.symlink_to(place)  # No folder, and nothing that is not there either.
    assert journal.opened.lost() == ""
    journal.close()


def test_a_map_that_another_process_grew_is_adopted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LMDB says then, it says only when another process has grown the map since this one last looked."""
    BatchJournal.create(place, {}).close()
    journal = BatchJournal(place)
    sized: list[int] = []

    class Grown:
        """An environment whose map was grown."""

        def begin(self, *, buffers: Literal[False]) -> "lmdb.Transaction[bytes]":
            if not sized:
                raise lmdb.MapResizedError("MDB_MAP_RESIZED")
            return journal._env.begin(buffers=buffers)

        def set_mapsize(self, size: int) -> None:
            sized.append(size)

    grown = BatchJournal.__new__(BatchJournal)
    grown._env = Grown()  # type: ignore[assignment]
    with grown.begin() as txn:
        assert txn.id() >= 0
    assert sized == [0]
    journal.close()


def test_nothing_is_joined_to_nothing() -> None:
    assert list(join([])) == []


def test_a_full_table_of_readers_is_no_damage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BatchJournal.create(place, {}).close()

    def refuse(*_: object, **__: object) -> None:
        raise lmdb.ReadersFullError("MDB_READERS_FULL")

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(JournalError, match="readers are in"):
        BatchJournal(place)


def test_what_a_client_gave_last_is_known(place: Path) -> None:
    """It is what the reply to a submission names, also to one that was sent again."""
    journal = BatchJournal.create(place, {})
    for sequence in (1, 2):
        journal.commit([submission(journal.facts, ["a", "b"], "c", sequence)])
    assert (journal.last_of("c"), journal.last_of("nobody")) == ((2, 2), (0, 0))


def test_a_restart_reads_few_entries_however_many_lie_in_a_record(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "CHECKPOINT_ENTRIES", 10)
    journal = BatchJournal.create(place, {"durability": "process"})
    for sequence in range(1, 26):  # Input that nothing has become of yet.
        journal.commit([submission(journal.facts, list(range(8)), sequence=sequence)])
    read: list[e.Entry] = []

    def counted(facts: BatchFacts, entry: e.Entry) -> None:
        read.append(entry)
        apply(facts, entry)

    for first in range(0, 200, 8):  # Jobs that were reported one by one, and share a record.
        journal.commit([success("b", index, [index]) for index in range(first, first + 8)])
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "apply", counted)
            assert journal.refresh().done.size == first + 8
        assert len(read) < 10 + 8
        read.clear()
    journal.close()


def test_damage_that_lmdb_finds_while_results_are_read_is_told_in_words(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> lmdb.Transaction:
        raise lmdb.CorruptedError("MDB_CORRUPTED: Located page was wrong type")

    journal = BatchJournal.create(place, {})
    monkeypatch.setattr(journal, "begin", broken)
    with pytest.raises(JournalDamaged, match=r"wrong type.*journal salvage"):
        Outcomes(journal).input_block(0)


@pytest.mark.covers("J4")
def test_the_map_stays_and_the_batch_open_while_another_thread_reads(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 17)
    journal = BatchJournal.create(place, {"durability": "process"})
    items = [f"{index:01000}" for index in range(2_000)]

    def write() -> None:
        journal.commit([submission(journal.facts, items), e.Sealed("b")])
        journal.close()

    writing = Thread(target=write)
    with journal.held() as txn:
        assert txn is not None
        writing.start()
        writing.join(0.2)
        assert writing.is_alive()
        assert txn.stat(db=journal.table(tables.INPUTS))["entries"] == 0
    writing.join(WAIT_S)
    with journal.held() as txn:
        assert txn is None
    journal = BatchJournal(place)
    assert journal.facts.size == 2_000
    journal.close()


def test_a_function_is_forgotten_and_defined_again_in_the_order_that_is_said(place: Path) -> None:
    journal = BatchJournal.create(place, {"is_throwaway": True})
    marks = b"1" * 8, b"2" * 8
    journal.commit([e.Attached("b", 1), *(e.Defined("b", mark, b"function") for mark in marks)])
    journal.commit([e.Trimmed("b", (), marks), e.Defined("b", marks[1], b"function")])
    with pytest.raises(JournalDamaged, match="function 3131313131313131 is missing"):
        journal.function(marks[0])
    assert journal.function(marks[1]) == b"function"
    journal.close()
