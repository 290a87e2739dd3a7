"""Writing a batch's log: each line in one write to the end of a file that all its workers share.

The file is opened for each line: a descriptor that was kept could be closed, or be another file, by the time a job
is through with it. A lock held for the one write keeps the file within its size and its last line the last.
"""

import os
from contextlib import suppress
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Final

from batchd.formats.joblog import LAST_LINE_BYTES, LOG_NAME, Line, last_line
from batchd.settings import LOG_BYTES_MAX

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def append(folder: Path, index: int, attempt: int, text: str) -> None:
    """Add what a job said to the log of the batch in `folder`.

    When the disk has no room, or the batch was deleted, the line is lost: no job fails because of its log.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    try:
        fd = os.open(folder / LOG_NAME, _FLAGS, 0o600)
    except OSError:
        return
    try:
        with suppress(OSError):
            flock(fd, LOCK_EX)
            _write(fd, Line(time, index, attempt, text))
    finally:
        with suppress(OSError):  # Closing is not enough: a process that the job forks just now has the file open too.
            flock(fd, LOCK_UN)
        os.close(fd)


def _write(fd: int, line: Line) -> None:
    size = os.fstat(fd).st_size
    if size >= LOG_BYTES_MAX:
        return
    is_torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # By a death, or by a disk that was full.
    made = b"\n" * is_torn + line.encode()
    if size + len(made) > LOG_BYTES_MAX - LAST_LINE_BYTES:
        made = b"\n" * is_torn + last_line(line.time, LOG_BYTES_MAX - size - is_torn)
    os.write(fd, made)
