"""One supervisor per journal: an flock that the kernel releases with its process, and who holds it, for people."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchd import __version__
from batchd.errors import SupervisorError

_NAME = "supervisor.lock"


class SupervisorLock:
    """The lock, held until it is released or the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take it. Raises SupervisorError, naming the holder, when another supervisor has it."""
        self._fd = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise SupervisorError(f"another supervisor holds {folder}: {describe(folder)}") from None
        holder = {
            "pid": os.getpid(),
            "version": __version__,
            "boot_id": boot_id(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._fd)


@contextmanager
def vacant(folder: Path) -> Iterator[bool]:
    """Yield whether no supervisor holds the journal; if so, none can start before the end of the block.

    Nothing is written, so it works on a full disk.
    """
    fd = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def holder_of(folder: Path) -> dict[str, Any]:
    """Return what the last holder wrote, {} when nothing is readable."""
    try:
        found = json.loads((folder / _NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(folder: Path) -> str:
    """Say who holds the lock: `pid 17, batchd 0.1.0, since 2026-01-01T00:00:00+00:00`."""
    holder = holder_of(folder)
    return f"pid {holder.get('pid', '?')}, batchd {holder.get('version', '?')}, since {holder.get('since', '?')}"


def boot_id() -> str:
    """Return what distinguishes this boot of the machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"
