"""Commits: one in flight, made by a thread of its own, or by whoever asks for it when it is small.

A slow fdatasync delays answers, never signals or timeouts: who makes a small one lets somebody stand in for him
(supervisor/lead.py). Handing it over would take longer than making it.

A full disk pauses; the same entries are written again when there is space. What deletes records need not wait behind
them (`make_room`): it may be what makes the space. For a large commit it is full earlier than
for a small one, so that values never take the room that cancelling and leaving need. Any other error means that the
outcome of the commit is unknown: the supervisor must exit and replay, which is the one recovery path.
"""

import os
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

import lmdb

from batchd.core.entries import Defined, Entry, Noted, Recorded, Submitted, Trimmed
from batchd.edge.folder import free_bytes, is_full
from batchd.edge.journal import BatchJournal, Progress
from batchd.settings import (
    DISK_RESERVE_BYTES,
    DISK_RETRY_S,
    LIGHT_COMMIT_BYTES,
    LIGHT_COMMIT_ENTRIES,
    VALUE_FILE_BYTES_MIN,
)
from batchd.units import format_size

Work = Sequence[tuple[BatchJournal, Sequence[Entry]]]


class Done(NamedTuple):
    """Everything up to this turn is durable."""

    turn: int
    progress: dict[str, Progress]


class Stalled(NamedTuple):
    """The disk is full; the commit is tried again until it fits."""

    reason: str


class Broken(NamedTuple):
    """What is on the disk is unknown."""

    error: BaseException


Outcome = Done | Stalled | Broken


class CommitThread:
    """Runs commits in order; `wake_fd` becomes readable when `outcomes` has something."""

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: SimpleQueue[tuple[int, Work] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._is_stopping = Event()
        self._is_called = Event()
        """Whether there is more to do than to wait for space."""
        self._trims: SimpleQueue[tuple[BatchJournal, Trimmed]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def commit(self, turn: int, work: Work) -> None:
        """Ask for a commit. The caller keeps one in flight."""
        self._work.put((turn, work))

    def make_room(self, journal: BatchJournal, trim: Trimmed) -> None:
        """Delete records before the commit in flight is tried again, for which there is no space."""
        self._trims.put((journal, trim))
        self._is_called.set()

    def make(self, turn: int, work: Work) -> Outcome | None:
        """Make a light commit here and now; None when the disk is full: then it is the thread's."""
        ((journal, entries),) = work  # None is large.
        try:
            return Done(turn, {journal.facts.batch: journal.commit(entries)})
        except BaseException as error:
            if not (isinstance(error, lmdb.Error | OSError) and is_full(error, journal.folder)):
                return Broken(error)
        self.commit(turn, work)
        return None

    def tell(self, outcome: Outcome) -> None:
        """Put an outcome where whoever watches `wake_fd` finds it."""
        self._outcomes.put(outcome)
        os.eventfd_write(self.wake_fd, 1)

    def outcomes(self) -> list[Outcome]:
        """Return what happened since the last call."""
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            pass
        found: list[Outcome] = []
        while not self._outcomes.empty():
            found.append(self._outcomes.get())
        return found

    def stop(self) -> None:
        """Finish the commit in flight and end the thread."""
        self._is_stopping.set()
        self._is_called.set()
        self._work.put(None)
        self._thread.join()
        os.close(self.wake_fd)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            turn, work = item
            progress: dict[str, Progress] = {}
            try:
                self._trim()
                for journal, entries in work:
                    made = self._write(journal, entries, work)
                    if made is None:
                        return
                    progress[journal.facts.batch] = made
            except BaseException as error:
                self.tell(Broken(error))
                return
            self.tell(Done(turn, progress))

    def _write(self, journal: BatchJournal, entries: Sequence[Entry], work: Work) -> Progress | None:
        has_stalled, needed = False, -(-(DISK_RESERVE_BYTES + _bytes_in(entries)) >> 20) << 20
        while True:
            if has_room(entries, journal):
                try:
                    return journal.commit(entries)
                except (lmdb.Error, OSError) as error:
                    if not is_full(error, journal.folder):
                        raise
            self.tell(Stalled(f"disk full: paused until {journal.folder.parents[1]} has {format_size(needed)} free"))
            if not has_stalled:  # What makes room must not wait with what needs it.
                for other, others in work:
                    for trim in [entry for entry in others if isinstance(entry, Trimmed)]:
                        self.make_room(other, trim)
            has_stalled = True
            self._is_called.wait(DISK_RETRY_S)
            self._is_called.clear()
            if self._is_stopping.is_set():
                return None
            self._trim()

    def _trim(self) -> None:
        """Delete what may go, as far as it is durable by now, for others may be waiting for its space."""
        while not self._trims.empty():
            journal, trim = self._trims.get()
            if journal.is_closed:
                continue  # Its batch was put down before there was space.
            done = journal.facts.done
            ranges = tuple(part for start, stop in trim.ranges for part in done.overlap(start, stop))
            try:
                journal.commit([Trimmed(trim.batch, ranges)])  # No callable: by now it may have been defined again.
            except (lmdb.Error, OSError) as error:
                if not is_full(error, journal.folder):
                    raise
                self._trims.put((journal, trim))
                return


def is_light(work: Work) -> bool:
    """Whether a commit is the inputs or outcomes of a few small jobs, in one journal."""
    if len(work) != 1 or len(work[0][1]) > LIGHT_COMMIT_ENTRIES:
        return False
    if not all(isinstance(entry, Submitted | Recorded) for entry in work[0][1]):
        return False
    return _bytes_in(work[0][1]) <= LIGHT_COMMIT_BYTES


def has_room(entries: Sequence[Entry], journal: BatchJournal) -> bool:
    """Whether a commit leaves DISK_RESERVE_BYTES free, if it is large; a small one is always tried."""
    nbytes = _bytes_in(entries)
    if nbytes < VALUE_FILE_BYTES_MIN:
        return True
    needed = nbytes - journal.bytes_reusable()
    return needed <= 0 or free_bytes(journal.folder) >= DISK_RESERVE_BYTES + needed


def _bytes_in(entries: Sequence[Entry]) -> int:
    nbytes = 0
    for entry in entries:
        match entry:
            case Submitted(segments=segments):
                nbytes += sum(map(len, segments))
            case Recorded(block=block):
                nbytes += len(block)
            case Noted(payload=payload) | Defined(payload=payload):
                nbytes += len(payload)
    return nbytes
