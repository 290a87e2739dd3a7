"""What a job can do to its worker. A job is (name, argument...), so one lease can mix good and bad ones."""

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from select import select
from typing import Any, NoReturn

import batchd
from batchd.worker.template import is_open


def act(item: tuple[Any, ...]) -> Any:
    """Do what the item says."""
    name, *args = item
    return globals()[name](*args)


def same(value: Any) -> Any:
    return value


def text(size: int) -> str:
    return "x" * size


def work(seconds: float, value: Any = None) -> Any:
    """Take so long."""
    select([], [], [], seconds)
    return value


def once_there(path: str, value: Any = None) -> Any:
    """Wait for a file."""
    while not Path(path).exists():
        select([], [], [], 0.005)
    return value


def announce(path: str, seconds: float = 0.0) -> int:
    """Say through a FIFO that this job runs, then take so long."""
    with open(path, "w", encoding="ascii") as door:
        door.write(f"{os.getpid()}\n")
    select([], [], [], seconds)
    return os.getpid()


def write_down(path: str, seconds: float = 0.0) -> int:
    """Append `index:attempt` to a file, then take so long."""
    job = batchd.current_job()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{job.index}:{job.attempt}\n".encode())
    os.close(fd)
    select([], [], [], seconds)
    return job.index


def who() -> tuple[str, int, int]:
    job = batchd.current_job()
    return job.batch, job.index, job.attempt


def pid() -> int:
    return os.getpid()


# --- Bad ends --------------------------------------------------------------------------------------------------


def segfault() -> None:
    ctypes.string_at(0)


