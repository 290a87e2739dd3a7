"""Commits: one in flight, made by a thread of its own, or by whoever asks for it when it is small.

A slow fdatasync delays answers, never signals or timeouts: who makes a small one lets somebody stand in for him
(supervisor/lead.py). Handing it over would take longer than making it.

A full disk pauses; the same entries are written again when there is space. Any other error means that the outcome of
the commit is unknown: the supervisor must exit and replay, which is the one recovery path.
"""

import errno
import os
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

import lmdb

from batchd.core.entries import Entry, Recorded, Submitted
from batchd.edge.folder import free_bytes
from batchd.edge.journal import BatchJournal, Progress
from batchd.settings import DISK_RESERVE_BYTES, DISK_RETRY_S, LIGHT_COMMIT_BYTES, LIGHT_COMMIT_ENTRIES

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
        self._thread = Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def commit(self, turn: int, work: Work) -> None:
        """Ask for a commit. The caller keeps one in flight."""
        self._work.put((turn, work))

    def make(self, turn: int, work: Work) -> Outcome | None:
        """Make a light commit here and now; None when the disk is full: then it is the thread's."""
        ((journal, entries),) = work
        try:
            return Done(turn, {journal.facts.batch: journal.commit(entries)})
        except BaseException as error:
            if not (isinstance(error, lmdb.Error | OSError) and is_full(error, journal)):
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
        self._work.put(None)
        self._thread.join()
        os.close(self.wake_fd)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            turn, work = item
            progress: dict[str, Progress] = {}
            try:
                for journal, entries in work:
                    made = self._write(journal, entries)
                    if made is None:
                        return
                    progress[journal.facts.batch] = made
            except BaseException as error:
                self.tell(Broken(error))
                return
            self.tell(Done(turn, progress))

    def _write(self, journal: BatchJournal, entries: Sequence[Entry]) -> Progress | None:
        while True:
            try:
                return journal.commit(entries)
            except (lmdb.Error, OSError) as error:
                if not is_full(error, journal):
                    raise
                self.tell(Stalled(f"the disk under {journal.folder} is full ({error}): paused until there is space"))
                if self._is_stopping.wait(DISK_RETRY_S):
                    return None


def is_light(work: Work) -> bool:
    """Whether a commit is the inputs or outcomes of a few small jobs, in one journal."""
    if len(work) != 1 or len(work[0][1]) > LIGHT_COMMIT_ENTRIES:
        return False
    nbytes = 0
    for entry in work[0][1]:
        match entry:
            case Submitted(segments=segments):
                nbytes += sum(map(len, segments))
            case Recorded(block=block):
                nbytes += len(block)
            case _:
                return False
    return nbytes <= LIGHT_COMMIT_BYTES


def is_full(error: BaseException, journal: BatchJournal) -> bool:
    """Whether a failed write means that the disk is full. LMDB reports a short write as EIO: the disk is asked."""
    text = str(error)
    if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
        return True
    return os.strerror(errno.EIO) in text and free_bytes(journal.folder) < DISK_RESERVE_BYTES
