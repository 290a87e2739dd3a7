"""N3: how long one job takes that somebody waits for, beside the least that its promises cost on this disk."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any, Final

import lmdb

from batchd.edge.environment import open_environment
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.executors import Made, Usage, on_disk, process_pool, thrown_away
from benchmarks.figures import trip_figures
from benchmarks.jobs import added, noop
from benchmarks.peers.roster import contenders

_FLOOR: Final = "floor: 2 durable commits and a pipe there and back"
_FLOOR_PROCESS: Final = "floor: 2 commits that are not synced and a pipe"
_RECORD: Final = bytes(64)
"""About what the input of a small call, or its outcome, takes in the journal."""
_MESSAGE_BYTES: Final = 16
_ECHO: Final = f"""
import os
while data := os.read(0, {_MESSAGE_BYTES}):
    os.write(1, data)
"""


def contests(setting: Setting) -> list[Contest]:
    """The table of N3."""
    trips = setting.jobs(1_000, 300)
    ways: tuple[tuple[str, str, Made, str], ...] = (
        ("batchd", "disk", on_disk, ""),
        ("batchd, throw-away", "process", thrown_away, ""),
        ("ProcessPoolExecutor.submit", "none", process_pool, "executor"),
    )
    floors = ((_FLOOR, "disk", True), (_FLOOR_PROCESS, "process", False))
    return [
        Contest(
            number="N3",
            title="round trips of one job at a time",
            jobs=trips,
            expected_checksum=sum(range(trips)),
            contenders=(
                *(
                    Contender(name, durability, partial(_run, made, setting, trips), peer=peer)
                    for name, durability, made, peer in ways
                ),
                *(Contender(name, kind, partial(_run_floor, setting, trips, sync)) for name, kind, sync in floors),
                *contenders(setting, "trips", noop, lambda: range(trips), added, without=("executor",)),
            ),
            # Half as fast as the floor is twice its time.
            goals=(Goal("batchd", 0.5, (_FLOOR,)), Goal("batchd, throw-away", 0.5, (_FLOOR,))),
            counted=(
                "the median trip, times the number of trips: submit a job and wait for its result, then the next; "
                "from a warm start. The floors write two records of 64 bytes in a commit each, with 16 bytes to "
                "another process and back in between"
            ),
        )
    ]


def _run(made: Made, setting: Setting, trips: int) -> Sample:
    with made(setting) as pool:
        usage = Usage(pool)
        took_s, results = _timed(lambda number: pool.take(pool.submit(noop, number)), trips)
        return _sample(took_s, results, usage.figures(trips))


def _run_floor(setting: Setting, trips: int, is_synced: bool) -> Sample:
    with _floor(Path(mkdtemp(dir=setting.scratch)), is_synced=is_synced) as trip:
        return _sample(*_timed(trip, trips), {})


@contextmanager
def _floor(folder: Path, *, is_synced: bool) -> Iterator[Callable[[int], int]]:
    env = open_environment(folder, sync=is_synced)
    echo = subprocess.Popen([sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert echo.stdin is not None
    assert echo.stdout is not None
    there, back = echo.stdin.fileno(), echo.stdout.fileno()

    def trip(number: int) -> int:
        _commit(env, 2 * number)
        os.write(there, number.to_bytes(_MESSAGE_BYTES, "big"))
        answer = os.read(back, _MESSAGE_BYTES)
        _commit(env, 2 * number + 1)
        return int.from_bytes(answer, "big")

    try:
        trip(0)  # Its start is not part of a trip.
        yield trip
    finally:
        echo.stdin.close()
        echo.wait()
        echo.stdout.close()
        env.close()


def _commit(env: lmdb.Environment, key: int) -> None:
    with env.begin(write=True) as txn:
        txn.put(key.to_bytes(8, "big"), _RECORD)


def _timed(trip: Callable[[int], Any], trips: int) -> tuple[list[float], list[int]]:
    took_s, results = [], []
    for number in range(trips):
        since = time.perf_counter()
        results.append(trip(number))
        took_s.append(time.perf_counter() - since)
    return took_s, results


def _sample(took_s: list[float], results: list[int], figures: dict[str, float]) -> Sample:
    return Sample(median(took_s) * len(took_s), len(results), sum(results), {**trip_figures(took_s), **figures})