def kill_myself(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def leave(code: int) -> NoReturn:
    os._exit(code)


def leave_politely(code: Any) -> NoReturn:
    sys.exit(code)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def fail(message: str) -> NoReturn:
    raise ValueError(message)


class TwoArguments(Exception):
    """It pickles, and does not unpickle, as exceptions with a constructor of their own do."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_with_two() -> NoReturn:
    raise TwoArguments(1, 2)


def lock() -> Any:
    """What cannot be pickled."""
    return threading.Lock()


class Unreadable:
    """It pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return fail, ("cannot be read back",)


def unreadable() -> Any:
    return Unreadable()


# --- Descriptors and output ------------------------------------------------------------------------------------


def close_descriptors() -> str:
    os.closerange(3, 1024)
    return "closed"


def write_garbage() -> str:
    """Write to the pipe of reports, wherever it is."""
    for entry in sorted(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        if fd > 2 and os.path.exists(entry) and os.readlink(entry).startswith("pipe:"):  # noqa: PTH110, PTH115
            try:
                os.write(fd, b"garbage " * 10)
            except OSError:
                continue  # The end that is read.
    return "written"


def say(text: str, end: str = "\n") -> str:
    print(text, end=end)
    return text


def say_and_fail(text: str, raw: str = "") -> NoReturn:
    print(text)
    print(text.upper(), file=sys.stderr)
    os.write(1, raw.encode())
    raise ValueError(text)


def say_and_die(text: str) -> NoReturn:
    print(text)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def read_input() -> tuple[str, bytes]:
    return sys.stdin.read(), os.read(0, 100)


def descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() or entry.is_symlink():
            found[int(entry.name)] = os.readlink(entry)  # noqa: PTH115
    return {fd: name for fd, name in found.items() if not name.startswith(f"/proc/{os.getpid()}")}


# --- Children --------------------------------------------------------------------------------------------------


def fork_and_return() -> str:
    """Fork, and let the child return from the job as well."""
    child = os.fork()
    if child == 0:
        return "child"
    os.waitpid(child, 0)
    return "parent"


def fork_and_raise() -> str:
    child = os.fork()
    if child == 0:
        raise ValueError("child")
    os.waitpid(child, 0)
    return "parent"


def fork_and_talk() -> tuple[str, int]:
    """Fork a child that prints and asks which job it runs in."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            print("the child speaks", flush=True)
            os.write(write, f"index {batchd.current_job().index}".encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    told = os.read(read, 1000).decode()
    os.close(read)
    return told, os.waitpid(child, 0)[1]


def fork_a_child_that_forks(files: int) -> list[int]:
    """Have a child open so many files and fork again; return which of them its own child has not."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(files)]
        if (grandchild := os.fork()) == 0:
            closed = [fd for fd in opened if not is_open(fd)]
            os.write(write, json.dumps(closed).encode())
        else:
            os.waitpid(grandchild, 0)
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    told = os.read(read, 4096)
    os.close(read)
    return list(json.loads(told))


def leave_a_daemon() -> int:
    """Start a process in a session of its own and give its pid."""
    process = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    process.returncode = 0  # Nobody waits for it.
    return process.pid


def start_a_child(path: str) -> int:
    """Start a process in the worker's own group, tell its pid through a FIFO, and hold the GIL in C."""
    process = subprocess.Popen(["/bin/sleep", "600"])
    with open(path, "w", encoding="ascii") as door:
        door.write(f"{os.getpid()} {process.pid}\n")
    return hold_gil(600)


def hold_gil(seconds: int) -> int:
    return int(ctypes.PyDLL(None).sleep(seconds))


# --- What a worker is like -------------------------------------------------------------------------------------


def draw() -> float:
    return random.random()


def environ(name: str) -> str | None:
    return os.environ.get(name)


def threads() -> int:
    return threading.active_count()


def eat(size_bytes: int) -> int:
    """Take memory and keep it for a while."""
    held = bytearray(size_bytes)
    held[::4096] = b"x" * len(held[::4096])
    signal.pause()
    return len(held)


# --- What a job says about itself ------------------------------------------------------------------------------


def progress(fraction: float, path: str = "", seconds: float = 600.0) -> None:
    batchd.current_job().progress(fraction)
    if path:
        announce(path, seconds)


def log(*texts: str) -> None:
    for text in texts:
        batchd.current_job().log(text)


def leave_checkpoint(value: Any, path: str = "", seconds: float = 600.0) -> Any:
    """Leave a checkpoint; the first attempt then says so and takes long, a later one returns what it found."""
    job = batchd.current_job()
    if job.attempt > 1:
        return job.last_checkpoint
    job.checkpoint(value)
    if path:
        announce(path, seconds)
    return None


def leave_checkpoint_and_die(value: Any) -> Any:
    job = batchd.current_job()
    if job.attempt > 1:
        return job.last_checkpoint
    for number in range(20):
        job.checkpoint(number)
    job.checkpoint(value)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave_checkpoint_and_fail(value: Any) -> NoReturn:
    """Tell in the failure what an earlier attempt left."""
    job = batchd.current_job()
    found = job.last_checkpoint
    job.checkpoint(value)
    raise ValueError(f"found {found}")


def last_checkpoints(values: list[Any]) -> list[Any]:
    """Leave each value, then change it; return what was found before and after each."""
    job = batchd.current_job()
    found = [job.last_checkpoint]
    for value in values:
        job.checkpoint(value)
        value.append("changed")
        found.append(job.last_checkpoint)
    return found


def leave_too_much(size_bytes: int) -> None:
    batchd.current_job().checkpoint(bytes(size_bytes))


def leave_after_closing_descriptors() -> None:
    close_descriptors()
    leave_checkpoint("never there")


def leave_from_threads(threads: int, times: int) -> int:
    """Leave large checkpoints from many threads at once."""
    job = batchd.current_job()

    def leave(number: int) -> None:
        for _ in range(times):
            job.checkpoint(bytes([number]) * 200_000)

    started = [threading.Thread(target=leave, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return len(job.last_checkpoint)


def watch(path: str, how: str, seconds: float = 600.0) -> str:
    """Say that this job looks for its end; then return, fail or stay when it comes."""
    job = batchd.current_job()
    is_told = job.cancelled
    assert not is_told
    announce(path)
    end = time.monotonic() + seconds
    while not job.cancelled or how == "stay":
        assert time.monotonic() < end, "nobody ends this"
        select([], [], [], 0.001)
    if how == "fail":
        raise ValueError("was told to end")
    return "was told to end"


def keep_job() -> tuple[str, int, int]:
    """Keep the job for a later one to misuse."""
    kept[:] = [batchd.current_job()]
    return who()


def use_kept_job() -> list[str]:
    return refusals(kept[0])


kept: list[batchd.CurrentJob] = []


def refusals(job: batchd.CurrentJob) -> list[str]:
    """Return how each thing that a job may do is refused, '' where it is not."""
    calls: list[Callable[[], Any]] = [
        lambda: job.progress(0.5),
        lambda: job.log("nothing"),
        lambda: job.checkpoint("nothing"),
        lambda: job.last_checkpoint,
        lambda: job.cancelled,
    ]
    found = []
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            found.append(str(error))
        else:
            found.append("")
    return found


def fork_and_speak() -> list[str]:
    """Fork a child that tries everything a job may do, and return how it was refused."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, "\n".join(refusals(batchd.current_job())).encode())
        finally:
            os._exit(0)
    os.close(write)
    told = os.read(read, 10_000).decode()
    os.close(read)
    os.waitpid(child, 0)
    return told.split("\n")


def return_job() -> batchd.CurrentJob:
    return batchd.current_job()


def leave_unreadable() -> None:
    batchd.current_job().checkpoint(Unreadable())


def leave_many(count: int, path: str) -> None:
    """Leave so many checkpoints, slowly enough for many commits, then say so and take long."""
    job = batchd.current_job()
    for number in range(count):
        job.checkpoint(number)
        work(0.0005)
    announce(path, 600)
