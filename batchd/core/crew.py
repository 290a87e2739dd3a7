"""The crew: the workers as the scheduler's book has them, and the orders they get.

How many there are, who is granted which lease, what is taken back for whom. Nothing here is durable and nothing here
decides what becomes of a job: that is the scheduler's. `orders` are the commands of the present turn.
"""

from collections.abc import Mapping

from batchd.core import commands as c
from batchd.core.assignment import choose_batch, choose_victims, pool_size, workers_per_key
from batchd.core.books import Kill, LiveBatch, Worker, WorkerState
from batchd.core.lease import Lease
from batchd.settings import LANES, LEASE_TARGET_S, LEASES_PER_WORKER, TURNS_S


class Crew:
    """All workers of one supervisor."""

    def __init__(self, batches: Mapping[str, LiveBatch]) -> None:
        self.workers: dict[int, Worker] = {}
        self.scaled: int | None = None
        """The size somebody ordered; it overrides what the batches ask for."""
        self.short_until: float | None = None
        """The system refused a process: whoever has workers goes on with these until then."""
        self.orders: list[c.Command] = []
        self._batches = batches
        self._next_lease = 1
        self._next_worker = 1

    def check(self) -> None:
        """Assert the invariants; for tests and simulations."""
        for worker in self.workers.values():
            lanes = [lease.lane for lease in worker.leases] + [lane for _, lane in worker.used_lanes]
            assert sorted(lanes + worker.lanes) == list(range(LANES)), "a lane is lost or used twice"
            assert len(worker.leases) <= LEASES_PER_WORKER
            assert worker.is_staying == (worker.kill is None and worker.state is not WorkerState.STOPPING)

    def find(self, worker_number: int, lease_number: int) -> tuple[Worker | None, Lease | None]:
        """Return a worker and a lease it holds, each None when there is none of that number."""
        worker = self.workers.get(worker_number)
        return worker, worker.lease(lease_number) if worker else None

    def wake(self, now: float) -> bool:
        """Return whether it is time to try again to start more workers than the system allowed."""
        if self.short_until is None or now < self.short_until:
            return False
        self.short_until = None
        return True

    def balance(self, now: float) -> None:
        """Start and retire workers so that each key has its share."""
        size = pool_size(self._batches.values(), self.scaled)
        wanted = workers_per_key(self._batches.values(), size, int(now / TURNS_S))
        have: dict[str, list[Worker]] = {}
        for worker in self.workers.values():
            if worker.is_staying:
                have.setdefault(worker.key, []).append(worker)
        hiring = {batch.key for batch in self._batches.values() if batch.is_leasing}
        room = size - len(self.workers)
        missing = 0
        for key, count in wanted.items():
            if key not in hiring or (self.short_until is not None and key in have):
                continue
            short = count - len(have.get(key, ()))
            missing += max(0, short - max(room, 0))
            for _ in range(min(short, max(room, 0))):
                worker = Worker(self._next_worker, key, list(range(LANES)))
                self._next_worker += 1
                self.workers[worker.number] = worker
                self.orders.append(c.StartWorker(worker.number, key))
                room -= 1
        surplus = sum(map(len, have.values())) - size
        for key, workers in have.items():
            spare = len(workers) - wanted.get(key, 0)
            retire = min(spare, max(surplus, missing))
            if retire <= 0:
                continue
            for worker in sorted(workers, key=lambda worker: len(worker.leases))[:retire]:
                self.retire(worker, is_ending=surplus > 0)  # Whoever only makes room for another key need not hurry.
                surplus -= 1
                missing -= 1

    def retire(self, worker: Worker, *, is_ending: bool) -> None:
        """Let a worker end when it has nothing left; with `is_ending` the job it runs is told."""
        worker.state, worker.is_staying = WorkerState.STOPPING, False
        for lease in worker.leases:
            self.cut(worker, lease, lease.next, is_ending=is_ending)
        if not worker.leases:
            self.orders.append(c.StopWorker(worker.number))

    def kill(
        self, worker: Worker, kill: Kill, why: str, *, with_stack: bool = False, has_grace: bool = False
    ) -> None:
        """Order a worker killed, once."""
        if worker.kill is None:
            worker.kill, worker.is_staying = kill, False
            self.orders.append(c.KillWorker(worker.number, why, with_stack, has_grace))

    def cut(self, worker: Worker, lease: Lease, stop: int, *, is_ending: bool = False) -> None:
        """Order that no job of a lease at or beyond `stop` begins; how far it got is told later (LeaseCut)."""
        lease.is_ending |= is_ending
        if lease.is_cutting:
            lease.cut_next = stop if lease.cut_next is None else min(stop, lease.cut_next)
        elif stop < lease.stop:
            lease.is_cutting = True
            self.orders.append(c.CutLease(worker.number, lease.number, lease.lane, stop, lease.is_ending))

    def grant_leases(self, now: float) -> None:
        """Give work to every worker that may take some."""
        hungry = [batch for batch in self._batches.values() if batch.queued.size]
        for outstanding in range(LEASES_PER_WORKER):
            if not hungry or (outstanding and not any(batch.has_short_jobs for batch in self._batches.values())):
                return
            for worker in self.workers.values():
                if worker.state is not WorkerState.READY or worker.kill or len(worker.leases) != outstanding:
                    continue
                batch = choose_batch(hungry, worker)
                if batch is not None and worker.lanes and self._may_prefetch(worker):
                    self._grant(worker, batch, now)

    def _may_prefetch(self, worker: Worker) -> bool:
        """A second lease hides the round trip; behind a long job it would only wait."""
        if not worker.leases:
            return True
        each_s = self._batches[worker.leases[0].batch].seconds_per_job(worker.leases[0])
        return each_s is not None and each_s < LEASE_TARGET_S

    def _grant(self, worker: Worker, batch: LiveBatch, now: float) -> None:
        alike = [other for other in self._batches.values() if other.key == worker.key and other.is_leasing]
        takers = sum(other.queued.size > 0 for other in alike)
        first, stop, history, cost = batch.take(min(batch.workers_max, len(self.workers)), takers)
        lease = Lease(self._next_lease, batch.facts.batch, worker.lanes.pop(0), first, stop, first, history, cost)
        self._next_lease += 1
        worker.reported_at = worker.reported_at if worker.leases else now
        worker.leases.append(lease)
        batch.lend(worker.number, lease)
        batch.lease_number = lease.number
        self.orders.append(
            c.GrantLease(
                worker=worker.number,
                lease=lease.number,
                lane=lease.lane,
                batch=lease.batch,
                stint=batch.facts.stint,
                first=first,
                stop=stop,
                attempt=history.attempts + 1,
                is_timed=batch.options.timeout_s is not None,
                reports_each=history.is_suspect or batch.unexplained.overlaps(first, stop),
            )
        )

    def steal(self, now: float) -> None:
        """Take work back from slow workers for those that have none (one lease per idle worker)."""
        idle = [
            worker.key
            for worker in self.workers.values()
            if not worker.leases and worker.state is WorkerState.READY and not worker.kill
        ]
        if not idle:
            return
        # Whoever holds no lease may take what any other of its key may: one search does for all, however many.
        served = {
            batch.key for batch in self._batches.values() if batch.queued.size and batch.is_leasing and batch.has_room
        }
        victims = choose_victims(self.workers.values(), self._batches, set(idle) - served, now)
        for key in idle:
            if left := victims.get(key):
                self.cut(*left.popleft())
