"""The arithmetic of the results: pure functions of numbers that were measured elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median, quantiles
from typing import Final, NamedTuple

_TRIPS_MIN: Final = 100


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


def trip_figures(took_s: Sequence[float]) -> dict[str, float]:
    """What single trips took, in words; of less than a hundred nobody knows the slowest in a hundred.

    >>> trip_figures([0.001, 0.002, 0.004])
    {'a trip, ms': 2.0}
    """
    found = {"a trip, ms": median(took_s) * 1e3}
    if len(took_s) >= _TRIPS_MIN:
        found["99 % of trips within, ms"] = quantiles(took_s, n=100)[98] * 1e3
    return found


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


class Runs(NamedTuple):
    """What a log of `jobs.logged` tells: when each job's runs began and ended, in the order they did."""

    begun: dict[int, list[float]]
    ended: dict[int, list[float]]


def runs_in(log: str) -> Runs:
    r"""Read such a log.

    >>> runs_in("begun 7 1.5\nended 7 2.0\nbegun 7 3.0\n")
    Runs(begun={7: [1.5, 3.0]}, ended={7: [2.0]})
    """
    runs = Runs({}, {})
    for line in log.splitlines():
        what, number, at_s = line.split()
        (runs.begun if what == "begun" else runs.ended).setdefault(int(number), []).append(float(at_s))
    return runs


KILL_AFTER: Final = 0.25
"""Of all jobs, when everything that runs them is killed."""
FINISHED_AGAIN: Final = "finished, and ran again"
LOST_S: Final = "lost, s"


def restart_figures(runs: Runs, killed_at_s: float, workers: int) -> dict[str, float]:
    r"""What a kill of everything cost. Lost is the time in which no job began, and what was done in vain.

    >>> told = "begun 1 1.0\nended 1 2.0\nbegun 2 2.0\nbegun 2 4.5\nended 2 5.5\n"
    >>> list(restart_figures(runs_in(told), 3.0, 1).values())
    [1, 1, 0, 0.0, 1.5, 2.5]
    """
    ended_before = {number for number, times in runs.ended.items() if times[0] <= killed_at_s}
    cut_off = {number for number, times in runs.begun.items() if times[0] <= killed_at_s} - ended_before
    again = {number for number, times in runs.begun.items() if len(times) > 1}
    later = [at_s for times in runs.begun.values() for at_s in times if at_s > killed_at_s]
    gap_s = min(later, default=float("inf")) - killed_at_s
    in_vain_s = sum(killed_at_s - runs.begun[number][0] for number in cut_off)
    in_vain_s += sum(runs.ended[number][0] - runs.begun[number][0] for number in again & ended_before)
    return {
        "ran twice": len(again),
        "cut off by the kill": len(cut_off),
        FINISHED_AGAIN: len(again & ended_before),
        "the first of these before the kill, ms": max(
            ((killed_at_s - runs.ended[number][0]) * 1e3 for number in again & ended_before), default=0.0
        ),
        "until a job began, s": gap_s,
        LOST_S: gap_s + in_vain_s / workers,
    }
