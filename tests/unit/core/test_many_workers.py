"""With a thousand workers, a report is no dearer than with ten: counted in calls, not timed."""

import sys
from types import FrameType

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.assignment import rest_s
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler


class Shop:
    """So many workers, each in a job of a second, of a batch that has more."""

    def __init__(self, workers: int) -> None:
        self._scheduler = Scheduler(jitter=lambda: 0.0)
        step = self._scheduler.step
        step([ev.BatchAttached(BatchFacts("b"), ev.Options(workers=workers), "key", 1)], 0.0)
        step([ev.SegmentsReceived("b", 100 * workers, (), "client", 1, ""), ev.SealRequested("b")], 0.0)
        started = step([ev.Committed(2)], 0.0).commands
        ready: list[ev.Event] = [
            ev.WorkerReady(order.worker) for order in started if isinstance(order, c.StartWorker)
        ]
        self._leases = [order for order in step(ready, 0.0).commands if isinstance(order, c.GrantLease)]
        assert len(self._leases) == workers

    def report(self) -> list[c.Command]:
        """Some worker's job has ended: one turn of the supervisor."""
        lease = self._leases.pop(0)
        events: list[ev.Event] = [
            ev.JobsAcked(lease.worker, lease.lease, lease.first, 1, JobState.SUCCEEDED, b"", 1.0),
            ev.LeaseEnded(lease.worker, lease.lease, lease.stop),
        ]
        turn = self._scheduler.step(events, 1.0)
        rest_s(self._scheduler.workers.values(), self._scheduler.batches)
        return turn.commands


def calls_of_a_report(workers: int) -> int:
    shop = Shop(workers)
    shop.report()  # From then on it is known how long jobs take.
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        orders = shop.report()
    finally:
        sys.setprofile(None)
    assert [type(order) for order in orders] == [c.GrantLease]
    return calls


def test_a_report_takes_as_many_calls_with_a_thousand_workers_as_with_ten() -> None:
    assert calls_of_a_report(1_000) == calls_of_a_report(10) < 150
