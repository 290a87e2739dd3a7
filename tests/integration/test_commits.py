"""The commit thread: in order, patient with a full disk, and honest about everything else."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from select import select
from typing import Any

import lmdb
import pytest

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge import commits as commits_module
from batchd.edge import folder as folder_module
from batchd.edge.commits import Broken, CommitThread, Done, Stalled, has_room, is_light
from batchd.edge.folder import is_full, unwritten
from batchd.edge.journal import BatchJournal, Progress
from batchd.errors import JournalDamaged, JournalError, JournalFull
from batchd.settings import DISK_RESERVE_BYTES, LIGHT_COMMIT_BYTES, LIGHT_COMMIT_ENTRIES, VALUE_FILE_BYTES_MIN
from tests.author import submission, success

WAIT_S = 30.0


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A batch of three jobs, closed."""
    journal = BatchJournal.create(tmp_path / "b", {})
    journal.commit([e.Attached("b", 1), submission(journal.facts, ["a", "b", "c"])])
    journal.close()
    return tmp_path / "b"


class Stubborn(BatchJournal):
    """A journal whose first commits fail."""

    errors: Sequence[Exception] = ()

    def commit(self, entries: Sequence[e.Entry]) -> Progress:
        if self.errors:
            error, *self.errors = self.errors
            raise error
        return super().commit(entries)


def outcome_of(thread: CommitThread) -> Any:
    assert select([thread.wake_fd], [], [], WAIT_S)[0], "the commit thread says nothing"
    return thread.outcomes()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[CommitThread]:
    monkeypatch.setattr(commits_module, "DISK_RETRY_S", 0.001)
    made = CommitThread()
    yield made
    made.stop()


def test_commits_are_done_in_order(written: Path, thread: CommitThread) -> None:
    journal = BatchJournal(written, is_writer=True)
    thread.commit(1, [(journal, [success("b", 2, ["x"])])])
    (done,) = outcome_of(thread)
    assert isinstance(done, Done)
    assert (done.turn, done.progress["b"].done) == (1, 1)
    journal.close()


