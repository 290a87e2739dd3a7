"""Value files that no record names: what deaths between writing a value and recording it have left.

The one idea: only who takes a batch up deletes them. Then no worker of it lives, and a client that may yet send what
it wrote holds a lock, so nothing is ever guessed.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import lmdb

from batchd.edge.journal import BatchJournal
from batchd.errors import FormatError
from batchd.formats import tables
from batchd.formats.segment import references_in
from batchd.worker.valuefiles import VALUES_NAME, writer_of


def sweep(journal: BatchJournal) -> None:
    """Delete what is nobody's, before anything of the batch runs. Only for who writes it."""
    folder = journal.folder / VALUES_NAME
    try:
        names = [file.name for file in folder.iterdir() if writer_of(file.name)]
    except OSError:
        return  # Of a batch that has none.
    if not names:
        return
    living: set[str] = set()
    for writer in {writer_of(name) for name in names}:
        if _is_held(folder / writer):
            living.add(writer)
    try:
        named = _names_in_records(journal)
    except (FormatError, lmdb.Error):
        return  # A damaged record may name any of them.
    for name in names:
        if writer_of(name) not in living and name not in named:
            with suppress(OSError):
                (folder / name).unlink()


def _is_held(path: Path) -> bool:
    """Whether whoever made a lock file may still send what it wrote. One that is not held is deleted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):
            path.unlink()  # Under the lock: who waits for it sees that it is gone, and makes another.
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _names_in_records(journal: BatchJournal) -> set[str]:
    named: set[str] = set()
    with journal.begin() as txn:
        for table in (tables.INPUTS, tables.OUTCOMES):
            for _, record in txn.cursor(db=journal.table(table)):
                named.update(reference.name for reference in references_in(record))
    return named
