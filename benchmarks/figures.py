"""The arithmetic of the results: pure functions of numbers that were measured elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple


class Ran(NamedTuple):
    """One job as it measured itself; plain values, so that every contender can carry it."""

    loops: int
    cpu_s: float
    started_s: float
    stopped_s: float
    process: int


def ratios(subject_s: Sequence[float], reference_s: Sequence[float]) -> list[float]:
    """How many times as fast the subject was as the reference, round by round.

    >>> ratios([1.0, 2.0], [2.0, 2.0])
    [2.0, 1.0]
    """
    return [reference / subject for subject, reference in zip(subject_s, reference_s, strict=True)]


def fastest(seconds: Mapping[str, Sequence[float]], names: Iterable[str]) -> str | None:
    """The name with the lowest median, None when none of them has a time."""
    timed = [name for name in names if seconds.get(name)]
    return min(timed, key=lambda name: median(seconds[name]), default=None)


def greedy_bound_s(cpu_s: Sequence[float], workers: int) -> float:
    """The least time in which `workers` could do jobs that cannot be cut: nobody idle, or the longest job alone.

    >>> greedy_bound_s([1.0, 1.0, 4.0], 2)
    4.0
    """
    return max(sum(cpu_s) / workers, max(cpu_s, default=0.0))


def efficiency(cpu_s: Sequence[float], workers: int, wall_s: float) -> float:
    """The greedy bound as a share of the time it really took."""
    return greedy_bound_s(cpu_s, workers) / wall_s


def gap_share(ran: Iterable[Ran]) -> float:
    """The share of the workers' time, from each one's first job to its last, that passed between two jobs.

    >>> gap_share([Ran(1, 0.0, 0.0, 4.0, 7), Ran(1, 0.0, 5.0, 10.0, 7)])
    0.1
    """
    by_process: dict[int, list[Ran]] = {}
    for job in ran:
        by_process.setdefault(job.process, []).append(job)
    gaps_s = span_s = 0.0
    for jobs in by_process.values():
        jobs.sort(key=lambda job: job.started_s)
        gaps_s += sum(later.started_s - earlier.stopped_s for earlier, later in pairwise(jobs))
        span_s += jobs[-1].stopped_s - jobs[0].started_s
    return gaps_s / span_s if span_s else 0.0


def outside_share(all_cpu_s: float, jobs_cpu_s: float) -> float:
    """The share of the CPU time that did not go to jobs.

    >>> outside_share(4.0, 3.0)
    0.25
    """
    return (all_cpu_s - jobs_cpu_s) / all_cpu_s


def growing(largest: int) -> list[int]:
    """Counts from a thousand on, each ten times the last, up to the largest.

    >>> growing(250_000)
    [1000, 10000, 100000, 250000]
    """
    powers = [10**place for place in range(3, 12)]
    return [*(count for count in powers if count < largest), largest]
