"""Tasks for tests that run real commands. Each writes down every execution, in one write to an append-only file."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from select import select
from typing import Any, NoReturn

import batchd


def mark() -> None:
    """Write down `index attempt` of this execution."""
    job = batchd.current_job()
    fd = os.open(os.environ["MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d %d\n" % (job.index, job.attempt))
    os.close(fd)


def spin(seconds: float) -> None:
    """Work for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def square(x: int) -> int:
    return x * x


def marked_square(x: int) -> int:
    mark()
    spin(0.001)
    return x * x


def fast_square(x: int) -> int:
    """So fast that many are reported together."""
    mark()
    spin(0.0002)
    return x * x


def slow_square(x: int) -> int:
    mark()
    spin(0.03)
    return x * x


def long_job(x: int) -> int:
    mark()
    spin(30.0)
    return x


def poison_at_500(x: int) -> int:
    mark()
    spin(0.001)
    if x == 500:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def fast_poison_at_500(x: int) -> int:
    mark()
    if x == 500:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def segfault_at_3(x: int) -> int:
    print(f"about to read job {x}", flush=True)
    if x == 3:
        ctypes.string_at(0)
    return x


def supervisor_killer_at_7(x: int) -> int:
    mark()
    if x == 7:
        # Not getppid(): for a moment after its birth a worker's parent may still be the process between.
        holder = json.loads((Path(os.environ["BATCHD_JOURNAL"]) / "supervisor.lock").read_text())
        os.kill(holder["pid"], signal.SIGKILL)
        threading.Event().wait(30)
    spin(0.002)
    return x * x


def always_raises(x: int) -> NoReturn:
    raise ValueError(f"no {x}")


def raises_on_odd(x: int) -> int:
    if x % 2:
        print(f"looking at {x}")
        raise ValueError(f"{x} is odd")
    return x


def raises_once(x: int) -> int:
    mark()
    if batchd.current_job().attempt == 1:
        raise ValueError("not yet")
    return x


def ends_in_many_ways(x: int) -> Any:
    match x:
        case 0:
            sys.exit(3)
        case 1:
            os._exit(0)
        case 2:
            raise KeyboardInterrupt
        case 3:
            return (i for i in range(3))
        case 4:
            return Unreadable()
        case 5:
            raise TwoArguments(1, 2)
        case 6:
            ctypes.string_at(0)
    return x


class Unreadable:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return (_refuse, ())


def _refuse() -> NoReturn:
    raise RuntimeError("cannot be read back")


class TwoArguments(Exception):
    """Pickles, and does not unpickle, as exceptions with a constructor of their own do."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def hangs_in_c_at_2(x: int) -> int:
    if x == 2:
        ctypes.PyDLL(None).sleep(60)  # Holds the GIL.
    return x


def eats_memory_at_1(x: int) -> int:
    if x == 1:
        held = bytearray(600 << 20)
        held[::4096] = b"x" * len(held[::4096])
        threading.Event().wait(20)
    return x


def grows_at_1(x: int) -> int:
    """One job takes a little more all the time."""
    held: list[bytearray] = []
    while x == 1 and len(held) < 60:
        held.append(bytearray(b"x" * (10 << 20)))
        threading.Event().wait(0.03)
    return x


def text_length(line: str, *, times: int = 1) -> int:
    return len(line) * times


def first_field(row: dict[str, Any]) -> Any:
    return row["a"]


def odd_values(x: int) -> Any:
    from datetime import UTC, datetime

    return [{1, 2}, Path("/a/b"), datetime(2026, 1, 2, tzinfo=UTC), object()][x]


def slow_square_of_text(line: str) -> int:
    mark()
    return int(line) ** 2


def talks(x: int) -> int:
    """Log, say that it is at 42 %, and wait until the test lets it go on."""
    job = batchd.current_job()
    job.log(f"begin {x}")
    job.progress(0.42)
    mark()
    while not Path(os.environ["MARKS"]).with_name("go").exists():
        threading.Event().wait(0.01)
    job.log(f"end {x}\nin \x1b[31mtwo lines")
    return x


def counts_on(x: int) -> tuple[int, int]:
    """Count to 10 with a checkpoint each; the first attempt is killed half way. Return (attempt, where it began)."""
    job = batchd.current_job()
    began = job.last_checkpoint or 0
    for step in range(began, 10):
        if step == 5 and job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        job.checkpoint(step + 1)
    return job.attempt, began


def huge_at_1(x: int) -> int:
    """Return an integer of more digits than JSON's writer takes."""
    return 10**5_000 if x == 1 else x


def long_list(x: int) -> list[int]:
    """Return what takes JSON a while."""
    return list(range(x, x + 100_000))


def saves_slowly(x: int) -> bytearray:
    """Return what goes into a file, on a disk that takes longer than the job may."""
    os.fdatasync = lambda _: select([], [], [], 1.5)  # type: ignore[assignment]
    return bytearray(1 << 21)
