"""What the jobs of each batch have used so far: busy seconds, CPU seconds, and the most memory of a worker.

Nothing here measures. The one idea: these are sums for people, kept in memory and written beside the next commit. A
crash that loses a moment of them harms nobody, so nothing waits for them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from batchd.core import events as ev
from batchd.core.scheduler import Scheduler
from batchd.edge.gauges import WorkerGauge
from batchd.edge.workerprocess import WorkerProcess


class Usage:
    """The sums of the batches that are served, by name."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sums: dict[str, dict[str, float]] = {}
        self._seen_running: dict[int, tuple[ev.Position | None, float]] = {}
        """Where each worker was seen last, and for how long its job had run, as far as that is known."""

    def of(self, batch: str) -> dict[str, float]:
        """Return the sums of a batch, none of one that is not served."""
        return dict(self._sums.get(batch, {}))

    def take_up(self, batch: str, before: Mapping[str, Any]) -> None:
        """Go on from what was written of a batch."""
        self._sums[batch] = {"busy_s": 0.0, "cpu_s": 0.0, "memory_peak_bytes": 0.0, **before}

    def put_down(self, batch: str) -> None:
        """Forget a batch."""
        self._sums.pop(batch, None)

    def count(self, events: Iterable[ev.Event]) -> None:
        """Add what workers tell, before the scheduler forgets whose lease it was."""
        for event in events:
            match event:
                case ev.JobsAcked(worker=worker, lease=lease, busy_s=busy_s):
                    self._count_busy(worker, lease, busy_s)
                case ev.WorkerObserved(worker=worker, position=position, running_s=running_s):
                    self._seen_running[worker] = (position, running_s)
                case ev.WorkerGone(worker=worker):  # Nobody reports what its last job took.
                    seen, running_s = self._seen_running.pop(worker, (None, 0.0))
                    if seen is not None and seen == event.position:
                        self._count_busy(worker, seen.lease, running_s)

    def measure(self, workers: Iterable[WorkerProcess], gauges: Mapping[int, WorkerGauge]) -> None:
        """Add what was measured of workers, by pid, to the batch that each works for."""
        for worker in workers:
            gauge = gauges.get(worker.pid)
            booked = self._scheduler.workers.get(worker.number)
            sums = self._sums.get(booked.leases[0].batch) if booked is not None and booked.leases else None
            if gauge is None or sums is None:
                continue
            sums["memory_peak_bytes"] = max(sums["memory_peak_bytes"], gauge.memory_bytes)
            sums["cpu_s"] += max(0.0, gauge.cpu_s - worker.cpu_seen_s)
            worker.cpu_seen_s = gauge.cpu_s

    def _count_busy(self, number: int, lease_number: int, busy_s: float) -> None:
        worker = self._scheduler.workers.get(number)
        lease = worker.lease(lease_number) if worker is not None else None
        if lease is not None and (sums := self._sums.get(lease.batch)):
            sums["busy_s"] += busy_s
