"""N1: no-op jobs, so that nothing but the machinery is timed; numbers first, then arbitrary objects."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

from benchmarks.batch import Job, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.jobs import ids_sum, noop, small_dicts
from benchmarks.peers.roster import STANDARD, contenders
from benchmarks.pools import run_executor, run_pool

WARM_JOBS: Final = 10
_COUNTED: Final = (
    "hand over all inputs, run, read every result back and add them up; from a warm start "
    f"({WARM_JOBS} jobs of the same batch or pool went before), to the last result"
)
_EXECUTORS: Final = {"ProcessPoolExecutor.map, 4096": 4096, "ProcessPoolExecutor.map, 1024": 1024}
_POOL: Final = "multiprocessing.Pool.map, 4096"

Add = Callable[[Sequence[Any]], int]
"""What results add up to."""


def contests(setting: Setting) -> list[Contest]:
    """The three tables of N1."""
    count = setting.jobs(1_000_000, 200_000)
    shuffled = list(range(count))
    Random(1).shuffle(shuffled)  # noqa: S311  (an order, no secret)
    rows = small_dicts(setting.jobs(200_000, 50_000))
    faster = (Goal("batchd", 2.0, tuple(_EXECUTORS)), Goal("batchd", 0.8, (_POOL,)))
    as_fast = (Goal("batchd", 1.0, tuple(_EXECUTORS)),)
    alone = replace(setting, peers=())  # Only a journal cares in which order integers are.
    return [
        _contest(setting, "no-op jobs on integers", range(count), sum, faster),
        _contest(alone, "no-op jobs on integers in no order", shuffled, sum, faster),
        _contest(setting, "no-op jobs on arbitrary objects (small dicts)", rows, ids_sum, as_fast),
    ]


def _contest(setting: Setting, title: str, items: Sequence[Any], add: Add, goals: tuple[Goal, ...]) -> Contest:
    fold = partial(_fold, add)
    common: dict[str, Any] = {"workers": setting.workers, "warm": items[:WARM_JOBS]}
    executor = partial(run_executor, noop, items, fold, **common)
    pool = partial(run_pool, noop, items, fold, **common, chunksize=4096)
    return Contest(
        number="N1",
        title=title,
        jobs=len(items),
        expected_checksum=add(items),
        contenders=(
            Contender("batchd", "disk", partial(_run, setting, items, "disk", add)),
            Contender("batchd, process", "process", partial(_run, setting, items, "process", add)),
            *(
                Contender(name, "none", partial(executor, chunksize=size), peer="executor")
                for name, size in _EXECUTORS.items()
            ),
            Contender(_POOL, "none", pool, peer="pool"),
            *contenders(setting, "bulk", noop, lambda: items, fold, gathers=True, without=STANDARD),
        ),
        goals=goals,
        counted=_COUNTED,
    )


def _run(setting: Setting, items: Sequence[Any], durability: str, add: Add) -> Sample:
    made = run_batch(
        setting.scratch,
        Job("benchmarks.jobs", "noop", durability),
        items,
        workers=setting.workers,
        warm=list(items[:WARM_JOBS]),
        reduce=lambda total, part: total + add(part),
    )
    figures = {
        "supervisor CPU, ns a job": made.supervisor_cpu_s / len(items) * 1e9,
        "workers CPU, ns a job": made.workers_cpu_s / len(items) * 1e9,
        "client CPU, ns a job": made.client_cpu_s / len(items) * 1e9,
        "journal, bytes a job": made.disk_bytes / len(items),
        "commits": made.commits,
    }
    return Sample(made.seconds, made.results, made.reduced, figures)


def _fold(add: Add, results: Iterable[Any]) -> tuple[int, int]:
    values = list(results)
    return len(values), add(values)
