"""The scheduler's volatile books: where each unfinished job of a live batch is, and what each worker holds.

Every unfinished job is in exactly one place: queued, waiting (backoff), held (until the entry that frees it is
durable), or in a lease. `LiveBatch.check` says so after every step of the tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from typing import NamedTuple

from batchd.core.costs import Cost
from batchd.core.events import Options
from batchd.core.facts import BatchFacts
from batchd.core.job import History
from batchd.core.lease import Lease, Pace
from batchd.core.ranges import RangeSet
from batchd.settings import COSTLY_JOBS_MAX, LEASE_TARGET_S, LONG_JOB_SHARE


class Held(NamedTuple):
    """Jobs that may be leased once turn `turn` is durable; in backoff until `due` if that is given."""

    turn: int
    start: int
    stop: int
    due: float | None


class LiveBatch:
    """A batch that is attached: its facts, and where its unfinished jobs are."""

    def __init__(self, facts: BatchFacts, options: Options, key: str) -> None:
        self.facts = facts
        self.options = options
        self.key = key
        self.pace = Pace()
        self.cost_pace = Pace()
        """Of jobs that were leased for their cost: a unit of cost counts as a job."""
        self.queued = RangeSet()
        self._costly: list[tuple[float, int]] = []
        """(-cost, job) of at least the queued jobs whose cost is known, the costliest first: a heap."""
        self.waiting: dict[float, RangeSet] = {}
        """By due time, rounded up into buckets."""
        self.held: list[Held] = []
        self.leases: dict[int, Lease] = {}
        self.workers: dict[int, int] = {}
        """How many leases of the batch each worker holds."""
        self.scaled: int | None = None
        """The worker count somebody ordered while the batch ran; it overrides the batch's own."""
        self.lease_number = 0
        """The last lease of the batch: whoever waited longest comes first."""
        self.unwanted = RangeSet()
        """Jobs their client withdrew: whatever comes back of them is cancelled."""
        self.unexplained = RangeSet()
        """Jobs of which one may have killed its worker, and it was not seen which."""
        self._at_last = [(start, stop) for start, stop, history in facts.histories.marked() if history.is_at_last]
        """Jobs of which supervisors may be dying: no history comes to that while the batch is up."""
        self.is_leaving = False
        self.entry_turn = 0
        """The last turn that recorded anything about the batch."""
        self.sole_fingerprint: bytes | None = None
        """Of all failures so far, as long as it is one and nothing succeeded."""

    @property
    def is_leasing(self) -> bool:
        """Whether more jobs of the batch may start."""
        return not (self.is_leaving or self.facts.stopped or self.facts.cancelled)

    @property
    def may_stop(self) -> bool:
        """Whether it has not ended, and nothing else ends it."""
        return self.is_leasing and not self.facts.is_finished

    @property
    def workers_max(self) -> int:
        """At most so many workers may hold leases of the batch: one while a job is sought that supervisors die of."""
        is_sought = any(True for part in self._at_last for _ in self.facts.done.gaps(*part))
        return 1 if is_sought else self.scaled or self.options.workers

    @property
    def has_room(self) -> bool:
        """Whether one more worker may take a lease of the batch."""
        return len(self.workers) < self.workers_max

    @property
    def workers_wanted(self) -> int:
        """How many workers it could keep busy now."""
        if not self.is_leasing:
            return len(self.workers)
        wanted = self.queued.size
        if wanted < self.workers_max:
            wanted += sum(lease.stop - lease.next for lease in self.leases.values())
        return max(min(self.workers_max, wanted), len(self.workers))

    def lend(self, worker: int, lease: Lease) -> None:
        """Book a lease."""
        self.leases[lease.number] = lease
        self.workers[worker] = self.workers.get(worker, 0) + 1

    def take_back(self, worker: int, lease: Lease) -> None:
        """Strike a lease."""
        del self.leases[lease.number]
        self.workers[worker] -= 1
        if not self.workers[worker]:
            del self.workers[worker]

    def release(self, committed: int) -> bool:
        """Let go what waited for the entries up to turn `committed`; return whether there was any."""
        ready = [held for held in self.held if held.turn <= committed]
        if not ready:
            return False
        self.held = [held for held in self.held if held.turn > committed]
        for held in ready:
            self.put(held.start, held.stop, held.due)
        return True

    def put(self, start: int, stop: int, due: float | None) -> None:
        """Put jobs into the queue, or into backoff."""
        if due is not None:
            self.waiting.setdefault(due, RangeSet()).add(start, stop)
            return
        self.queued.add(start, stop)
        for job, cost in self.facts.costs.within(start, stop):
            heappush(self._costly, (-cost, job))
        if len(self._costly) > 2 * COSTLY_JOBS_MAX:  # Jobs that came back several times stand in it several times.
            self._costly = sorted({entry for entry in self._costly if self._is_queued(entry)})

    def take(self, workers: int, takers: int = 1) -> tuple[int, int, History, float | None]:
        """Take the next lease's jobs out of the queue; return (first, stop, their history, cost if leased for it).

        A job that is known to be long goes first and alone; the others go in their order.
        """
        at_front, costliest, cost = self.queued.first(), self._costliest(), None
        assert at_front is not None
        first, stop = at_front
        if costliest is not None and self._is_long(costliest[1], workers):
            first, cost = costliest
            stop = first + 1
        stop, history = self.facts.histories.span(first, stop)
        jobs = self.pace.jobs_per_lease(self.queued.size, workers, takers)
        stop = min(stop, first + (1 if history.is_suspect else jobs))
        self.queued.remove(first, stop)
        return first, stop, history, cost

    def _costliest(self) -> Cost | None:
        """Return the queued job that was said to cost most."""
        while self._costly and not self._is_queued(self._costly[0]):
            heappop(self._costly)
        return (self._costly[0][1], -self._costly[0][0]) if self._costly else None

    def _is_queued(self, entry: tuple[float, int]) -> bool:
        return entry[1] in self.queued and entry[1] in self.facts.costs

    def _is_long(self, cost: float, workers: int) -> bool:
        """Whether a job of this cost would fill much of a lease, as far as is known."""
        each_s = self.cost_pace.seconds_per_job
        return each_s is None or cost * each_s > LONG_JOB_SHARE * self.pace.lease_s(self.queued.size, workers)

    def measure(self, lease: Lease, jobs: int, busy_s: float) -> None:
        """Take in how long jobs of a lease took."""
        if lease.cost is None:
            self.pace.report(jobs, busy_s)
        else:
            self.cost_pace.report(lease.cost, busy_s)

    @property
    def has_short_jobs(self) -> bool:
        """Whether some of its leases may be so short that another should wait behind them."""
        each_s = self.pace.seconds_per_job
        return (each_s is not None and each_s < LEASE_TARGET_S) or self.cost_pace.seconds_per_job is not None

    def seconds_per_job(self, lease: Lease) -> float | None:
        """Return how long each job of a lease is expected to take, None when nothing is known."""
        if lease.cost is None:
            return self.pace.seconds_per_job
        each_s = self.cost_pace.seconds_per_job
        return None if each_s is None else lease.cost * each_s

    def wake(self, now: float) -> bool:
        """Queue the jobs whose backoff is over; return whether there were any."""
        over = [due for due in self.waiting if due <= now]
        for due in over:
            for start, stop in self.waiting.pop(due):
                self.put(start, stop, None)
        return bool(over)

    @property
    def is_cutting(self) -> bool:
        """Whether it is not known yet how far some worker got with a lease that is being cut."""
        return any(lease.is_cutting for lease in self.leases.values())

    def unleased(self) -> Iterator[tuple[int, int]]:
        """Take every job that is queued, waiting or held out of the books."""
        ranges = [*self.queued, *(part for due in self.waiting.values() for part in due)]
        ranges += [(held.start, held.stop) for held in self.held]
        self.queued, self.waiting, self.held = RangeSet(), {}, []
        yield from sorted(ranges)

    def take_unwanted(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Take those of [start, stop) that are queued, waiting or held out of the books and return them."""
        found: list[tuple[int, int]] = []
        for place in (self.queued, *self.waiting.values()):
            parts = list(place.overlap(start, stop))
            found += parts
            for part in parts:
                place.remove(*part)
        self.waiting = {due: jobs for due, jobs in self.waiting.items() if jobs}
        before, self.held = self.held, []
        for held in before:
            rest = RangeSet([(held.start, held.stop)])
            found += list(rest.overlap(start, stop))
            rest.remove(start, stop)
            self.held += [Held(held.turn, low, high, held.due) for low, high in rest]
        return sorted(found)

    def check(self) -> None:
        """Assert that every unfinished job is in exactly one place."""
        places = [*self.facts.done, *self.queued]
        places += [part for due in self.waiting.values() for part in due]
        places += [(held.start, held.stop) for held in self.held]
        places += [(lease.next, lease.stop) for lease in self.leases.values() if lease.next < lease.stop]
        places.sort()
        at = 0
        for start, stop in places:
            assert start == at, f"{self.facts.batch}: jobs {min(at, start)}..{max(at, start)} lost or doubled"
            at = stop
        assert at == self.facts.size, f"{self.facts.batch}: jobs {at}..{self.facts.size} are nowhere"
        assert sum(self.facts.counts.values()) == self.facts.done.size
        queued = {job for part in self.queued for job, _ in self.facts.costs.within(*part)}
        assert queued <= {job for _, job in self._costly}, f"{self.facts.batch}: a costly job does not go first"
        assert all(not self.facts.done.overlaps(a, b) for a, b, _ in self.facts.histories.marked())


class WorkerState(Enum):
    """Where a worker stands."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    """Gets no more leases; ends when it holds none."""


class Kill(NamedTuple):
    """A kill that was ordered: the job it was for, or no lease when no job is to blame."""

    lease: int | None
    job: int


@dataclass(slots=True)
class Worker:
    """A worker as the scheduler's book has it."""

    number: int
    key: str
    lanes: list[int]
    """Free lanes of its recorder slot. First in, first out: the lane of the last lease a worker finished, to which
    its position may still point, is then the last to be used again."""
    state: WorkerState = WorkerState.STARTING
    leases: list[Lease] = field(default_factory=list)
    """Outstanding, oldest first."""
    used_lanes: list[tuple[int, int]] = field(default_factory=list)
    """(turn, lane): lanes that are free once the turn is durable."""
    kill: Kill | None = None
    is_staying: bool = True
    """Whether it is neither stopping nor to be killed. Looked at for each worker at every turn: no property."""
    reported_at: float = 0.0
    """When it last reported a job or got work after having none."""

    def lease(self, number: int) -> Lease | None:
        """Return the outstanding lease of that number."""
        return next((lease for lease in self.leases if lease.number == number), None)

    def release_lanes(self, committed: int) -> bool:
        """Free the lanes whose outcomes are durable up to turn `committed`; return whether there was none before."""
        had_none = not self.lanes
        if self.used_lanes and self.used_lanes[0][0] <= committed:
            self.lanes += [lane for turn, lane in self.used_lanes if turn <= committed]
            self.used_lanes = [(turn, lane) for turn, lane in self.used_lanes if turn > committed]
        return had_none and bool(self.lanes)
