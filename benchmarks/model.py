"""The real scheduler in simulated time: one supervisor, any number of workers, costs that were measured.

The supervisor is one sequential resource. Its turns are the loop's (gather, step, commit, perform, rest): `step` and
`rest_s` are the real ones, and take the CPU time they took; reading, granting and committing take what costs.py
measured. What the model leaves out is told in `LEFT_OUT`.
"""

import gc
from array import array
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from time import thread_time
from typing import Any, Final

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.assignment import rest_s
from batchd.core.entries import Recorded
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler
from batchd.settings import (
    COMMIT_GAP_S,
    CUT_WAIT_S,
    LEAD_S,
    LIGHT_COMMIT_ENTRIES,
    REST_S_MIN,
    SAMPLE_COST_MAX,
    SAMPLE_S,
)
from benchmarks.costs import Costs

LEFT_OUT: Final = (
    "other programs, cores and caches shared by workers and supervisor, news to clients, the birth of workers, full "
    "pipes. A commit's CPU time is taken from the supervisor, though a thread of its own makes it"
)
_SPREAD: Final = (0.5, 1.5)
"""Jobs last this much of the length that is asked for, evenly spread."""


@dataclass(slots=True)
class _Granted:
    """A lease on its way through a worker."""

    lease: int
    next: int
    stop: int


@dataclass(slots=True)
class _Worker:
    """One worker: its leases, and whether it is in a job of the first."""

    leases: deque[_Granted] = field(default_factory=deque)
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """What a run came to."""

    busy: float
    """The share of the workers' time that they spent in jobs, once a third of the jobs was done."""
    whole: float
    """The same from the first lease to the last job."""
    supervisor: float
    """The share of the time in which the supervisor worked, or waited for the disk."""
    supervisor_cpu_s: float
    """For how long it worked."""
    steps: int
    step_s: float
    """CPU time of the real `step`, on average."""
    seconds: float
    """Simulated."""


