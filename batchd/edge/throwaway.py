"""Throw-away journals as folders: how they are named, whose they are, and how they go.

The one idea: a folder is named after the process that wants what is in it, so that anybody can tell when nobody does.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from batchd.edge.folder import open_folder, remove_journal
from batchd.edge.lock import vacant
from batchd.edge.readiness import readable


def make(place: Path) -> Path:
    """Make a folder for this process."""
    return open_folder(Path(tempfile.mkdtemp(prefix=f"batchd-{os.geteuid()}-{os.getpid()}-", dir=place)))


def owner_of(folder: Path) -> int:
    """Return the pid of the process that a folder was made for. Raises ValueError.

    >>> owner_of(Path("/tmp/batchd-1000-4711-x1y2z3"))
    4711
    """
    return int(folder.name.split("-")[2])


def remove_vacant(folder: Path) -> None:
    """Delete a folder that no supervisor holds."""
    with suppress(OSError), vacant(folder) as is_vacant:
        if is_vacant:
            remove_journal(folder)


def remove_ownerless(folder: Path, wait_s: float) -> None:
    """Delete a folder that no supervisor holds if its process ends within a while: it may be about to.

    Whoever ends while a supervisor still holds its folder leaves it to that one. To be called when that has let go:
    whoever ends later finds it vacant.
    """
    try:
        pidfd = os.pidfd_open(owner_of(folder))
    except ProcessLookupError:
        remove_vacant(folder)
        return
    if readable([pidfd], wait_s):
        remove_vacant(folder)
    os.close(pidfd)


def sweep(place: Path) -> None:
    """Delete what dead processes of this user left, as far as no supervisor holds it."""
    for found in place.glob(f"batchd-{os.geteuid()}-*-*"):
        with suppress(OSError, ValueError):
            is_mine = found.lstat().st_uid == os.geteuid() and not found.is_symlink()
            if is_mine and not Path("/proc", str(owner_of(found))).exists():
                remove_vacant(found)
