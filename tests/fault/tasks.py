"""Tasks that do to their worker what a fault of the table says. Each does it for one input and is good for others."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

import batchd
from batchd.settings import OUTPUT_FILE_BYTES_MAX

BAD = 3
"""The input that goes wrong."""
LARGE_REPORT_BYTES = 900_000
"""Of a result: nearly what a pipe takes, and not enough for a file of its own."""
kept: list[Any] = []
"""What a job leaves in its worker."""


def wait(seconds: float) -> None:
    select([], [], [], seconds)


def mark(*words: object) -> None:
    """Write a line to the file MARKS names."""
    fd = os.open(os.environ["MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def mark_attempt() -> int:
    """Write down `index attempt`; return the attempt."""
    job = batchd.current_job()
    mark(job.index, job.attempt)
    return job.attempt


def page_text(x: int) -> str:
    """Of a size that is kept in the batch's own file; each attempt is written down."""
    mark_attempt()
    wait(0.005)
    return f"{x:04}" * 10_000


def kills_supervisor_at_two(x: int) -> int:
    """Job 2 kills the supervisor while all others of its time are in the middle of their work."""
    mark_attempt()
    wait(0.2)
    if x == 2:
        os.kill(os.getppid(), signal.SIGKILL)
    wait(0.2)
    return x * x


def large_text(x: int) -> str:
    """More than a record holds."""
    return f"{x:04}" * (2 << 20)


def wide_text(x: int) -> str:
    """A value for a file of its own, half as large; each attempt is written down."""
    mark_attempt()
    return f"{x:04}" * (1 << 20)


def wide_text_in_time(x: int) -> str:
    """As wide_text; all but the first few wait until a file is there."""
    mark_attempt()
    while x >= BAD and not Path(os.environ["GO"]).exists():
        wait(0.01)
    return f"{x:04}" * (1 << 20)


def short_work_in_time(x: int) -> int:
    """As short_work; all but the first few wait until a file is there."""
    while x >= BAD and not Path(os.environ["GO"]).exists():
        wait(0.01)
    return short_work(x)


def stops_itself_once(x: int) -> int:
    """The first attempt of one job is stopped."""
    if x == BAD and mark_attempt() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return x * x


def stops_itself_and_tells(x: int) -> int:
    """One job is stopped until somebody lets it go on, who is told its pid."""
    if x == BAD:
        Path(os.environ["MARKS"]).write_text(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGSTOP)
    return x * x


def holds_the_gil(x: int) -> int:
    """Sleep or compute in C, and let no other thread of Python's run meanwhile."""
    if x % 2:
        ctypes.PyDLL(None).usleep(400_000)
    else:
        sum(range(30_000_000))
    return x * x


def computes_for_ever(x: int) -> int:
    """One job computes in C, holding the GIL, for as long as nobody ends it."""
    if x == BAD:
        sum(range(1 << 50))
    return x * x


def leaks_descriptors(x: int) -> int:
    if x == BAD:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        while True:
            kept.append(open(os.devnull, "rb"))  # noqa: SIM115
    return x * x


def closes_descriptors(x: int) -> int:
    if x == BAD:
        os.closerange(3, 1024)
    return x * x


def writes_garbage(x: int) -> int:
    if x == BAD:
        for fd in range(1, 21):
            with suppress(OSError):
                os.write(fd, os.urandom(100))
        with suppress(OSError):
            os.write(1, b"\nthe end of the garbage\n")
        raise ValueError("wrote garbage")
    return x * x


def ignores_the_end(x: int) -> int:
    """One job ignores every signal it can, starts a child that does so as well, and takes for ever."""
    if x == BAD:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        child = subprocess.Popen(["/bin/sleep", "600"])
        mark(child.pid)
        mark(os.getpid())
        while True:
            wait(600)
    return x * x


def prints_100_mb(x: int) -> int:
    """One job prints much, and lives on until little of it is left in memory."""
    if x == BAD:
        line = "x" * 1023
        for _ in range(100 << 10):
            print(line)
        print("the last line")
        while os.fstat(1).st_blocks * 512 > OUTPUT_FILE_BYTES_MAX:
            wait(0.01)
        raise ValueError("printed enough")
    return x * x


def recurses(x: int) -> Any:
    if x == BAD:
        return recurses(x)
    return x * x


def recurses_in_c(x: int) -> Any:
    """Overflow the stack of the thread itself: nothing that Python could raise."""
    if x == BAD:
        sys.setrecursionlimit(1 << 30)
        deep: Any = ()
        for _ in range(1_000_000):
            deep = (deep,)
        return repr(deep)
    return x * x


