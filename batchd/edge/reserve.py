"""The reserve: a file that holds a little of the disk, so that a batch can be given up when there is nothing left.

It is made when a supervisor starts and there is space to spare, and deleted when somebody cancels or stops while the
disk is full; a supervisor that could not even start, which may be to cancel, gets a part. It is no promise, for
others may take the space first; large commits do not (`has_room`).
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from batchd.edge.folder import free_bytes
from batchd.settings import DISK_RESERVE_BYTES, RESERVE_BYTES

_NAME: Final = "reserve"
_LENT_BYTES: Final = 1 << 20


def hold(folder: Path) -> None:
    """Make the file, or make it whole again, unless the disk is nearly full already."""
    path = folder / _NAME
    with suppress(OSError):
        if free_bytes(folder) < DISK_RESERVE_BYTES + RESERVE_BYTES:
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            path.unlink()
        finally:
            os.close(fd)


def release(folder: Path) -> bool:
    """Give its space to whoever writes next; return whether it was there. The next start makes it again."""
    try:
        (folder / _NAME).unlink()
    except OSError:
        return False
    return True


def lend(folder: Path) -> bool:
    """Give a part of its space to whoever writes next; return whether there was any."""
    path = folder / _NAME
    try:
        left = path.stat().st_size - _LENT_BYTES
        if left > 0:
            os.truncate(path, left)
            return True
    except OSError:
        return False
    return release(folder)
