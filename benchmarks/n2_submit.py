"""N2: no-op jobs submitted one by one, each with a future of its own, as code not written for batches does."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.executors import Made, Usage, on_disk, plain_pool, process_pool, thrown_away
from benchmarks.jobs import added, noop
from benchmarks.peers.roster import STANDARD, contenders

_EXECUTOR: Final = "ProcessPoolExecutor.submit"
_POOL: Final = "multiprocessing.Pool.apply_async"


def contests(setting: Setting) -> list[Contest]:
    """The table of N2."""
    numbers = range(setting.jobs(40_000, 10_000))
    ways: tuple[tuple[str, str, Made, str], ...] = (
        ("batchd", "disk", on_disk, ""),
        ("batchd, throw-away", "process", thrown_away, ""),
        (_EXECUTOR, "none", process_pool, "executor"),
        (_POOL, "none", plain_pool, "pool"),
    )
    return [
        Contest(
            number="N2",
            title="no-op jobs submitted one by one",
            jobs=len(numbers),
            expected_checksum=sum(numbers),
            contenders=(
                *(
                    Contender(name, durability, partial(_run, made, setting, numbers), peer=peer)
                    for name, durability, made, peer in ways
                ),
                *contenders(setting, "singles", noop, lambda: numbers, added, without=STANDARD),
            ),
            goals=(Goal("batchd", 3.0, (_EXECUTOR,)), Goal("batchd", 1.3, (_POOL,))),
            counted=(
                "submit every job by itself, then take every result from its handle in order and add them up; from a "
                "warm start (every worker had run jobs), to the last result"
            ),
        )
    ]


def _run(made: Made, setting: Setting, numbers: Sequence[int]) -> Sample:
    with made(setting) as pool:
        usage = Usage(pool)
        since = time.perf_counter()
        handles = [pool.submit(noop, number) for number in numbers]
        submitted_s = time.perf_counter() - since
        results = [pool.take(handle) for handle in handles]
        checksum = sum(results)
        seconds = time.perf_counter() - since
        figures = {"submitting, us a job": submitted_s / len(numbers) * 1e6, **usage.figures(len(numbers))}
    return Sample(seconds, len(results), checksum, figures)
