"""N4: real work, even and heavy-tailed: what batchd adds to it, and how evenly it ends."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Final

from batchd.client.costing import CostOf
from benchmarks.batch import Job, concat, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.figures import Ran, efficiency, gap_share, greedy_bound_s, outside_share
from benchmarks.jobs import kept, late_giants_ms, loops_per_ms, spin, tail_ms, wait
from benchmarks.peers.roster import contenders
from benchmarks.pools import run_bare, run_executor
from benchmarks.rehearsal import list_schedule_s

CAP_S: Final = 15.0
"""Of a peer: several times what the work takes."""
_EVEN_MS: Final = 10.0
_SEED: Final = 4
_WAITERS: Final = 8
"""So many times as many workers where jobs only wait."""
_WARM_JOBS: Final = 10
_EXECUTOR: Final = "ProcessPoolExecutor.map, 1"
_COUNTED: Final = (
    "hand over all inputs, run, read every result back; from a warm start (ten jobs of 10 ms went before). Every job "
    "counts to a fixed number and measures its own CPU time; efficiency is max(CPU / workers, longest job) / wall"
)
_COUNTED_WAITS: Final = (
    "hand over all inputs, run, read every result back; from a warm start. Every job sleeps and measures how long it "
    "did; efficiency is max(time slept / workers, longest job) / wall"
)


def contests(setting: Setting) -> list[Contest]:
    """The tables of N4."""
    pace = loops_per_ms()
    even = [_EVEN_MS] * setting.jobs(400, 100)
    tail = tail_ms(setting.jobs(600, 150), _SEED)
    warm = [int(_EVEN_MS * pace)] * _WARM_JOBS
    crew = setting.workers * _WAITERS
    waits = crew * setting.jobs(300, 25)
    return [
        _contest(setting, "CPU jobs of 10 ms", [int(ms * pace) for ms in even], warm, even),
        _contest(setting, "heavy-tailed CPU jobs, 1 to 400 ms", [int(ms * pace) for ms in tail], warm, tail),
        _known_contest(setting, "heavy-tailed waits of known length, 1 to 400 ms", tail_ms(waits, _SEED)),
        _known_contest(
            setting, "known giants at the end, three for two workers", late_giants_ms(waits, crew * 3 // 2)
        ),
    ]


def _contest(setting: Setting, title: str, loops: Sequence[int], warm: Sequence[int], ms: Sequence[float]) -> Contest:
    workers = setting.workers
    return Contest(
        number="N4",
        title=title,
        jobs=len(loops),
        expected_checksum=sum(loops),
        contenders=(
            Contender("batchd", "disk", partial(_run_batchd, setting, loops, warm)),
            Contender(_EXECUTOR, "none", partial(_run_executor, loops, warm, workers), peer="executor"),
            Contender("bare processes, static split", "none", partial(_run_bare, loops, workers)),
            *contenders(
                *(setting, "bulk", spin, lambda: loops, kept),
                budget_s=inf,  # All of them: what counts is how evenly they end.
                cap_s=CAP_S,
                rounds=1,
                without=("executor",),
                then=partial(_measured, workers=workers),
            ),
        ),
        goals=(
            Goal("batchd", 0.95, figure="efficiency"),
            Goal("batchd", 0.01, figure="CPU outside jobs", is_maximum=True),
            Goal("batchd", 0.01, figure="gaps between jobs", is_maximum=True),
        ),
        counted=_COUNTED,
        notes={
            "calibrated work, s": sum(ms) / 1000,
            "longest job, s": max(ms) / 1000,
            "calibrated greedy bound, s": greedy_bound_s(ms, workers) / 1000,
        },
    )


def _known_contest(setting: Setting, title: str, ms: Sequence[float]) -> Contest:
    """With and without being told how long each job is; a pool is told by sorting its input by hand.

    Jobs wait instead of counting, so that there can be more workers than cores and only the order shows.
    """
    workers = setting.workers * _WAITERS
    micros = [int(each * 1000) for each in ms]
    by_hand = sorted(micros, reverse=True)
    warm = [int(_EVEN_MS * 1000)] * workers
    batchd = partial(_run_waits, setting, micros, warm, workers)
    pool = partial(_run_executor, warm=warm, workers=workers, task=wait)
    return Contest(
        number="N4",
        title=title,
        jobs=len(ms),
        expected_checksum=sum(micros),
        contenders=(
            Contender("batchd, cost given", "disk", partial(batchd, cost=float)),
            Contender("batchd", "disk", batchd),
            Contender("ProcessPoolExecutor.map, sorted", "none", partial(pool, by_hand)),
            Contender(_EXECUTOR, "none", partial(pool, micros)),
        ),
        goals=(Goal("batchd, cost given", 0.95, figure="efficiency"),),
        counted=_COUNTED_WAITS,
        notes={
            "workers": workers,
            "greedy bound, s": greedy_bound_s(ms, workers) / 1000,
            "handed out in the order of the input, s": list_schedule_s([each / 1000 for each in ms], workers),
        },
    )


def _run_waits(
    setting: Setting, micros: Sequence[int], warm: Sequence[int], workers: int, cost: CostOf | None = None
) -> Sample:
    job = Job("benchmarks.jobs", "wait", "disk")
    made = run_batch(setting.scratch, job, micros, workers=workers, warm=warm, cost=cost)
    return _measured(Sample(made.seconds, made.results, concat(made.values)), workers)


def _run_batchd(setting: Setting, loops: Sequence[int], warm: Sequence[int]) -> Sample:
    made = run_batch(
        setting.scratch, Job("benchmarks.jobs", "spin", "disk"), loops, workers=setting.workers, warm=warm
    )
    ran = [Ran(*value) for value in concat(made.values)]
    figures = _figures(ran, setting.workers, made.seconds)
    all_cpu_s = made.supervisor_cpu_s + made.workers_cpu_s
    figures["CPU outside jobs"] = outside_share(all_cpu_s, sum(job.cpu_s for job in ran))
    figures["supervisor CPU, share of all"] = made.supervisor_cpu_s / all_cpu_s
    figures["client CPU, share of all"] = made.client_cpu_s / all_cpu_s
    figures["commits"] = made.commits
    return Sample(made.seconds, made.results, sum(job.loops for job in ran), figures)


def _run_executor(
    items: Sequence[int], warm: Sequence[int], workers: int, task: Callable[[int], Any] = spin
) -> Sample:
    return _measured(run_executor(task, items, kept, workers=workers, warm=warm, chunksize=1), workers)


def _run_bare(loops: Sequence[int], workers: int) -> Sample:
    return _measured(run_bare(spin, loops, kept, workers=workers), workers)


def _measured(sample: Sample, workers: int) -> Sample:
    """A sample whose checksum is all results, with what they tell."""
    ran = [Ran(*result) for result in sample.checksum]
    figures = _figures(ran, workers, sample.seconds)
    return sample._replace(checksum=sum(job.loops for job in ran), figures=figures)


def _figures(ran: Sequence[Ran], workers: int, wall_s: float) -> dict[str, float]:
    cpu = [job.cpu_s for job in ran]
    return {
        "efficiency": efficiency(cpu, workers, wall_s),
        "gaps between jobs": gap_share(ran),
        "jobs' own time, s": sum(cpu),
        "greedy bound, s": greedy_bound_s(cpu, workers),
    }
