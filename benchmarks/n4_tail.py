"""N4: real work, even and heavy-tailed: what batchd adds to it, and how evenly it ends."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.batch import Job, concat, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.figures import Ran, efficiency, gap_share, greedy_bound_s, outside_share
from benchmarks.jobs import loops_per_ms, spin, tail_ms
from benchmarks.peers.roster import STANDARD, contenders
from benchmarks.pools import run_bare, run_executor

_EVEN_MS: Final = 10.0
_SEED: Final = 4
_WARM_JOBS: Final = 10
_COUNTED: Final = (
    "hand over all inputs, run, read every result back; from a warm start (ten jobs of 10 ms went before). Every job "
    "counts to a fixed number and measures its own CPU time; efficiency is max(CPU / workers, longest job) / wall"
)


def contests(setting: Setting) -> list[Contest]:
    """The two tables of N4."""
    pace = loops_per_ms()
    even = [_EVEN_MS] * setting.jobs(400, 100)
    tail = tail_ms(setting.jobs(600, 150), _SEED)
    warm = [int(_EVEN_MS * pace)] * _WARM_JOBS
    return [
        _contest(setting, "CPU jobs of 10 ms", [int(ms * pace) for ms in even], warm, even),
        _contest(setting, "heavy-tailed CPU jobs, 1 to 400 ms", [int(ms * pace) for ms in tail], warm, tail),
    ]


def _contest(setting: Setting, title: str, loops: Sequence[int], warm: Sequence[int], ms: Sequence[float]) -> Contest:
    workers = setting.workers
    return Contest(
        number="N4",
        title=title,
        jobs=len(loops),
        expected_count=len(loops),
        expected_checksum=sum(loops),
        contenders=(
            Contender("batchd", "disk", partial(_run_batchd, setting, loops, warm)),
            Contender("ProcessPoolExecutor.map, 1", "none", partial(_run_executor, loops, warm, workers)),
            Contender("bare processes, static split", "none", partial(_run_bare, loops, workers)),
            *contenders(
                *(setting, "bulk", spin, lambda: loops, _kept),
                without=STANDARD,
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


def _run_executor(loops: Sequence[int], warm: Sequence[int], workers: int) -> Sample:
    kept: list[Ran] = []
    sample = run_executor(spin, loops, partial(_keep, kept), workers=workers, warm=warm, chunksize=1)
    return sample._replace(figures=_figures(kept, workers, sample.seconds))


def _run_bare(loops: Sequence[int], workers: int) -> Sample:
    kept: list[Ran] = []
    sample = run_bare(spin, loops, partial(_keep, kept), workers=workers)
    return sample._replace(figures=_figures(kept, workers, sample.seconds))


def _kept(results: Iterable[Any]) -> tuple[int, list[Ran]]:
    ran = [Ran(*result) for result in results]
    return len(ran), ran


def _measured(sample: Sample, workers: int) -> Sample:
    ran: list[Ran] = sample.checksum
    figures = _figures(ran, workers, sample.seconds)
    return sample._replace(checksum=sum(job.loops for job in ran), figures=figures)


def _keep(kept: list[Ran], results: Iterable[Any]) -> tuple[int, int]:
    kept += [Ran(*result) for result in results]
    return len(kept), sum(job.loops for job in kept)


def _figures(ran: Sequence[Ran], workers: int, wall_s: float) -> dict[str, float]:
    cpu = [job.cpu_s for job in ran]
    return {
        "efficiency": efficiency(cpu, workers, wall_s),
        "gaps between jobs": gap_share(ran),
        "jobs' CPU, s": sum(cpu),
        "greedy bound, s": greedy_bound_s(cpu, workers),
    }
