"""The jobs that are timed: importable by every contender's workers, and the same code for all of them."""

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from time import monotonic, process_time, sleep
from typing import Any, Final

TAIL_MS: Final = (1.0, 400.0)
_TAIL_SHAPE: Final = 0.9
_CALIBRATION_LOOPS: Final = 200_000


def noop(value: Any) -> Any:
    """The value itself."""
    return value


def count_to(loops: int) -> int:
    """`loops`, counted one by one: a fixed amount of work that only a CPU can do."""
    done = 0
    while done < loops:
        done += 1
    return done


def spin(loops: int) -> tuple[int, float, float, float, int]:
    """Count to `loops`; return what figures.Ran holds. The clocks stand inside, next to the work."""
    started_s, cpu_s = monotonic(), process_time()
    done = count_to(loops)
    return done, process_time() - cpu_s, started_s, monotonic(), os.getpid()


def wait(micros: int) -> tuple[int, float, float, float, int]:
    """Let so much time pass; return what figures.Ran holds, the time that passed in the place of CPU time."""
    started_s = monotonic()
    sleep(micros / 1e6)
    stopped_s = monotonic()
    return micros, stopped_s - started_s, started_s, stopped_s, os.getpid()


def mortal(item: tuple[int, float, str]) -> tuple[int, float]:
    """Be busy for milliseconds; where a mark is named and not there, leave it and take the worker along.

    Returns the job's number and, when it died before, how many seconds ago: both clocks are its own.
    """
    number, ms, mark = item
    began_s = monotonic()  # CLOCK_MONOTONIC, the same in all processes.
    died_before_s = 0.0
    if mark:
        try:
            fd = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            died_before_s = began_s - float(Path(mark).read_text("ascii"))
        else:
            os.write(fd, repr(monotonic()).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    _be_busy(began_s + ms / 1000)
    return number, died_before_s


def logged(item: tuple[int, float, str]) -> int:
    """Be busy for milliseconds, and write to a log when that began and ended: a line each, whoever else writes."""
    number, ms, log = item
    fd = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    began_s = monotonic()
    os.write(fd, f"begun {number} {began_s!r}\n".encode())
    _be_busy(began_s + ms / 1000)
    os.write(fd, f"ended {number} {monotonic()!r}\n".encode())
    os.close(fd)
    return number


def ended_in(log: Path) -> int:
    """How many runs such a log has that came to their end."""
    return log.read_bytes().count(b"ended")


def _be_busy(until_s: float) -> None:
    while monotonic() < until_s:
        pass


def loops_per_ms(count: Callable[[int], int] = count_to) -> float:
    """How far this machine counts in a millisecond, at its best of several tries."""
    best_s = float("inf")
    for _ in range(9):
        since = process_time()  # Whatever else the machine is doing.
        count(_CALIBRATION_LOOPS)
        best_s = min(best_s, process_time() - since)
    return _CALIBRATION_LOOPS / best_s / 1000


def tail_ms(count: int, seed: int) -> list[float]:
    """Lengths with a heavy tail, from a Pareto distribution cut off at both ends of TAIL_MS; the longest is in."""
    low, high = TAIL_MS
    cut = 1 - (low / high) ** _TAIL_SHAPE
    draw = Random(seed)  # noqa: S311  (lengths, no secrets)
    lengths = [low / (1 - draw.random() * cut) ** (1 / _TAIL_SHAPE) for _ in range(count - 1)]
    lengths.insert(draw.randrange(count), high)
    return lengths


def late_giants_ms(count: int, giants: int) -> list[float]:
    """Short jobs, and long ones at the end, where whoever goes by the order begins them last."""
    return [TAIL_MS[1] / 80] * (count - giants) + [TAIL_MS[1]] * giants


def added(results: Iterable[Any]) -> tuple[int, Any]:
    """How many numbers there are, and what they add up to."""
    values = list(results)
    return len(values), sum(values)


def kept(results: Iterable[Any]) -> tuple[int, list[Any]]:
    """How many results there are, and all of them: for who has more to read in them than what they add up to."""
    values = list(results)
    return len(values), values


def small_dicts(count: int) -> list[dict[str, Any]]:
    """Arbitrary objects, as rows of a table look."""
    return [{"id": number, "name": f"row {number}", "tags": ["a", "b"]} for number in range(count)]


def ids_sum(rows: Sequence[dict[str, Any]]) -> int:
    """What rows add up to."""
    return sum(row["id"] for row in rows)


def nap_ms(_: int) -> float:
    """Sleep for a millisecond; return when that began, on the clock that every process of this boot shares."""
    since = monotonic()
    sleep(0.001)
    return since


def nap_if_not_negative(number: int) -> float:
    """Return when it began; sleep for 50 ms, but not for a negative number."""
    since = monotonic()
    if number >= 0:
        sleep(0.05)
    return since
