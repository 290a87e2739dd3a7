"""N8: arrays of 4 MiB, handed over and given back: how many bytes a second get through."""

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.executors import Made, Usage, on_disk, process_pool, thrown_away
from benchmarks.jobs import added
from benchmarks.peers.roster import COMMANDS, contenders

ARRAY_BYTES: Final = 4 << 20
_NUMBERS: Final = ARRAY_BYTES // 8
_DISTINCT: Final = 8
_AHEAD: Final = 8
"""Calls under way at once: enough to keep everybody busy, few enough to hold their arrays in memory."""
_NAMED: Final = ("joblib", "ray")
"""The peers that the goal of N8 names: they compete unasked, unless it is to be quick."""
_EXECUTOR: Final = "ProcessPoolExecutor"
_DISK: Final = "this disk: one file, then fdatasync"
_THROWN_AWAY: Final = "batchd, throw-away"


def total(array: Any) -> float:
    """What an array adds up to."""
    return float(array.sum())


def filled(number: int) -> Any:
    """An array of 4 MiB, filled with a number."""
    return _numpy().full(_NUMBERS, float(number))


def contests(setting: Setting) -> list[Contest]:
    """The two tables of N8; none without numpy."""
    if find_spec("numpy") is None:
        print("N8 needs numpy: pip install numpy")
        return []
    jobs = setting.jobs(100, 40)
    numbers = [job % _DISTINCT for job in range(jobs)]
    arrays = [filled(number) for number in range(_DISTINCT)]
    given = [arrays[number] for number in numbers]
    return [
        _contest(setting, "arrays of 4 MiB in, their sum out", total, given, numbers),
        _contest(setting, "numbers in, arrays of 4 MiB out", filled, numbers, numbers),
    ]


def _contest(
    setting: Setting, title: str, task: Callable[[Any], Any], items: Sequence[Any], numbers: Sequence[int]
) -> Contest:
    ways: list[tuple[str, str, Made, str]] = [
        ("batchd", "disk", on_disk, ""),
        (_THROWN_AWAY, "process", thrown_away, ""),
        (_EXECUTOR, "none", process_pool, "executor"),
    ]
    is_in = task is total
    peers = setting.peers if setting.is_quick else tuple(dict.fromkeys((*_NAMED, *setting.peers)))
    return Contest(
        number="N8",
        title=title,
        jobs=len(items),
        expected_checksum=float(sum(numbers) * _NUMBERS),
        contenders=(
            *(
                Contender(name, kind, partial(_run, made, setting, task, items), peer=peer)
                for name, kind, made, peer in ways
            ),
            Contender(_DISK, "disk", partial(_run_disk, setting, numbers)),
            *contenders(
                replace(setting, peers=peers),
                *("window", task, lambda: items, _added_sums),
                without=("executor", *COMMANDS),
                then=_with_rate,
            ),
        ),
        goals=(Goal(_THROWN_AWAY, 2.0 if is_in else 1.0, (_EXECUTOR,)),),
        counted=(
            f"hand over every call, at most {_AHEAD} ahead of the results taken where the pool allows it, and add up "
            "every array that comes back; from a warm start, to the last result"
        ),
    )


def _run(made: Made, setting: Setting, task: Callable[[Any], Any], items: Sequence[Any]) -> Sample:
    with made(setting) as pool:
        list(_sums(pool.take(pool.submit(task, item)) for item in items[:_AHEAD]))
        usage = Usage(pool)
        since = time.perf_counter()
        sums = list(_sums(_window(pool.submit, pool.take, task, items)))
        seconds = time.perf_counter() - since
        return _with_rate(Sample(seconds, len(sums), sum(sums), usage.figures(len(items))))


def _window(
    submit: Callable[..., Any], take: Callable[[Any], Any], task: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    handles = [submit(task, item) for item in items[:_AHEAD]]
    handles.reverse()
    for item in items[_AHEAD:]:
        yield take(handles.pop())
        handles.insert(0, submit(task, item))
    while handles:
        yield take(handles.pop())


def _added_sums(results: Iterable[Any]) -> tuple[int, float]:
    return added(_sums(results))


def _sums(results: Iterable[Any]) -> Iterator[float]:
    """What results add up to, each dropped before the next is asked for."""
    for result in results:
        yield result if isinstance(result, float) else float(result.sum())


def _with_rate(sample: Sample) -> Sample:
    rate = {"MB/s": sample.results * ARRAY_BYTES / 1e6 / sample.seconds}
    return sample._replace(figures={**rate, **sample.figures})


def _run_disk(setting: Setting, numbers: Sequence[int]) -> Sample:
    """Write as many bytes as the arrays have to one file: what no journal on this disk can beat."""
    data = bytes(os.urandom(ARRAY_BYTES))
    path = Path(mkdtemp(dir=setting.scratch)) / "bytes"
    since = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in numbers:
            file.write(data)
        os.fdatasync(file.fileno())
    seconds = time.perf_counter() - since
    written = path.stat().st_size // ARRAY_BYTES
    path.unlink()
    checksum = float(sum(numbers) * _NUMBERS) if written == len(numbers) else float("nan")
    return _with_rate(Sample(seconds, written, checksum))


def _numpy() -> Any:
    return importlib.import_module("numpy")
