"""N9: more workers than this machine has cores for: the real scheduler in simulated time, on costs measured here."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from batchd.settings import ACK_INTERVAL_S, LEASE_TARGET_S, LEASES_PER_WORKER
from benchmarks.batch import Job, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting, Work
from benchmarks.costs import Costs, measured
from benchmarks.model import LEFT_OUT, Model, Played

BUSY: Final = "workers busy"
LENGTHS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_WORKERS: Final = (2, 16, 64, 256, 1_000)
_QUICK_WORKERS: Final = (2, 256, 1_000)
_QUICK_LENGTHS_S: Final = (0.01, 0.1, 1.0, 10.0)
_REAL_WORKERS: Final = (4, 64)
_GOAL_WORKERS: Final = (256, 1_000)
_GOAL_JOB_S: Final = 1.0
_GOAL: Final = 0.99
_ROUND_JOBS: Final = 20
"""Jobs a worker, at the least."""
_LEASES: Final = 6
"""And as many as it takes to see what is behind the leases that a worker may have in advance, so many times."""
_ENDLESS: Final = 20
"""The batch holds so many times the jobs that are played: how it ends is N4."""


def contests(setting: Setting) -> list[Contest]:
    """One table: a column for each number of workers, a row for each length of job."""
    costs = measured(setting.scratch)
    counts = _QUICK_WORKERS if setting.is_quick else _WORKERS
    lengths_s = _QUICK_LENGTHS_S if setting.is_quick else LENGTHS_S
    contenders = [(f"{workers:,} workers", workers, max(2, int(workers * setting.scale))) for workers in counts]
    return [
        Contest(
            number="N9",
            title="jobs of 1 s on many workers, in simulated time",
            jobs=contenders[-1][2] * _ROUND_JOBS,
            expected_checksum=0,
            contenders=tuple(
                Contender(name, "none", partial(_run, costs, size, lengths_s), Work(size * _ROUND_JOBS, 0))
                for name, _, size in contenders
            ),
            goals=tuple(
                Goal(name, _GOAL, figure=busy_figure(_GOAL_JOB_S))
                for name, workers, _ in contenders
                if workers in _GOAL_WORKERS
            ),
            counted=(
                "simulated time in which the real scheduler is stepped. The supervisor is one resource that is busy "
                "for the CPU time its steps took here, and for what reading, granting and committing were measured "
                "to take. Jobs last 0.5 to 1.5 times the given length; a worker is busy when it is in a job, from "
                f"the moment a third of the jobs is done. Left out: {LEFT_OUT}"
            ),
            notes={
                **{f"{name.removesuffix('_s')}, us": cost * 1e6 for name, cost in costs._asdict().items()},
                **_held_against_reality(setting, costs),
            },
            rounds_max=1,
        )
    ]


def _held_against_reality(setting: Setting, costs: Costs) -> dict[str, float]:
    """What a job of 1 ms takes a real supervisor, and the model's, with as many workers as can sleep here."""
    jobs, found = setting.jobs(20_000, 5_000), {}
    for workers in _REAL_WORKERS:
        job = Job("benchmarks.jobs", "nap_ms", "disk")
        made = run_batch(setting.scratch, job, range(jobs), workers=workers, warm=range(workers))
        played = Model(workers, ACK_INTERVAL_S, costs, played=jobs, given=jobs).play()
        found[f"supervisor with {workers} real workers, us a job of 1 ms"] = made.supervisor_cpu_s / jobs * 1e6
        found[f"the same in the model ({workers})"] = played.supervisor_cpu_s / jobs * 1e6
    return found


def busy_figure(job_s: float) -> str:
    """The name of the figure that says how busy workers are with jobs of a length.

    >>> busy_figure(0.003), busy_figure(1.0)
    ('workers busy, jobs of 3 ms', 'workers busy, jobs of 1 s')
    """
    return f"{BUSY}, jobs of {f'{job_s:g} s' if job_s >= 1 else f'{job_s * 1000:g} ms'}"


def _run(costs: Costs, workers: int, lengths_s: Sequence[float]) -> Sample:
    figures = {}
    for job_s in lengths_s:
        played = _play(costs, workers, job_s)
        figures[busy_figure(job_s)] = played.busy
        if job_s == _GOAL_JOB_S:
            figures["workers busy, jobs of 1 s, from the first lease on"] = played.whole
            figures["supervisor busy, share"] = played.supervisor
            figures["a step, us"] = played.step_s * 1e6
            seconds = played.seconds
    return Sample(seconds, workers * _ROUND_JOBS, 0, figures)


def _play(costs: Costs, workers: int, job_s: float) -> Played:
    in_advance = LEASES_PER_WORKER * LEASE_TARGET_S / job_s
    jobs = workers * max(_ROUND_JOBS, int(_LEASES * in_advance))
    return Model(workers, job_s, costs, played=jobs, given=jobs * _ENDLESS).play()
