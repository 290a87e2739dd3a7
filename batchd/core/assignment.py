"""Who gets what: how many workers each key should have, and whose work is taken back for whom. Pure functions."""

from collections import deque
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from batchd.core.books import LiveBatch, Worker, WorkerState
from batchd.core.lease import Lease
from batchd.settings import ACK_INTERVAL_S, REST_S_MAX, REST_S_MIN, REST_SHARE, STEAL_MIN_S


def pool_size(batches: Iterable[LiveBatch], scaled: int | None) -> int:
    """Return how many workers there should be at most: what was ordered, else what the live batches ask for.

    They share as many as the largest asks for; those of batches that bring their own come on top.
    """
    shared = own = 0
    for batch in batches:
        if batch.options.brings_workers:
            own += batch.options.workers
        else:
            shared = max(shared, batch.options.workers)
    return scaled or shared + own


def workers_per_key(batches: Iterable[LiveBatch], size: int, shift: int = 0) -> dict[str, int]:
    """Share `size` workers evenly among the batches that want some; return how many each key gets.

    When there are fewer workers than batches they take turns: `shift` moves on with the time.
    """
    wants = sorted(((batch.workers_wanted, batch.key) for batch in batches), key=lambda want: want[0])
    if sum(1 for wanted, _ in wants if wanted) > size:
        shift %= len(wants)
        wants = wants[shift:] + wants[:shift]
    shares: dict[str, int] = {}
    left, takers = size, sum(1 for wanted, _ in wants if wanted)
    for wanted, key in wants:  # The modest first: what they leave is shared by the rest.
        if wanted:
            share = min(wanted, -(-left // takers))
            left, takers = left - share, takers - 1
            shares[key] = shares.get(key, 0) + share
    return shares


def choose_batch(batches: Iterable[LiveBatch], worker: Worker) -> LiveBatch | None:
    """Return the batch the worker's next lease comes from: of its key, with work, held by the fewest workers."""
    hungry = [
        batch
        for batch in batches
        if batch.key == worker.key
        and batch.queued.size
        and batch.is_leasing
        and (batch.has_room or (worker.number in batch.workers and len(batch.workers) <= batch.workers_max))
    ]
    return min(hungry, key=lambda batch: (len(batch.workers), batch.lease_number), default=None)


def rest_s(workers: Iterable[Worker], batches: Mapping[str, LiveBatch], longest_s: float = REST_S_MAX) -> float:
    """Return for how long reports may go unread because every worker has work to begin for several times as long."""
    shortest = longest_s
    for worker in workers:
        if worker.state is not WorkerState.READY or worker.kill or not worker.leases:
            return 0.0
        work_s = 0.0
        for lease in worker.leases:
            each_s = batches[lease.batch].seconds_per_job(lease)
            if each_s is None or each_s < ACK_INTERVAL_S:
                return 0.0  # Reports of fast jobs come in groups already, and would fill the pipe.
            begun = lease is worker.leases[0]  # Its first job may end at any moment.
            work_s += (lease.stop - lease.next - begun) * each_s
        shortest = min(shortest, work_s / REST_SHARE)
        if shortest < REST_S_MIN:
            return 0.0
    return shortest


class Victim(NamedTuple):
    """A lease of which work is taken back."""

    worker: Worker
    lease: Lease
    stop: int
    """Where it is to stop."""


def choose_victims(
    workers: Iterable[Worker], batches: Mapping[str, LiveBatch], keys: Container[str], now: float
) -> dict[str, deque[Victim]]:
    """Return by key, of those in `keys`, the work worth taking back for idle workers, the most worth it first.

    A lease that waits behind another is taken back whole, the running one is halved. A job that has been running for
    a while is expected to run as long again, whatever the pace of the others says.
    """
    found: dict[str, list[tuple[float, Victim]]] = {}
    for worker in workers:
        if not worker.leases or worker.key not in keys or worker.kill or worker.state is not WorkerState.READY:
            continue
        behind_s = now - worker.reported_at
        for lease in worker.leases:
            batch = batches[lease.batch]
            each_s = batch.seconds_per_job(lease)
            left = lease.stop - lease.next
            is_waiting = lease is not worker.leases[0]
            gain_s = (left if is_waiting else left // 2) * (each_s or STEAL_MIN_S) + behind_s
            stop = lease.next if is_waiting else lease.stop - left // 2
            behind_s += left * (each_s or STEAL_MIN_S)
            if lease.is_cutting or stop >= lease.stop or gain_s < STEAL_MIN_S:
                continue
            if not batch.is_leasing or not batch.has_room:
                continue
            found.setdefault(worker.key, []).append((gain_s, Victim(worker, lease, stop)))
    return {
        key: deque(victim for _, victim in sorted(victims, key=lambda each: each[0], reverse=True))
        for key, victims in found.items()
    }
