"""Value files: large values, each in a file of its own in the batch's folder, written and read by whoever has them.

    BATCH/values/<writer>-<number>   a value (formats/reference.py); never written again, never overwritten.
                                     Workers number by the job, clients as they go
    BATCH/values/<writer>            locked by a client for as long as it may yet send what it wrote, and deleted
                                     with what it did not send

What a file holds is copied twice on its way, into the page cache and out of it, and passes no other process. The one
idea: a file is there before the record that names it, and one that no record names is nothing. So a file that cannot
be written, or would leave too little space, is no trouble: the value then goes into the record, and what is wrong
with the disk is told there.
"""

import fcntl
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final
from zlib import crc32

from batchd.errors import FormatError
from batchd.formats.reference import NUMBERS, OF_WORKER, Buffer, Part, Reference
from batchd.settings import DISK_RESERVE_BYTES, VALUE_BYTES_MAX, VALUE_FILE_BYTES_MIN

VALUES_NAME: Final = "values"
_NAME: Final = re.compile(r"([0-9a-f]{16})(?:-([0-9]{1,10}))?")
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ValueFiles:
    """The value files that this process writes for one batch."""

    def __init__(self, batch: Path, *, is_synced: bool, is_checked: bool = True, worker: int = 0) -> None:
        """`is_synced`: a file is on the disk when it is referred to; `is_checked`: it has a checksum.

        `worker`: what a worker has as a writer.

        What others write is not swept before `close`. Workers need no lock for that: a batch is taken up when all
        that its workers were given is over.
        """
        self._folder = batch / VALUES_NAME
        self._is_synced, self._is_checked, self._is_locked = is_synced, is_checked, not worker
        self._writer = worker or int.from_bytes(os.urandom(8), "big") & ~OF_WORKER
        self._numbers = count(1)
        self._lock_fd = -1

    def keep(self, parts: Sequence[Buffer], job: int = 0) -> Reference | None:
        """Write a value, a worker for a job; None for one that is small, too large or cannot be written here."""
        nbytes = sum(map(len, parts))
        if not VALUE_FILE_BYTES_MIN <= nbytes <= VALUE_BYTES_MAX:
            return None
        described = tuple(Part(len(part), memoryview(part).readonly) for part in parts)
        number = next(self._numbers) if self._is_locked else job % NUMBERS
        try:
            if not self._has_room(nbytes):
                return None
            if self._is_locked and self._lock_fd < 0:
                self._lock_fd = self._lock()
            crc = self._write(Reference(self._writer, number, 0, described).name, parts)
        except OSError:
            return None
        return Reference(self._writer, number, crc, described)

    def close(self) -> None:
        """Let go: what no record names by now is nobody's, and is looked for when the batch is next taken up."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _has_room(self, nbytes: int) -> bool:
        """Whether enough stays free for what the supervisor has to write: a value is never to take the last of it."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize >= DISK_RESERVE_BYTES + nbytes

    def _write(self, name: str, parts: Sequence[Buffer]) -> int | None:
        path, crc = self._folder / name, 0
        fd = os.open(path, _NEW, 0o600)
        try:
            for part in parts:
                crc = crc32(part, crc) if self._is_checked else 0
                view = memoryview(part)
                while view:
                    view = view[os.write(fd, view) :]
            if self._is_synced:
                os.fdatasync(fd)
                self._sync_folder()
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)
        return crc if self._is_checked else None

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _lock(self) -> int:
        path = self._folder / f"{self._writer:016x}"
        while True:
            fd = os.open(path, _NEW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                if os.fstat(fd).st_nlink:  # Else it was swept before it was locked.
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def named(name: str) -> tuple[int, int | None] | None:
    """Return (writer, number) of a file in the folder, without a number of a lock, None for what is none of ours.

    >>> named("000000000000000a-7"), named("000000000000000a"), named("notes.txt")
    ((10, 7), (10, None), None)
    """
    found = _NAME.fullmatch(name)
    return (int(found[1], 16), int(found[2]) if found[2] else None) if found else None


def is_value(name: str) -> bool:
    """Whether a file in the folder is a value's."""
    found = named(name)
    return found is not None and found[1] is not None


def read_value(batch: Path, reference: Reference) -> list[Buffer]:
    """Return the parts of a value. Raises FormatError when the file is not as it was written.

    It is read and not mapped: whoever maps a file is killed when somebody cuts it off, and keeps a descriptor and the
    disk's space for as long as the value lives.
    """
    path = batch / VALUES_NAME / reference.name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FormatError(f"the file of the value is missing: {path}") from None
    except OSError as error:
        raise FormatError(f"the file of the value cannot be opened: {path}: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != reference.nbytes:
            told = f"{found.st_size:,} bytes are there and {reference.nbytes:,} were written"
            raise FormatError(f"the file of the value is not as it was: {path}: {told}")
        made, crc = [], 0
        for part in reference.parts:
            made.append(_read(fd, part))
            crc = crc32(made[-1], crc) if reference.crc is not None else 0
    except OSError as error:
        raise FormatError(f"the file of the value cannot be read: {path}: {error.strerror}") from None
    finally:
        os.close(fd)
    if crc != (reference.crc or 0) or list(map(len, made)) != [part.nbytes for part in reference.parts]:
        raise FormatError(f"the file of the value was changed, its checksum does not match: {path}")
    return made


def _read(fd: int, part: Part) -> Buffer:
    if part.is_fixed:
        return os.read(fd, part.nbytes)  # Never less of a file that nobody cuts off: a value is no larger than 1 GiB.
    made = bytearray(part.nbytes)
    return made if os.readv(fd, [made]) == part.nbytes else b""
