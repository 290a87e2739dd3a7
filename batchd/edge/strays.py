"""Value files that no record names: what deaths between writing a value and recording it have left.

The one idea: nothing is guessed. What lies there when a batch is taken up is listed while none of its jobs runs. A
worker's file is looked up at its job; a client's is looked for among the inputs, once, when its lock says that it has
left. No later record can name any of these, so the search goes on beside the batch, part by part.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from batchd.core.ranges import RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.errors import FormatError, JournalCrowded, JournalDamaged
from batchd.formats import tables
from batchd.formats.reference import NUMBERS, OF_WORKER
from batchd.formats.segment import Encoding, references_in
from batchd.settings import RECORD_BYTES_MAX
from batchd.worker.valuefiles import VALUES_NAME, named

_PART: Final = 16
"""So many files or records are looked at in one part: the batch cannot be put down within it."""
_UNREADABLE: Final = (FormatError, JournalCrowded, JournalDamaged, lmdb.Error)
"""What says that a record cannot be read: then it may name any file."""


class Suspects(NamedTuple):
    """The files that may be nobody's, and how the batch stood then."""

    done: RangeSet
    size: int
    generation: int
    of_workers: list[tuple[int, str]]
    """(number, name)"""
    of_clients: list[str]
    locks: list[str]
    """Of the clients these are of, who have all left."""


def suspects(journal: BatchJournal) -> Suspects | None:
    """Return what may be nobody's, None if nothing is. Only for who writes the batch, before anything of it runs."""
    folder = journal.folder / VALUES_NAME
    names = _names_in(folder)
    if not names:
        return None
    facts = journal.snapshot()
    found = Suspects(facts.done, facts.size, facts.generation, [], [], [])
    of_clients: list[tuple[int, str]] = []
    for name in names:
        writer, number = named(name) or (0, None)
        if number is None:
            if writer and not _is_held(folder / name):
                found.locks.append(name)
        elif writer & OF_WORKER:
            found.of_workers.append((number, name))
        else:
            of_clients.append((writer, name))
    left = {int(name, 16) for name in found.locks}
    found.of_clients.extend(name for writer, name in of_clients if writer in left)
    return found


def sweep(journal: BatchJournal, found: Suspects) -> Iterator[None]:
    """Delete what no record names, in parts; what is left when the batch is put down waits for the next time."""
    with suppress(JournalCrowded):  # As well.
        yield from _swept(journal, found)


def _swept(journal: BatchJournal, found: Suspects) -> Iterator[None]:
    folder, outcomes = journal.folder / VALUES_NAME, Outcomes(journal)
    waiting = iter(sorted(found.of_workers))
    while part := list(islice(waiting, _PART)):
        with journal.held() as txn:
            if txn is None:
                return
            # Deleted before the batch can be put down and listed again: a worker that lives may then use a name anew.
            _delete(folder, [name for number, name in part if not _may_be_result(outcomes, found, number, name)])
        yield
    left, start = set(found.of_clients), 0
    while left and start >= 0:
        with journal.held() as txn:
            if txn is None:
                return
            try:
                start = _take_out_named(txn.cursor(db=journal.table(tables.INPUTS)), start, left)
            except _UNREADABLE:
                return
        yield
    _delete(folder, left)
    for name in found.locks:
        _is_held(folder / name, is_deleted=True)


def delete_unreported(batch: Path, writer: int, jobs: range) -> None:
    """Delete what a dead worker wrote of jobs and never told of: no record will name it.

    Of jobs beyond `NUMBERS` it waits for the sweep: their files have the numbers of others.
    """
    found = [(name, named(name)) for name in _names_in(batch / VALUES_NAME)]
    _delete(batch / VALUES_NAME, [name for name, of in found if of and of[0] == writer and of[1] in jobs])


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  (a third of the time, and there may be many)
    except OSError:
        return []  # Of a batch that has none, or is gone.


def _delete(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()


def _is_held(path: Path, *, is_deleted: bool = False) -> bool:
    """Whether whoever made a lock file may still send what it wrote. One that is not held may be deleted at once."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_deleted:
            with suppress(OSError):
                path.unlink()  # Under the lock: who waits for it sees that it is gone, and makes another.
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _may_be_result(outcomes: Outcomes, found: Suspects, number: int, name: str) -> bool:
    """Whether the outcome of a job with that number names a file, or cannot be read."""
    for index in range(number, found.size, NUMBERS):
        try:
            for span in outcomes.spans(found.done, found.generation, index, index + 1):
                if span.block.encoding is Encoding.FILED and span.block.reference().name == name:
                    return True
        except _UNREADABLE:
            return True
    return False


def _take_out_named(cursor: "lmdb.Cursor[memoryview]", start: int, names: set[str]) -> int:
    """Take out what some input records from job `start` on name; return where to go on, -1 behind the last."""
    if not cursor.set_range(tables.INDEX.pack(start)):
        return -1  # From nowhere it would begin anew, without end.
    count = index = 0
    for count, (key, record) in enumerate(islice(cursor.iternext(), _PART), 1):  # noqa: B007
        index = tables.INDEX.unpack(key)[0]
        # A larger record is one value: it is told by its head.
        seen = bytes(record) if len(record) <= RECORD_BYTES_MAX else record
        names.difference_update([reference.name for reference in references_in(seen)])
    return index + 1 if count == _PART else -1
