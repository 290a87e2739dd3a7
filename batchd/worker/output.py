r"""What jobs print: stamped with the job's index when it comes through sys.stdout or sys.stderr, raw otherwise.

Both go to one capture file per worker, opened for appending. A worker looks at it only when a job fails, so a job
that prints nothing costs nothing. After a death the supervisor reads the tail of the same file. Until then it frees
what lies before that tail, and the file stays as long as it is: whoever writes or reads goes on where he was.

    stamped text: \x1e index \x1f text \x1e \x1f
"""

import ctypes
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from batchd.settings import OUTPUT_FILE_BYTES_MAX, OUTPUT_TAIL_BYTES

_STAMPED: Final = re.compile(rb"\x1e(\d+)\x1f(.*?)(?:\x1e\x1f|\Z)", re.DOTALL)
_READ_BYTES: Final = 16 * OUTPUT_TAIL_BYTES
_LINE_BYTES_MAX: Final = 8_192
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ONE_BLOCK: Final = 512
"""What st_blocks counts."""


class StampedWriter(io.RawIOBase):
    """The raw end of a worker's sys.stdout: writes lines with the index of the job that printed them."""

    def __init__(self, fd: int, index: Callable[[], int], echo: int = -1) -> None:
        self._fd = fd
        self._echo = echo
        """Where the line goes as well: the stream of a program that gave its journal no name."""
        self._index = index
        self._line = b""
        self._line_index = 0
        """Which job began the line: it may be another's turn when the line ends."""

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Return the capture file, for what insists on a descriptor (subprocess, faulthandler)."""
        return self._fd

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Take in a piece, and append what it completes, stamped, in one system call."""
        index = self._index()
        if self._line and index != self._line_index:
            self.flush()
        self._line, self._line_index = self._line + bytes(data), index
        if self._line.endswith(b"\n") or len(self._line) >= _LINE_BYTES_MAX:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Append the line as far as it is known."""
        line, self._line = self._line, b""
        if line:
            os.write(self._fd, b"\x1e%d\x1f%s\x1e\x1f" % (self._line_index, line))
            if self._echo >= 0:
                try:
                    os.write(self._echo, line)
                except OSError:
                    self._echo = -1  # Nobody reads it any more.

    @contextmanager
    def lent(self) -> Iterator[int]:
        """Give the capture file to another process: what it writes is this job's, even if both are killed."""
        self.flush()
        os.write(self._fd, b"\x1e%d\x1f" % self._index())
        try:
            yield self._fd
        finally:
            os.write(self._fd, b"\x1e\x1f")


def text_stream(fd: int, index: Callable[[], int], echo: int = -1) -> io.TextIOWrapper:
    """Return a text stream over a StampedWriter, which alone holds lines back."""
    raw: Any = StampedWriter(fd, index, echo)  # The stubs know no raw writer of ours.
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


def tail(fd: int, index: int, since: int = 0, *, bytes_max: int = OUTPUT_TAIL_BYTES) -> str:
    """Return the last lines job `index` printed, with what nobody stamped, from byte `since` on.

    Reads at most 64 KiB of the file's end, whatever its size.
    """
    size = os.fstat(fd).st_size
    start = max(since if since <= size else 0, size - _READ_BYTES)  # Smaller than before: it was cut back.
    if start >= size:
        return ""
    return select(os.pread(fd, size - start, start), index, bytes_max)


def select(data: bytes, index: int, bytes_max: int = OUTPUT_TAIL_BYTES) -> str:
    r"""Return the part of captured bytes that belongs to job `index` or to nobody, cut to its tail.

    >>> select(b"raw\n\x1e5\x1fmine\n\x1e\x1f\x1e6\x1fnot mine\n\x1e\x1f", 5)
    'raw\nmine\n'
    """
    kept = _STAMPED.sub(lambda match: match[2] if int(match[1]) == index else b"", data)
    return kept[-bytes_max:].decode("utf-8", "replace")


def cut_back(fd: int) -> int:
    """Empty the capture file between leases when it has grown past its limit; return its size."""
    size = os.fstat(fd).st_size
    if size <= OUTPUT_FILE_BYTES_MAX:
        return size
    os.ftruncate(fd, 0)
    return 0


def free_head(fd: int) -> None:
    """Give back the memory of all but the tail, when the capture file takes more than its limit: its job runs on."""
    stat = os.fstat(fd)
    if stat.st_blocks * _ONE_BLOCK <= OUTPUT_FILE_BYTES_MAX:
        return
    head = ctypes.c_int64(max(0, stat.st_size - _READ_BYTES))
    if ctypes.CDLL(None).fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), head):
        os.ftruncate(fd, 0)  # No holes here: bounded memory is worth more than last lines.
