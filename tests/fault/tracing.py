"""A supervisor under strace: killed, failed or held up at the n-th system call of a kind."""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from batchd.edge.folder import open_folder
from tests.commands import Desk, until

STRACE: Final = "strace"
LOG: Final = "strace.log"
needs_strace = pytest.mark.skipif(
    shutil.which(STRACE) is None, reason="strace is not installed: nothing can be done to system calls"
)


class Traced:
    """A supervisor that strace holds."""

    def __init__(
        self, strace: subprocess.Popen[bytes], supervisor: subprocess.Popen[bytes] | None, log: Path
    ) -> None:
        self._strace = strace
        self._supervisor = supervisor
        self._log = log

    def end(self) -> int:
        """Wait until everything that was traced is gone; return how the supervisor ended, as Popen tells it."""
        code = self._strace.wait(60)  # It ends as the one that it has started did.
        return self._supervisor.wait(60) if self._supervisor is not None else code

    def let_go(self) -> None:
        """Do nothing to it any more."""
        self._strace.terminate()
        self._strace.wait(60)

    def calls(self, nth: int) -> list[str]:
        """Return what the thread called that came to its n-th call, [] if none did."""
        calls: dict[str, list[str]] = defaultdict(list)
        for line in self._log.read_text(errors="replace").splitlines():
            thread, call = line.split(maxsplit=1)
            if not call.startswith(("<", "-", "+")):  # The end of a call, a signal, an exit.
                calls[thread].append(call)
        return next((made for made in calls.values() if len(made) == nth), [])

    def injected(self) -> bool:
        """Whether something was done to some call."""
        log = self._log.read_text(errors="replace")
        return "(INJECTED)" in log or "(DELAYED)" in log


def ready_supervisor(desk: Desk, *before: str) -> subprocess.Popen[bytes]:
    """Start a supervisor by hand, perhaps behind another command, and return once it is ready, or has failed."""
    ready, its_ready = os.pipe()
    command = [*before, sys.executable, "-m", "batchd.supervisor", str(desk.journal), str(its_ready)]
    process = subprocess.Popen(command, pass_fds=(its_ready,), env=desk.environ, stderr=subprocess.DEVNULL)
    os.close(its_ready)
    os.read(ready, 1 << 16)
    os.close(ready)
    return process


def is_traced(supervisor: subprocess.Popen[bytes], by: int) -> bool:
    """Whether each thread of it is held, or it was killed at once: a thread that waits in a call makes it now."""
    threads = Path(f"/proc/{supervisor.pid}/task")
    with suppress(OSError):  # One has just ended.
        return supervisor.poll() is not None or all(
            f"TracerPid:\t{by}\n" in status.read_text() for status in threads.glob("*/status")
        )
    return False


@contextmanager
def traced_supervisor(
    desk: Desk, *inject: str, from_the_start: bool = False, only: Path | None = None
) -> Iterator[Traced]:
    """Run a supervisor for `desk` under strace, with these injections (`fdatasync:error=EIO:when=3`).

    Only what comes after it is ready counts, unless `from_the_start`; and what is done to the file `only`, if given.
    """
    open_folder(desk.journal)
    until(lambda: not desk.supervisor(), "no supervisor holds the journal")
    options = tracing(desk, *inject, only=only)
    supervisor = None
    if from_the_start:
        strace = ready_supervisor(desk, STRACE, *options)
    else:
        supervisor = ready_supervisor(desk)
        strace = attach(supervisor, options)
    try:
        yield Traced(strace, supervisor, desk.folder / LOG)
    finally:
        for process in (strace, supervisor):
            if process is not None:
                process.kill()
                process.wait()


def tracing(desk: Desk, *inject: str, only: Path | None) -> list[str]:
    """Return the options of strace for these injections."""
    log = desk.folder / LOG
    log.unlink(missing_ok=True)
    calls = ",".join(each.partition(":")[0] for each in inject)
    # All its threads and no other process: a template reads far more than it, and would come to the n-th call first.
    options = ["-f", "-b", "execve", "-qq", "-y", "-o", str(log), "-e", f"trace={calls}"]
    for each in inject:
        options += ["-e", f"inject={each}"]
    if only is not None:
        options += ["-P", str(only)]
    return options


def attach(supervisor: subprocess.Popen[bytes], options: list[str]) -> subprocess.Popen[bytes]:
    """Have strace hold a supervisor that runs."""
    strace = subprocess.Popen([STRACE, *options, "-p", str(supervisor.pid)])
    until(lambda: is_traced(supervisor, strace.pid), "strace has attached")
    return strace


@contextmanager
def traced_later(desk: Desk, supervisor: subprocess.Popen[bytes], *inject: str, only: Path) -> Iterator[Traced]:
    """Have strace hold a supervisor that is in the middle of its work; what is done to `only` counts from now on."""
    strace = attach(supervisor, tracing(desk, *inject, only=only))
    try:
        yield Traced(strace, supervisor, desk.folder / LOG)
    finally:
        strace.kill()
        strace.wait()
