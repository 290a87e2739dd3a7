"""What the jobs of these tests do. Both executors find it by its name, so it lies in a module of its own.

It imports batchd only where a job asks batchd for something: the standard library's workers load this file as well.
"""

import ctypes
import mmap
import os
import platform
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from pickle import PicklingError
from select import select
from time import monotonic
from typing import Any, NoReturn

WAIT_S = 30.0


# --- Leaving word, and waiting for it ----------------------------------------------------------------------------


def note(path: str | Path, word: object = "") -> None:
    """Append a line, in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)


def notes(path: str | Path) -> list[str]:
    """Return the lines that were noted."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def nap(seconds: float, value: Any = None) -> Any:
    """Take so long."""
    select([], [], [], seconds)
    return value


class Door:
    """Jobs say that they came and wait until a test opens."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def enter(self, word: Any = "") -> Any:
        """Come, wait, and give the word back. In a worker."""
        note(f"{self.folder}/came", word)
        return self.pass_through(word)

    def pass_through(self, word: Any = "") -> Any:
        """Wait without a word."""
        deadline = monotonic() + WAIT_S
        while not Path(self.folder, "open").exists():
            if monotonic() > deadline:
                raise AssertionError("nobody opened the door")
            nap(0.002)
        return word

    def enter_from(self, first: int, number: int) -> int:
        """Come and wait, except with a number before the first."""
        if number >= first:
            self.enter(number)
        return number

    def enter_or_fail(self, number: int) -> int:
        """Come and wait, except with the number zero, which fails."""
        if not number:
            raise ValueError("the first")
        return self.enter_from(0, number)

    def came(self) -> list[str]:
        """Return who came so far."""
        return notes(f"{self.folder}/came")

    def open(self) -> None:
        """Let everybody through, now and later."""
        Path(self.folder, "open").touch()


# --- Plain calls -------------------------------------------------------------------------------------------------


def square(x: int) -> int:
    return x * x


def reciprocal(x: int) -> float:
    return 1 / x


def call_with(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def doubled(data: bytes) -> bytes:
    return data + data


def where_and_what(name: str) -> tuple[str, str | None]:
    """Return the current folder and a variable of the environment."""
    return os.getcwd(), os.environ.get(name)  # noqa: PTH109  (what the job itself would ask)


class Counter:
    """Something with methods of every kind."""

    step = 10

    def __init__(self, start: int) -> None:
        self.start = start

    def plus(self, x: int) -> int:
        return self.start + x

    def __call__(self, x: int) -> int:
        return self.start - x

    @classmethod
    def step_times(cls, x: int) -> int:
        return cls.step * x

    @staticmethod
    def negated(x: int) -> int:
        return -x


class Thing:
    """Something that a weak reference can watch."""

    def method(self) -> int:
        return 7


def make_thing(_: Any = None) -> Thing:
    return Thing()


class Farewell:
    """It notes when a copy of it in another process goes."""

    def __init__(self, path: Path) -> None:
        self.path, self.maker = str(path), os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.maker:
            note(self.path, "gone")


# --- Before the first job ----------------------------------------------------------------------------------------

_remembered: list[Any] = []


def remember(*words: Any) -> None:
    _remembered.extend(words)


def remembered() -> list[Any]:
    return _remembered


# --- Errors ------------------------------------------------------------------------------------------------------


class Annotated(Exception):
    """An error that carries more than its message."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.place: str | None = None


class TwoArguments(Exception):
    """It pickles, and does not unpickle, as exceptions with a constructor of their own do."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail(kind: Callable[..., BaseException], *args: Any) -> NoReturn:
    raise kind(*args)  # the line that failed


def fail_annotated() -> NoReturn:
    error = Annotated("see the place")
    error.place = "line 7"
    raise error


def fail_because() -> NoReturn:
    raise ValueError("no such colour") from KeyError("the key that is missing")


def fail_in_a_group() -> NoReturn:
    raise ExceptionGroup("two at once", [ValueError("one"), TypeError("two")])


def fail_with_a_lock() -> NoReturn:
    raise ValueError(threading.Lock())


# --- Values that cannot travel -----------------------------------------------------------------------------------


class Refuses:
    """It does not pickle, for a reason of its own."""

    def __reduce__(self) -> NoReturn:
        raise PicklingError("it refuses to travel")


class Unreadable:
    """It pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return fail, (ValueError, "cannot be read back")


class KillsItsPickler:
    """It ends the process that pickles it."""

    def __reduce__(self) -> NoReturn:
        kill_myself(signal.SIGKILL)


class LeavesItsPickler:
    """It raises SystemExit where it is pickled."""

    def __reduce__(self) -> NoReturn:
        raise SystemExit(5)


class KillsItsReader:
    """It ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return kill_myself, (signal.SIGKILL,)


def made_by(kind: Callable[[], Any]) -> Any:
    return kind()


# --- Bad ends ----------------------------------------------------------------------------------------------------


def kill_myself(number: int, _: Any = None) -> NoReturn:
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError("still alive")


def leave(code: int) -> NoReturn:
    os._exit(code)


def square_or_crash(x: int, deadly: int, path: str) -> int:
    """Square, but note the deadly number and die of it."""
    if x == deadly:
        note(path, x)
        kill_myself(signal.SIGKILL)
    return x * x


def read_null() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError("still alive")


def run_nonsense() -> NoReturn:
    """Execute what is no instruction."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\x0b" if platform.machine() == "x86_64" else bytes(4))
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    raise AssertionError("still alive")


def note_and_read_null(path: str) -> NoReturn:
    """Note that it began, and die of a null pointer."""
    note(path)
    read_null()


def sign_and_end(path: str, end: Callable[..., Any], *args: Any) -> Any:
    """Note who this is, say something, and end like that."""
    import batchd

    job = batchd.current_job()
    note(path, f"{os.getpid()} {job.batch} {job.index} {job.attempt}")
    print("the last words", flush=True)
    return end(*args)


def survive_from(path: str, attempt: int, end: Callable[..., Any], *args: Any) -> int:
    """End like that until the given attempt, then return its number."""
    import batchd

    number = batchd.current_job().attempt
    note(path, number)
    if number < attempt:
        end(*args)
    return number


# --- Executors within jobs ---------------------------------------------------------------------------------------


def square_elsewhere(x: int, depth: int = 1) -> int:
    """Square in a job of an executor of this job's own, so many floors down."""
    import batchd

    with batchd.Executor(1) as inner:
        below = inner.submit(square_elsewhere, x, depth - 1) if depth > 1 else inner.submit(square, x)
        found: int = below.result(WAIT_S)
        return found


def crash_elsewhere() -> None:
    """Let a job of this job's own executor die, and pass on what it raised."""
    import batchd

    with batchd.Executor(1) as inner:
        inner.submit(kill_myself, signal.SIGKILL).result(WAIT_S)


def shared_memory_files() -> list[str]:
    """Return what this worker maps from /dev/shm."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line})