@pytest.mark.covers("D1")
def test_a_full_disk_stalls_and_the_same_entries_are_written_in_the_end(written: Path, thread: CommitThread) -> None:
    journal = Stubborn(written, is_writer=True)
    journal.errors = [
        lmdb.DiskError("mdb_txn_commit: No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ]
    thread.commit(5, [(journal, [success("b", 2, ["x"])])])
    outcomes: list[Any] = []
    while len(outcomes) < 3:
        outcomes += outcome_of(thread)
    assert [type(outcome) for outcome in outcomes] == [Stalled, Stalled, Done]
    assert outcomes[0].reason == f"disk full: paused until {written.parents[1]} has 33M free"
    assert list(journal.refresh().done) == [(2, 3)]
    journal.close()


class Full(BatchJournal):
    """Has no space but for what deletes."""

    is_full = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, is_writer=True)
        self.made: list[e.Entry] = []

    def commit(self, entries: Sequence[e.Entry]) -> Progress:
        if self.is_full and not all(isinstance(entry, e.Trimmed) for entry in entries):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.made += entries
        return super().commit(entries)


@pytest.mark.covers("D1")
def test_what_makes_room_does_not_wait_with_what_needs_it(written: Path, thread: CommitThread) -> None:
    journal = Full(written)
    journal.commit([success("b", 2, ["x"])])
    journal.is_full = True
    journal.made.clear()
    trim, other = e.Trimmed("b", ((2, 3),)), success("b", 1, ["y"])
    thread.commit(2, [(journal, [other, trim])])
    stalled: list[Any] = []
    while len(stalled) < 2:
        stalled += outcome_of(thread)
    assert {type(outcome) for outcome in stalled} == {Stalled}
    assert journal.made == [trim]
    journal.is_full = False
    while not any(isinstance(outcome, Done) for outcome in outcome_of(thread)):
        pass
    assert journal.made == [trim, other, trim]
    journal.close()


@pytest.mark.covers("D1")
def test_what_was_to_make_room_goes_with_its_batch(written: Path, unsynced: Path, thread: CommitThread) -> None:
    """It found no space itself, and its batch was put down before there was some."""
    gone, other = BatchJournal(written, is_writer=True), BatchJournal(unsynced, is_writer=True)
    thread.make_room(gone, e.Trimmed("b", ((0, 1),)))
    gone.close()
    thread.commit(1, [(other, [success("u", 2, ["x"])])])
    (done,) = outcome_of(thread)
    assert isinstance(done, Done)
    assert list(other.refresh().done) == [(2, 3)]
    other.close()


@pytest.fixture
def unsynced(tmp_path: Path) -> Path:
    """A batch of three jobs whose commits wait for no disk, closed."""
    journal = BatchJournal.create(tmp_path / "u", {"durability": "process"})
    journal.commit([e.Attached("u", 1), submission(journal.facts, ["a", "b", "c"])])
    journal.close()
    return tmp_path / "u"


def test_a_small_commit_is_made_by_whoever_asks_for_it(unsynced: Path, written: Path, thread: CommitThread) -> None:
    journal, synced = BatchJournal(unsynced, is_writer=True), BatchJournal(written, is_writer=True)
    for light in ([(journal, [success("u", 2, ["x"])])], [(synced, [success("b", 2, ["x"])])]):
        assert is_light(light)
        done = thread.make(1, light)
        assert isinstance(done, Done)
        assert [made.done for made in done.progress.values()] == [1]
    assert thread.outcomes() == []  # Who makes it knows.
    large = [success("u", 1, ["x" * LIGHT_COMMIT_BYTES])]
    for work in (
        [(journal, large)],
        [(journal, [success("u", 1, ["x"])] * (LIGHT_COMMIT_ENTRIES + 1))],
        [(journal, [e.Detached("u")])],
        [(journal, [success("u", 1, ["x"])]), (synced, [success("b", 1, ["x"])])],
    ):
        assert not is_light(work)
    journal.close()
    synced.close()


def test_a_full_disk_stalls_a_small_commit_too(unsynced: Path, thread: CommitThread) -> None:
    journal = Stubborn(unsynced, is_writer=True)
    journal.errors = [OSError(errno.ENOSPC, "No space left on device")] * 2
    assert thread.make(5, [(journal, [success("u", 2, ["x"])])]) is None  # It is the thread's now.
    outcomes: list[Any] = []
    while len(outcomes) < 2:
        outcomes += outcome_of(thread)
    assert [type(outcome) for outcome in outcomes] == [Stalled, Done]
    assert list(journal.refresh().done) == [(2, 3)]
    journal.close()


@pytest.mark.parametrize("error", [lmdb.PanicError("mdb_txn_begin: MDB_PANIC"), JournalDamaged("an outcome twice")])
def test_a_small_commit_with_an_unknown_outcome_is_not_tried_again(
    unsynced: Path, thread: CommitThread, error: Exception
) -> None:
    journal = Stubborn(unsynced, is_writer=True)
    journal.errors = [error]
    broken = thread.make(5, [(journal, [success("u", 2, ["x"])])])
    assert isinstance(broken, Broken)
    assert not list(journal.refresh().done)
    journal.close()


@pytest.mark.covers("D3")
def test_any_other_error_is_an_unknown_outcome(written: Path, thread: CommitThread) -> None:
    journal = Stubborn(written, is_writer=True)
    journal.errors = [
        lmdb.PanicError("mdb_txn_begin: MDB_PANIC: Update of meta page failed or environment had fatal error")
    ]
    thread.commit(5, [(journal, [success("b", 2, ["x"])])])
    (broken,) = outcome_of(thread)
    assert isinstance(broken, Broken)
    assert "MDB_PANIC" in str(broken.error)
    journal.close()


def test_a_thread_that_waits_for_the_disk_can_be_stopped(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "DISK_RETRY_S", 3_600.0)
    thread = CommitThread()
    journal = Stubborn(written, is_writer=True)
    journal.errors = [OSError(errno.ENOSPC, "No space left on device")]
    thread.commit(5, [(journal, [success("b", 2, ["x"])])])
    assert isinstance(outcome_of(thread)[0], Stalled)
    thread.stop()
    journal.close()


@pytest.mark.parametrize(
    ("error", "free_bytes", "is_it"),
    [
        (lmdb.DiskError("x: No space left on device"), 1 << 40, True),
        (lmdb.Error("x: Input/output error"), 1 << 20, True),
        (lmdb.Error("x: Input/output error"), 1 << 40, False),
        (lmdb.CorruptedError("x: MDB_CORRUPTED"), 0, False),
    ],
)
@pytest.mark.covers("D8")
def test_a_short_write_is_a_full_disk_only_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free_bytes: int, *, is_it: bool
) -> None:
    monkeypatch.setattr(folder_module, "free_bytes", lambda _: free_bytes)
    assert is_full(error, tmp_path) is is_it
    told = unwritten(error, tmp_path, "cannot do it")
    assert type(told) is (JournalFull if is_it else JournalError)
    assert (str(error) in str(told)) is not is_it