def leaves_children(x: int) -> int:
    """One job starts sleepers in its own group, in a session of their own and forked twice, and dies."""
    if x == BAD:
        own = subprocess.Popen(["/bin/sleep", "600"])
        alone = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if (grandchild := os.fork()) != 0:
                os.write(write, str(grandchild).encode())
                os._exit(0)
            os.execv("/bin/sleep", ["sleep", "600"])
        mark(own.pid, alone.pid, int(os.read(read, 20)))
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def leaves_strangers(x: int) -> int:
    """One job starts sleepers that have nothing of its environment, one of them forked twice, and dies."""
    if x == BAD:
        alone = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env={})
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if (grandchild := os.fork()) != 0:
                os.write(write, str(grandchild).encode())
                os._exit(0)
            os.execve("/bin/sleep", ["sleep", "600"], {})
        mark(alone.pid, int(os.read(read, 20)))
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def waits_with_a_stranger(x: int) -> int:
    """Start a sleeper in a session and an environment of its own, and live on."""
    alone = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env={})
    mark(alone.pid)
    wait(600)
    return x


def waits_with_a_child(x: int) -> int:
    """Like leaves_children, and lives on."""
    own = subprocess.Popen(["/bin/sleep", "600"])
    alone = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    mark(os.getpid(), own.pid, alone.pid)
    wait(600)
    return x


def large_result(x: int) -> bytes:
    """Several of these fill a pipe and a commit, and none is large enough for a file of its own."""
    return bytes([x % 256]) * 900_000


def large_result_soon(x: int) -> bytes:
    """Two of these are more than a pipe takes, and none is large enough for a file of its own."""
    mark_attempt()
    wait(0.02)
    return bytes(LARGE_REPORT_BYTES)


def result_of_2_gib(x: int) -> Any:
    return bytes(2 << 30) if x == BAD else x * x


def waits_long_once(x: int) -> int:
    """Write down who runs; the first attempt of each job takes for ever."""
    attempt = mark_attempt()
    if attempt == 1:
        wait(600)
    return x * x


def waits_for_go(x: int) -> int:
    """Until a file is there."""
    mark_attempt()
    while not Path(os.environ["GO"]).exists():
        wait(0.01)
    return x * x


def deaf_once(x: int) -> int:
    """The first attempt of each job closes what tells its worker that its supervisor is gone, and takes for ever."""
    is_first = batchd.current_job().attempt == 1
    if is_first:
        os.closerange(3, 1024)
    mark_attempt()
    if is_first:
        wait(600)
    return x * x


def takes_a_second(x: int) -> int:
    mark_attempt()
    wait(1.0)
    return x * x


def short_work(x: int) -> int:
    mark_attempt()
    wait(0.01)
    return x * x


def tells_the_time(x: int) -> tuple[int, float]:
    """Return what time of day it is; the first attempt of one job fails."""
    attempt = mark_attempt()
    wait(0.2)
    if x == BAD and attempt == 1:
        raise ValueError("once")
    return x * x, time.time()


def waits_600(x: int) -> int:
    mark(os.getpid())
    wait(600)
    return x


class KillsWhoReadsIt:
    """It pickles well; whoever unpickles it dies, but for the worker, which tries it first."""

    def __init__(self) -> None:
        self.worker = os.getpid()

    def __reduce__(self) -> Any:
        return _kill_reader, (self.worker,)


def _kill_reader(worker: int) -> str:
    if os.getpid() != worker:
        os.kill(os.getpid(), signal.SIGKILL)
    return "read"


def result_that_kills_its_reader(x: int) -> Any:
    return KillsWhoReadsIt() if x == BAD else x * x


class DiesWhenRead(Exception):
    """It pickles well, and kills the process that unpickles it."""

    def __reduce__(self) -> Any:
        return _kill_reader, (os.getpid(),)


def exception_that_kills_its_reader(x: int) -> int:
    if x == BAD:
        raise DiesWhenRead("no way back")
    return x * x


def nested(depth: int) -> Any:
    made: Any = None
    for _ in range(depth):
        made = [made]
    return made


def nested_result(x: int) -> Any:
    return nested(100_000) if x == BAD else x * x


def threads_and_descriptors(x: int) -> tuple[int, list[str]]:
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) < 100:
            with suppress(OSError):  # The one that lists the others.
                names.append(str(entry.readlink()))
    return threading.active_count(), sorted(names)


def oom_scores(x: int) -> tuple[int, int]:
    """Return how readily the kernel would kill the worker and its supervisor."""

    def adjustment(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    return adjustment("self"), adjustment(os.getppid())
