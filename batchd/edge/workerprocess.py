"""One worker process as the supervisor has it: descriptors, what was seen of it, and what its end says.

What is done with it, and when, is pool.py's; no worker here knows of another.
"""

import errno
import os
import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import F_GETFL, F_SETFL, F_SETPIPE_SZ, fcntl
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import Any

from batchd.core.commands import GrantLease
from batchd.core.events import Position
from batchd.edge.stacks import condense
from batchd.formats.frame import FrameReader
from batchd.formats.report import Failure, fingerprint
from batchd.settings import DESCRIPTORS_SPARE, LANES, READ_BYTES
from batchd.worker import output
from batchd.worker.recorder import OUTPUT, Slot

_WORDY_BYTES = 32 << 10
"""Half of what a pipe holds: while reports of so much were unread, a few more would have filled it."""
_PIPE_BYTES = 1 << 20
"""Of the pipe of a worker that reports much: it then sleeps less often in the middle of a report."""


@dataclass(slots=True)
class WorkerProcess:
    """One worker."""

    number: int
    key: str
    slot_number: int
    slot: Slot
    leases_fd: int
    reports_fd: int
    output_fd: int
    writer: int
    """What it has as a writer of value files."""
    granted: deque[GrantLease] = field(default_factory=lambda: deque(maxlen=LANES))
    """Its last leases: those whose lanes it may be in."""
    told: tuple[int, int] = (-1, 0)
    """The last lease it reported of, and behind which job: it reports in the order of the jobs."""
    reader: FrameReader = field(default_factory=FrameReader)
    is_wordy: bool = False
    """Whether its reports have filled its pipe: it stands still while they are not read."""
    pid: int = 0
    pidfd: int = -1
    why: str = ""
    """Why it was killed, when that was ordered."""
    is_killed: bool = False
    seen: tuple[int, int] = (0, 0)
    seen_at: float = 0.0
    """Since when it has been at the lease and index in `seen`."""
    memory_peak_bytes: int = 0
    cpu_seen_s: float = 0.0
    """CPU seconds already added to some batch."""

    def hear(self, nbytes: int) -> None:
        """Note how much of its reports was read at once: one that fills its pipe has a larger one from then on."""
        if self.is_wordy or (self.reader.room is None and nbytes <= _WORDY_BYTES):
            return
        self.is_wordy = True
        with suppress(OSError):  # Not allowed to have more: it only takes longer.
            fcntl(self.reports_fd, F_SETPIPE_SZ, _PIPE_BYTES)

    def kill(self) -> None:
        """Send SIGKILL, if it was born and its end was not seen."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def failure(self, position: Position | None, cause: str, status: int, usage: Any) -> Failure:
        """Return what is recorded of its end for the job at the position; `status` and `usage` are from wait4."""
        kind = "JobCrashed"
        if self.why:
            kind = {"timed": "JobTimeout", "memory": "JobOverMemory"}.get(self.why.partition(" ")[0], kind)
        lease, index = (position.lease, position.index) if position is not None else (-1, -1)
        details: dict[str, Any] = {
            "attempt": next((lane.attempt for lane in self.slot.lanes() if lane.lease == lease), 0),
            "pid": self.pid,
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        }
        # One that died before it was measured: then what is known is more than its own.
        peak = ("memory_peak_bytes", self.memory_peak_bytes), ("rss_peak_bytes", usage.ru_maxrss * 1024)
        details.update([peak[not self.memory_peak_bytes]])
        if os.WIFSIGNALED(status):
            details["signal"] = os.WTERMSIG(status)
        else:
            details["exit_code"] = os.waitstatus_to_exitcode(status)
        text = output.tail(self.output_fd, index, self.slot.words[OUTPUT], bytes_max=READ_BYTES)
        return Failure(kind, cause, fingerprint(kind, cause), condense(text), details)

    def close(self) -> None:
        """Give back what the supervisor has open of it."""
        for fd in (self.leases_fd, self.reports_fd, self.output_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.leases_fd = self.pidfd = -1


def descriptors(unborn: int) -> list[int]:
    """Open a worker's pipes and capture file: leases, both ends, then reports, both ends, then output.

    Raises OSError, and so while there is room: each of the `unborn` takes one more when it is born, and whoever
    measures or kills them takes some for a moment, which are not to be refused.
    """
    allowed, _ = getrlimit(RLIMIT_NOFILE)
    if allowed != RLIM_INFINITY and _open_count() + unborn + DESCRIPTORS_SPARE > allowed:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    fds: list[int] = []
    try:
        fds += os.pipe2(os.O_CLOEXEC)
        fds += os.pipe2(os.O_CLOEXEC)
        fds.append(os.memfd_create("batchd-output", os.MFD_CLOEXEC))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    _, leases_fd, reports_fd, _, output_fd = fds
    fcntl(output_fd, F_SETFL, fcntl(output_fd, F_GETFL) | os.O_APPEND)
    os.set_blocking(reports_fd, False)
    os.set_blocking(leases_fd, False)
    return fds


def _open_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
