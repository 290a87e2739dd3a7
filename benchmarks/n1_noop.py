"""N1: no-op jobs, so that nothing but the machinery is timed; numbers first, then arbitrary objects."""

from collections.abc import Iterable, Sequence
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
_EXECUTORS: Final = ("ProcessPoolExecutor.map, 4096", "ProcessPoolExecutor.map, 1024")
_POOL: Final = "multiprocessing.Pool.map, 4096"


def contests(setting: Setting) -> list[Contest]:
    """The three tables of N1."""
    count = setting.jobs(1_000_000, 200_000)
    shuffled = list(range(count))
    Random(1).shuffle(shuffled)  # noqa: S311  (an order, no secret)
    return [
        _integers(setting, "no-op jobs on integers", range(count)),
        _integers(setting, "no-op jobs on integers in no order", shuffled),
        _objects(setting),
    ]


def _integers(setting: Setting, title: str, numbers: Sequence[int]) -> Contest:
    warm = range(WARM_JOBS)
    executor = partial(run_executor, noop, numbers, _fold, workers=setting.workers, warm=warm)
    pool = partial(run_pool, noop, numbers, _fold, workers=setting.workers, warm=warm)
    return Contest(
        number="N1",
        title=title,
        jobs=len(numbers),
        expected_count=len(numbers),
        expected_checksum=sum(numbers),
        contenders=(
            Contender("batchd", "disk", partial(_run_integers, setting, numbers, "disk")),
            Contender("batchd, process", "process", partial(_run_integers, setting, numbers, "process")),
            *(
                Contender(name, "none", partial(executor, chunksize=size))
                for name, size in zip(_EXECUTORS, (4096, 1024), strict=True)
            ),
            Contender(_POOL, "none", partial(pool, chunksize=4096)),
            *contenders(setting, "bulk", noop, lambda: numbers, _fold, gathers=True, without=STANDARD),
        ),
        goals=(
            Goal("batchd", 2.0, _EXECUTORS),
            Goal("batchd", 0.8, (_POOL,)),
        ),
        counted=_COUNTED,
    )


def _objects(setting: Setting) -> Contest:
    rows = small_dicts(setting.jobs(200_000, 50_000))
    executor = partial(run_executor, noop, rows, _fold_rows, workers=setting.workers, warm=rows[:WARM_JOBS])
    return Contest(
        number="N1",
        title="no-op jobs on arbitrary objects (small dicts)",
        jobs=len(rows),
        expected_count=len(rows),
        expected_checksum=ids_sum(rows),
        contenders=(
            Contender("batchd", "disk", partial(_run_objects, setting, rows)),
            *(
                Contender(name, "none", partial(executor, chunksize=size))
                for name, size in zip(_EXECUTORS, (4096, 1024), strict=True)
            ),
            *contenders(setting, "bulk", noop, lambda: rows, _fold_rows, gathers=True, without=STANDARD),
        ),
        goals=(Goal("batchd", 1.0, _EXECUTORS),),
        counted=_COUNTED,
    )


def _run_integers(setting: Setting, numbers: Sequence[int], durability: str) -> Sample:
    return _run(setting, numbers, durability, lambda total, part: total + sum(part))


def _run_objects(setting: Setting, rows: Sequence[dict[str, Any]]) -> Sample:
    return _run(setting, rows, "disk", lambda total, part: total + ids_sum(part))


def _run(setting: Setting, items: Sequence[Any], durability: str, reduce: Any) -> Sample:
    job = Job("benchmarks.jobs", "noop", durability)
    made = run_batch(
        setting.scratch, job, items, workers=setting.workers, warm=list(items[:WARM_JOBS]), reduce=reduce
    )
    figures = {
        "supervisor CPU, ns a job": made.supervisor_cpu_s / len(items) * 1e9,
        "workers CPU, ns a job": made.workers_cpu_s / len(items) * 1e9,
        "client CPU, ns a job": made.client_cpu_s / len(items) * 1e9,
        "journal, bytes a job": made.disk_bytes / len(items),
        "commits": made.commits,
    }
    return Sample(made.seconds, made.results, made.reduced, figures)


def _fold(results: Iterable[int]) -> tuple[int, int]:
    values = list(results)
    return len(values), sum(values)


def _fold_rows(results: Iterable[dict[str, Any]]) -> tuple[int, int]:
    rows = list(results)
    return len(rows), ids_sum(rows)