class Model:
    """A batch of equal work on `workers` workers."""

    def __init__(self, workers: int, job_s: float, costs: Costs, *, played: int, given: int, seed: int = 9) -> None:
        """Play until `played` of `given` jobs are done: with more given than played, the batch has no end."""
        self._workers = {number: _Worker() for number in range(1, workers + 1)}
        self._job_s, self._costs = job_s, costs
        self._played, self._given = played, given
        self._draw = Random(seed)  # noqa: S311  (lengths, no secrets)
        self._agenda: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._written = 0
        self._inbox: list[tuple[float, ev.Event]] = []
        """Reports, by when they can be read."""
        self._told: list[ev.Event] = []
        """What wakes the supervisor even while it leaves reports unread."""
        self._now = 0.0
        self._free_at = self._rests_until = 0.0
        """When the supervisor is through with its turn, and until when it leaves reports unread."""
        self._wakes_at: float | None = None
        self._unsaved = 0
        self._in_flight = False
        self._next_commit = 0.0
        self._begins, self._ends = array("d"), array("d")
        """When each job began, and when it ends."""
        self._done_at = array("d")
        self._supervisor_s = self._waited_s = self._step_s = 0.0
        self._steps = 0
        self._scheduler = Scheduler(lambda: 0.5)

    def play(self) -> Played:
        """Play."""
        self._begin()
        gc.collect()
        was_frozen = gc.get_freeze_count() > 0
        gc.freeze()  # The scheduler's own garbage is part of its steps; everybody else's is not.
        try:
            while len(self._done_at) < self._played:
                self._now, _, call, args = heappop(self._agenda)
                call(*args)
        finally:
            if not was_frozen:  # Else what others froze would be looked through as well.
                gc.unfreeze()
        return self._result()

    def _begin(self) -> None:
        """Bring the batch and the workers: none of it is counted."""
        step = self._scheduler.step
        step([ev.BatchAttached(BatchFacts("b"), ev.Options(workers=len(self._workers)), "k", 1)], 0.0)
        turn = step([ev.SegmentsReceived("b", self._given, (), "c", 1, ""), ev.SealRequested("b")], 0.0)
        turn = step([ev.Committed(turn.number)], 0.0)
        started = [order.worker for order in turn.commands if isinstance(order, c.StartWorker)]
        assert started == list(self._workers), "not the workers that were asked for"
        for number in started:
            self._report(ev.WorkerReady(number))
        self._at(SAMPLE_S, self._sample)

    def _at(self, when: float, call: Any, *args: Any) -> None:
        self._written += 1
        heappush(self._agenda, (when, self._written, call, args))

    # --- The supervisor ----------------------------------------------------------------------------------------

    def _report(self, event: ev.Event) -> None:
        """A worker wrote something: it can be read a hop later."""
        self._inbox.append((self._now + self._costs.hop_s, event))
        self._wake(max(self._now + self._costs.hop_s, self._rests_until))

    def _tell(self, event: ev.Event) -> None:
        self._told.append(event)
        self._wake(self._now)

    def _wake(self, when: float) -> None:
        """Have a turn begin at `when`, or as soon after it as the supervisor is free."""
        when = max(when, self._free_at)
        if self._wakes_at is None or when < self._wakes_at:
            self._wakes_at = when
            self._at(when, self._turn, when)

    def _turn(self, due: float) -> None:
        if due != self._wakes_at:
            return  # It was woken earlier.
        self._wakes_at = None
        costs = self._costs
        events, self._told = self._told, []
        spent = costs.wake_s
        if self._now >= self._rests_until:
            ready = [event for at, event in self._inbox if at <= self._now]
            self._inbox = [(at, event) for at, event in self._inbox if at > self._now]
            events += ready
            spent += costs.report_s * len(ready)
        since = thread_time()
        turn = self._scheduler.step(events, self._now)
        wait_s = rest_s(self._scheduler.workers.values(), self._scheduler.batches)
        step_s = thread_time() - since
        self._steps += 1
        self._step_s += step_s
        spent += step_s
        assert all(isinstance(entry, Recorded) for entry in turn.entries), "a job went wrong"
        self._unsaved += len(turn.entries)
        for order in turn.commands:
            spent += costs.grant_s
            self._perform(order, self._now + spent)
        spent += self._commit(turn.number, spent)
        self._supervisor_s += spent
        self._free_at = self._now + spent
        if self._now >= self._rests_until and wait_s >= REST_S_MIN:
            self._rests_until = self._free_at + wait_s
        if self._told:
            self._wake(self._free_at)
        if self._inbox:
            self._wake(max(self._rests_until, min(at for at, _ in self._inbox)))

    def _commit(self, turn: int, spent: float) -> float:
        """Begin a commit if one may begin; return for how long it holds up the supervisor.

        A small one does so while it waits for the disk, until another thread goes on with the loop.
        """
        if self._in_flight or not self._unsaved:
            return 0.0
        if self._now < self._next_commit:
            self._at(self._next_commit, self._wake, self._next_commit)
            return 0.0
        cpu_s = self._costs.commit_s + self._costs.entry_s * self._unsaved
        is_light = self._unsaved <= LIGHT_COMMIT_ENTRIES
        self._unsaved, self._in_flight = 0, True
        self._at(self._now + spent + cpu_s + self._costs.disk_s, self._committed, turn)
        wait_s = min(self._costs.disk_s, LEAD_S) if is_light else 0.0
        self._waited_s += wait_s
        return cpu_s + wait_s

    def _committed(self, turn: int) -> None:
        self._in_flight = False
        self._next_commit = self._now + COMMIT_GAP_S
        self._tell(ev.Committed(turn))

    def _perform(self, order: c.Command, when: float) -> None:
        match order:
            case c.GrantLease(worker=number, lease=lease, first=first, stop=stop):
                self._at(when + self._costs.hop_s, self._receive, number, _Granted(lease, first, stop))
            case c.CutLease():
                self._at(when, self._limit, order)
            case _:
                raise AssertionError(f"nobody asked for {order}")

    def _sample(self) -> None:
        """Read what every worker uses, as often as the gauges do, and tell where each one is."""
        cost_s = self._costs.gauge_s * len(self._workers)
        for number, worker in self._workers.items():
            if worker.is_running:
                position = ev.Position(worker.leases[0].lease, worker.leases[0].next, ev.Phase.RUNNING)
                self._told.append(ev.WorkerObserved(number, position, 0.0, 1 << 20))
        busy_s = cost_s + self._costs.observe_s * len(self._workers)
        self._free_at = max(self._free_at, self._now) + busy_s
        self._supervisor_s += busy_s
        self._wakes_at = None  # Whatever was to begin meanwhile begins after it.
        self._wake(self._free_at)
        self._at(self._free_at + max(SAMPLE_S, cost_s / SAMPLE_COST_MAX), self._sample)

    # --- The workers -------------------------------------------------------------------------------------------

    def _receive(self, number: int, granted: _Granted) -> None:
        worker = self._workers[number]
        worker.leases.append(granted)
        if not worker.is_running:
            self._go_on(number, worker, self._now + self._costs.lease_s)

    def _go_on(self, number: int, worker: _Worker, when: float) -> None:
        """Begin at `when` the next job there is; report the leases that have none left."""
        while worker.leases:
            lease = worker.leases[0]
            if lease.next < lease.stop:
                worker.is_running = True
                ends = when + self._job_s * self._draw.uniform(*_SPREAD)
                self._begins.append(when)
                self._ends.append(ends)
                self._at(ends, self._end, number, when)
                return
            worker.leases.popleft()
            self._report(ev.LeaseEnded(number, lease.lease, lease.next))
            when += self._costs.lease_s
        worker.is_running = False

    def _end(self, number: int, began: float) -> None:
        """A job ends: report it, go on."""
        worker = self._workers[number]
        lease = worker.leases[0]
        self._done_at.append(self._now)
        self._report(ev.JobsAcked(number, lease.lease, lease.next, 1, JobState.SUCCEEDED, b"", self._now - began))
        lease.next += 1
        self._go_on(number, worker, self._now + self._costs.job_s)

    def _limit(self, order: c.CutLease) -> None:
        """Write a lease's limit; the worker may be beyond it, which is seen a moment later."""
        worker = self._workers[order.worker]
        for lease in worker.leases:
            if lease.lease == order.lease:
                is_running = worker.is_running and lease is worker.leases[0]
                lease.stop = min(lease.stop, max(order.stop, lease.next + is_running))
                self._at(self._now + CUT_WAIT_S, self._tell, ev.LeaseCut(order.worker, order.lease, lease.stop))

    # --- What it came to ---------------------------------------------------------------------------------------

    def _result(self) -> Played:
        since, until = self._done_at[self._played // 3], self._done_at[-1]
        return Played(
            busy=self._busy(since, until),
            whole=self._busy(0.0, until),
            supervisor=self._supervisor_s / self._now,
            supervisor_cpu_s=self._supervisor_s - self._waited_s,
            steps=self._steps,
            step_s=self._step_s / self._steps,
            seconds=until,
        )

    def _busy(self, since: float, until: float) -> float:
        """How much of [since, until] the workers were in jobs."""
        spans = zip(self._begins, self._ends, strict=True)
        inside = sum(max(0.0, min(ends, until) - max(begins, since)) for begins, ends in spans)
        return inside / (len(self._workers) * (until - since))
