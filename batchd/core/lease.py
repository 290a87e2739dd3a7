"""Leases: the right of one live worker to run a range of jobs, and how large it should be."""

from dataclasses import dataclass
from typing import NamedTuple

from batchd.core.events import Phase, Position
from batchd.core.job import History
from batchd.settings import LEASE_GROWTH_MAX, LEASE_JOBS_MAX, LEASE_TAKERS_MAX, LEASE_TARGET_S


@dataclass(slots=True)
class Lease:
    """A lease as the scheduler's book has it. Jobs [first, next) are reported, [next, stop) are not."""

    number: int
    batch: str
    lane: int
    first: int
    stop: int
    next: int
    history: History
    """Of every job in the lease: a lease never mixes histories, so it has one attempt number."""
    cost: float | None = None
    """What its one job was said to cost, if it was leased alone for that."""
    is_cutting: bool = False
    cut_next: int | None = None
    """A lower limit that was asked for while a cut was under way."""
    is_ending: bool = False
    """Whether the job that runs under it is to end too."""


class Reach(NamedTuple):
    """How far a worker got with a lease."""

    begun: int
    """Where the jobs that never began start."""
    running: int | None
    """The job whose own code was running, if the position says so."""


def reach(number: int, first: int, stop: int, position: Position | None) -> Reach:
    """Return how far the worker at `position` got with jobs [first, stop) of lease `number`.

    >>> reach(7, 10, 20, Position(lease=7, index=12, phase=Phase.RUNNING))
    Reach(begun=13, running=12)
    """
    if position is None or position.lease < number:
        return Reach(first, None)
    if position.lease > number or position.index >= stop:
        return Reach(stop, None)  # Through with it; at or beyond the end it only looked at the limit.
    is_running = position.phase is Phase.RUNNING and position.index >= first
    return Reach(max(first, position.index + 1), position.index if is_running else None)


class Pace:
    """How long jobs of a batch take, measured from reports, recent ones counting more.

    >>> pace = Pace()
    >>> pace.jobs_per_lease(queued=1000, workers=2)
    1
    >>> pace.report(jobs=1, busy_s=0.001); pace.jobs_per_lease(queued=1000, workers=2)
    8
    """

    __slots__ = ("_busy_s", "_jobs", "jobs_max")

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._jobs = 0.0
        self.jobs_max = 0
        """The largest lease measured so far: sizes grow by a bounded factor."""

    @property
    def seconds_per_job(self) -> float | None:
        """The mean over about the last 20 leases' worth of work, None before the first report."""
        return self._busy_s / self._jobs if self._jobs else None

    def report(self, jobs: float, busy_s: float) -> None:
        """Take in one report."""
        window_s = 20 * LEASE_TARGET_S
        if self._busy_s > window_s:
            keep = window_s / self._busy_s
            self._busy_s *= keep
            self._jobs *= keep
        self._busy_s += busy_s
        self._jobs += jobs

    def lease_done(self, jobs: int) -> None:
        """A lease of so many jobs went through."""
        self.jobs_max = max(self.jobs_max, jobs)

    def lease_s(self, queued: int, workers: int) -> float:
        """Return how long the next lease should take: a target, less as the queue runs out."""
        each_s = self.seconds_per_job
        return LEASE_TARGET_S if each_s is None else min(LEASE_TARGET_S, each_s * queued / (2 * workers))

    def jobs_per_lease(self, queued: int, workers: int, takers: int = 1) -> int:
        """Return how many jobs the next lease should hold: a target time, less as the queue runs out.

        `takers` batches take turns with the workers: the target is for all of them, as far as leases do not get tiny.
        """
        each_s = self.seconds_per_job
        if each_s is None:
            return 1
        target_s = LEASE_TARGET_S / min(takers, LEASE_TAKERS_MAX)
        wanted = int(target_s / each_s) if each_s > target_s / LEASE_JOBS_MAX else LEASE_JOBS_MAX
        fair = queued // (2 * workers)
        grown = LEASE_GROWTH_MAX * max(1, self.jobs_max)
        return max(1, min(wanted, fair, grown, LEASE_JOBS_MAX))
