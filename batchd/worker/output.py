r"""What jobs print: stamped with the job's index when it comes through sys.stdout or sys.stderr, raw otherwise.

Both go to one capture file per worker, opened for appending. A worker looks at it only when a job fails, so a job
that prints nothing costs nothing. After a death the supervisor reads the tail of the same file.

    stamped text: \x1e index \x1f text \x1e \x1f
"""

import io
import os
import re
from collections.abc import Callable
from typing import Any, Final

from batchd.settings import OUTPUT_FILE_BYTES_MAX, OUTPUT_TAIL_BYTES

_STAMPED: Final = re.compile(rb"\x1e(\d+)\x1f(.*?)(?:\x1e\x1f|\Z)", re.DOTALL)
_READ_BYTES: Final = 16 * OUTPUT_TAIL_BYTES


class StampedWriter(io.RawIOBase):
    """The raw end of a worker's sys.stdout: writes each piece with the index of the job that printed it."""

    def __init__(self, fd: int, index: Callable[[], int]) -> None:
        self._fd = fd
        self._index = index

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Return the capture file, for what insists on a descriptor (subprocess, faulthandler)."""
        return self._fd

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Append `data`, stamped, in one system call."""
        text = bytes(data)
        os.write(self._fd, b"\x1e%d\x1f%s\x1e\x1f" % (self._index(), text))
        return len(text)


def text_stream(fd: int, index: Callable[[], int]) -> io.TextIOWrapper:
    """Return a line-buffered text stream over a StampedWriter."""
    raw: Any = StampedWriter(fd, index)  # The stubs know no raw writer of ours.
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


def tail(fd: int, index: int, since: int = 0) -> str:
    """Return the last lines job `index` printed, with what nobody stamped, from byte `since` on.

    Reads at most 64 KiB of the file's end, whatever its size.
    """
    size = os.fstat(fd).st_size
    start = max(since, size - _READ_BYTES)
    if start >= size:
        return ""
    return select(os.pread(fd, size - start, start), index)


def select(data: bytes, index: int) -> str:
    r"""Return the part of captured bytes that belongs to job `index` or to nobody, cut to its tail.

    >>> select(b"raw\n\x1e5\x1fmine\n\x1e\x1f\x1e6\x1fnot mine\n\x1e\x1f", 5)
    'raw\nmine\n'
    """
    kept = _STAMPED.sub(lambda match: match[2] if int(match[1]) == index else b"", data)
    return kept[-OUTPUT_TAIL_BYTES:].decode("utf-8", "replace")


def cut_back(fd: int) -> int:
    """Empty the capture file when it has grown past its limit; return its size."""
    size = os.fstat(fd).st_size
    if size <= OUTPUT_FILE_BYTES_MAX:
        return size
    os.ftruncate(fd, 0)
    return 0
