"""Batches in hand: what is done with one before anybody is served by it, or to one that nobody has open.

Nothing of it is the loop's: to make a batch waits for the disk, and to open one for writing for whoever holds its
lock, which may be a process that is stopped. The one idea: each is in hand in a thread of its own, and nobody else
touches it meanwhile; who wants it looks again when that is over.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from batchd.core import events as ev
from batchd.core.facts import BatchFacts
from batchd.core.replay import all_interrupted
from batchd.core.stored import copy
from batchd.edge import strays
from batchd.edge.callbacks import call_each
from batchd.edge.drafts import make_batch
from batchd.edge.folder import free_bytes, unwritten
from batchd.edge.journal import BatchJournal, Progress
from batchd.errors import BatchNotFound, JournalFull
from batchd.formats import tables
from batchd.settings import DISK_RESERVE_BYTES
from batchd.supervisor.aside import Aside
from batchd.units import format_size

Made = TypeVar("Made")


class Hands:
    """The batches that are in hand."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        """By batch: who looks again when it is over."""
        self._halfway: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Give their names."""
        return iter(self._waiting)

    @property
    def is_halfway(self) -> bool:
        """Whether something is done to one that would be left half done. The other work may be cut off anywhere."""
        return bool(self._halfway)

    def wait(self, batch: str, call: Callable[[], None]) -> bool:
        """Return whether the batch is in hand; then call back when that is over."""
        if batch in self._waiting:
            self._waiting[batch].append(call)
        return batch in self._waiting

    def take(
        self,
        batch: str,
        work: Callable[[], Made],
        then: Callable[[Made | Exception], None],
        *,
        is_halfway: bool = False,
    ) -> None:
        """Do the work with a batch that nobody has open or in hand, then call back with what it made or raised."""
        self._waiting[batch] = []
        if is_halfway:
            self._halfway.add(batch)

        def over(made: Made | Exception) -> None:
            waiting = self._waiting.pop(batch)
            self._halfway.discard(batch)
            try:
                then(made)
            finally:
                call_each(waiting)

        self._aside.do_alone(work, over)


# --- The work: nothing below touches what is the loop's ----------------------------------------------------------


Change = ev.CancelRequested | ev.ReopenRequested
"""What a batch may be taken up for, and nothing else."""


class Taken(NamedTuple):
    """A batch that was taken up, with what the loop wants to know of it."""

    journal: BatchJournal
    suspects: strays.Suspects | None
    progress: Progress
    usage: dict[str, Any]
    live: BatchFacts
    """Of the scheduler's own: ahead of the journal's by what is not durable yet."""
    change: Change | None = None
    """What it was taken up for."""


def make(folder: Path, spec: dict[str, Any], payload: bytes) -> Taken:
    """Make a batch and take it up. Raises JournalError."""
    if (free := free_bytes(folder.parent)) < DISK_RESERVE_BYTES:
        room = f"{format_size(free)} are free and {format_size(DISK_RESERVE_BYTES)} needed"
        raise JournalFull(f"the disk under {folder.parent} is nearly full: {room}. Free some space, or use --journal")
    make_batch(folder, spec, payload)
    return take_up(folder)


def take_up(
    folder: Path,
    payload: bytes = b"",
    created: str = "",
    change_of: Callable[[BatchJournal], Change | None] | None = None,
) -> Taken:
    """Open a batch that nobody runs; `payload` is the callable it goes on with. Raises JournalError."""
    if not folder.exists():
        raise BatchNotFound(f"there is no batch {folder.name}: `batchd ls` lists them")
    journal = BatchJournal(folder, is_writer=True)
    try:
        check_same(journal, created)
        suspects = strays.suspects(journal)
        if payload:
            journal.replace_function(tables.TASK_MARK, payload)
        if made := all_interrupted(copy(journal.facts)):
            journal.commit(made)  # The machine died while the batch ran: the recorder that knew more is lost.
        change = change_of(journal) if change_of is not None else None
        return Taken(journal, suspects, journal.progress(), journal.read_usage(), copy(journal.facts), change)
    except BaseException as error:
        journal.close()  # Or it could not be opened by this process again.
        if isinstance(error, lmdb.Error):
            raise unwritten(error, folder, f"cannot write to the batch in {folder}") from None
        raise


def check_same(journal: BatchJournal, created: str) -> None:
    """Refuse a client that would go on with another batch than it had open, which was made at `created`."""
    if created not in {"", journal.spec.get("created", "")}:
        raise BatchNotFound(
            f"batch {journal.folder.name} of {created} was removed while it was in use, and another was made under "
            "its id: open that one anew, and give it what it is to have"
        )


def replace_digest(folder: Path, digest: str) -> None:
    """Store which source of its task a batch goes on with. Raises JournalError."""
    journal = BatchJournal(folder, is_writer=True)
    try:
        journal.replace_spec({**journal.spec, "digest": digest})
    finally:
        journal.close()
