"""LMDB environments: the one set of settings everybody opens them with, their files, and those this process reads.

What is in them is journal.py's. LMDB must not have the same environment open twice in a process.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Final

import lmdb

from batchd.errors import JournalDamaged, JournalError, JournalFull
from batchd.formats import tables
from batchd.settings import LOCK_BYTES, MAP_BYTES, READERS_MAX
from batchd.worker.gate import crowded, gate

DATA_NAME: Final = "data.mdb"
LOCK_NAME: Final = "lock.mdb"
LOST: Final = "was removed or replaced while the batch ran"
"""Said of one of these: why a batch stopped whose task is as it should be."""


def open_environment(folder: Path, *, readonly: bool = False, sync: bool = True) -> lmdb.Environment:
    """Open an LMDB environment with the one set of settings everybody uses. Raises JournalError."""
    has_lock = _reserve_lock(folder)
    if not (has_lock or readonly):
        raise JournalFull(f"the disk under {folder} is full: free some space there")
    try:
        return lmdb.open(
            str(folder),
            map_size=0 if readonly else MAP_BYTES,
            readonly=readonly,
            create=not readonly,
            sync=sync,
            metasync=sync,
            mode=0o600,
            max_dbs=len(tables.TABLES),
            max_readers=READERS_MAX,
            readahead=False,
            lock=has_lock,  # Without its file nobody writes either, for that needs one as well.
            meminit=False,
            max_spare_txns=0,  # One that is kept keeps its slot, through a fork as well.
            lib_version=0,  # The 0.9 on-disk format, whatever the environment says.
        )
    except lmdb.ReadersFullError:
        raise crowded(folder) from None
    except lmdb.Error as error:
        data = folder / DATA_NAME
        is_empty = data.is_file() and not data.stat().st_size
        is_damaged = is_empty or isinstance(error, lmdb.InvalidError | lmdb.CorruptedError)
        kind = JournalDamaged if is_damaged else JournalError
        raise kind(f"cannot open the batch in {folder}: {str(error).removeprefix(f'{folder}: ')}") from None
    except MemoryError:
        raise JournalError(
            f"cannot map the batch in {folder}: the address space is limited; run `ulimit -v unlimited`"
        ) from None


def _reserve_lock(folder: Path) -> bool:
    """Give the file of LMDB's reader slots its blocks; return whether there was room.

    Without them a full disk is a SIGBUS for whoever comes. Only where they are missing, because
    closing the file would drop the locks of an environment this process has open.
    """
    path = folder / LOCK_NAME
    try:
        if not path.exists() or path.stat().st_blocks * 512 < LOCK_BYTES:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, LOCK_BYTES)
            finally:
                os.close(fd)
    except OSError as error:  # Where nothing may be written, LMDB reads without a lock by itself, or says why not.
        return error.errno not in {errno.ENOSPC, errno.EDQUOT}
    return True


def readers_in(env: lmdb.Environment) -> Iterator[tuple[int, int]]:
    """Give (pid, transaction) of everybody who is reading now. Waits for nobody, and touches no page."""
    for line in env.readers().splitlines()[1:]:
        pid, _, transaction = line.split()
        if transaction != "-":
            yield int(pid), int(transaction)


class Files:
    """The files of an environment, as they are when it is opened.

    LMDB keeps to the files it opened, whatever becomes of their names. Who opens the environment later would have
    others: not what is recorded, or a table of readers that the writer does not see.
    """

    def __init__(self, folder: Path) -> None:
        self._opened = {path: path.stat() for path in (folder / DATA_NAME, folder / LOCK_NAME)}

    def lost(self) -> str:
        """Return the name that has no file any more, or another one; '' when all is well."""
        for path, opened in self._opened.items():
            try:
                if not os.path.samestat(path.stat(), opened):
                    return path.name
            except FileNotFoundError:
                return path.name
            except OSError:
                continue  # The disk is ill, and what is written tells of that.
        return ""


class _Readers:
    """The environments this process reads. What is done to them is done inside the gate (worker/gate.py)."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[tuple[int, int], tuple[lmdb.Environment, int]] = {}
        """By device and inode, for another batch may lie in a folder by now: the environment, and how many use it."""
        self._lost: dict[tuple[int, int], tuple[lmdb.Environment, int]] = {}
        """In a child: what cannot be closed."""
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a child made by fork: let go of what its parent opened, or the child could not open it for itself.

        Where somebody was inside, closing would wait for ever, and take a reader slot away from the parent.
        """
        self._lock = Lock()
        if gate.was_held:
            self._lost |= self._open
        else:
            for env, _ in self._open.values():
                env.close()
        self._open.clear()

    def acquire(self, folder: Path) -> lmdb.Environment:
        """Return the environment of a batch, opened for reading. Raises JournalError."""
        with gate.inside, self._lock:
            key = _identity(folder)
            if key in self._lost:
                raise JournalError(
                    f"cannot open the batch in {folder}: this process was forked while it was read; "
                    "use batchd in a process that was started anew (multiprocessing: spawn)"
                )
            env, users = self._open.get(key) or (open_environment(folder, readonly=True), 0)
            self._open[key] = env, users + 1
            return env

    def release(self, env: lmdb.Environment) -> None:
        """Close the environment when nobody uses it any more."""
        with gate.inside, self._lock:
            key = next((key for key, (found, _) in self._open.items() if found is env), None)
            if key is None:
                return  # Opened before a fork: it is the parent's.
            _, users = self._open.pop(key)
            if users > 1:
                self._open[key] = env, users - 1
            else:
                env.close()


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells a batch's file from that of another batch that had its place. Raises JournalError."""
    try:
        found = (folder / "data.mdb").stat()
    except OSError as error:
        raise JournalError(f"cannot open the batch in {folder}: {error.strerror}") from None
    return found.st_dev, found.st_ino


readers = _Readers()