LARGE = bytes(VALUE_FILE_BYTES_MIN)


@pytest.mark.parametrize(
    ("entry", "nbytes"),
    [
        (e.Recorded("b", 0, 1, JobState.SUCCEEDED, LARGE), len(LARGE)),
        (e.Submitted("b", 0, 2, (LARGE[:-1], b"x"), "client", 1, ""), len(LARGE)),
        (e.Noted("b", 0, LARGE), len(LARGE)),
        (e.Defined("b", b"mark", LARGE), len(LARGE)),
        (e.Recorded("b", 0, 1, JobState.SUCCEEDED, LARGE[:-1]), -DISK_RESERVE_BYTES),
        (e.Detached("b"), -DISK_RESERVE_BYTES),
    ],
)
@pytest.mark.covers("D1")
def test_for_a_large_commit_the_disk_is_full_before_it_is_for_a_small_one(
    written: Path, monkeypatch: pytest.MonkeyPatch, entry: e.Entry, nbytes: int
) -> None:
    journal = BatchJournal(written, is_writer=True)
    needed = DISK_RESERVE_BYTES + nbytes
    if needed:
        needed -= journal.bytes_reusable()
    monkeypatch.setattr(commits_module, "free_bytes", lambda _: needed)
    assert has_room([entry, e.Sealed("b")], journal)
    monkeypatch.setattr(commits_module, "free_bytes", lambda _: needed - 1)
    assert has_room([e.Sealed("b"), entry], journal) is (not needed)
    journal.close()


@pytest.mark.covers("D1")
def test_for_what_was_deleted_from_a_file_it_need_not_grow(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "free_bytes", lambda _: 0)
    journal = BatchJournal(written, is_writer=True)
    large = success("b", 1, ["x" * 2 * VALUE_FILE_BYTES_MIN])
    assert not has_room([large], journal)
    journal.commit([success("b", 0, ["x" * 2 * VALUE_FILE_BYTES_MIN])])
    assert not has_room([large], journal)
    journal.commit([e.Trimmed("b", ((0, 1),))])
    assert has_room([large], journal)
    assert not has_room([large, large], journal)
    journal.close()


@pytest.mark.covers("D1")
def test_what_is_large_is_not_even_tried_without_room(
    written: Path, thread: CommitThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([0, 0])
    monkeypatch.setattr(commits_module, "free_bytes", lambda _: next(free, 1 << 40))
    journal = BatchJournal(written, is_writer=True)
    thread.commit(5, [(journal, [success("b", 2, ["x" * VALUE_FILE_BYTES_MIN])])])
    outcomes: list[Any] = []
    while len(outcomes) < 3:
        outcomes += outcome_of(thread)
    assert [type(outcome) for outcome in outcomes] == [Stalled, Stalled, Done]
    assert list(journal.refresh().done) == [(2, 3)]
    journal.close()
