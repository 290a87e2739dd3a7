"""With a thousand workers, a turn is no dearer than with ten: counted in calls, not timed."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.assignment import rest_s
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler


class Shop:
    """So many workers, each in a job of a second, of a batch that has `spare` times as many more."""

    def __init__(self, workers: int, spare: int = 99) -> None:
        self._scheduler = Scheduler(jitter=lambda: 0.0)
        step = self._scheduler.step
        step([ev.BatchAttached(BatchFacts("b"), ev.Options(workers=workers), "key", 1)], 0.0)
        step([ev.SegmentsReceived("b", (1 + spare) * workers, (), "client", 1, ""), ev.SealRequested("b")], 0.0)
        started = step([ev.Committed(2)], 0.0).commands
        ready: list[ev.Event] = [
            ev.WorkerReady(order.worker) for order in started if isinstance(order, c.StartWorker)
        ]
        self._leases = [order for order in step(ready, 0.0).commands if isinstance(order, c.GrantLease)]
        assert len(self._leases) == workers

    def report(self) -> list[c.Command]:
        """Some worker's job has ended: one turn of the supervisor."""
        orders = self.end(1)
        rest_s(self._scheduler.workers.values(), self._scheduler.batches)
        return orders

    def end(self, jobs: int) -> list[c.Command]:
        """So many workers' jobs have ended."""
        events: list[ev.Event] = []
        for lease in self._leases[:jobs]:
            events.append(ev.JobsAcked(lease.worker, lease.lease, lease.first, 1, JobState.SUCCEEDED, b"", 1.0))
            events.append(ev.LeaseEnded(lease.worker, lease.lease, lease.stop))
        del self._leases[:jobs]
        turn = self._scheduler.step(events, 1.0)
        self._turn = turn.number
        return turn.commands

    def wait(self) -> list[c.Command]:
        """What ended is durable, and nothing else happens: one turn."""
        return self._scheduler.step([ev.Committed(self._turn)], 2.0).commands


ReturnT = TypeVar("ReturnT")


def counted(call: Callable[[], ReturnT]) -> tuple[ReturnT, int]:
    """Return what a call returns, and how many calls of Python functions it made."""
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        returned = call()
    finally:
        sys.setprofile(None)
    return returned, calls


def calls_of_a_report(workers: int) -> int:
    shop = Shop(workers)
    shop.report()  # From then on it is known how long jobs take.
    orders, calls = counted(shop.report)
    assert [type(order) for order in orders] == [c.GrantLease]
    return calls


def test_a_report_takes_as_many_calls_with_a_thousand_workers_as_with_ten() -> None:
    assert calls_of_a_report(1_000) == calls_of_a_report(10) < 150


def calls_of_a_wait(idle: int) -> int:
    shop = Shop(idle + 3, spare=0)
    shop.end(idle)
    shop.wait()
    orders, calls = counted(shop.wait)
    assert orders == [], "the last three jobs have begun, and nobody can take them over"
    return calls


def test_a_turn_takes_as_many_calls_with_a_thousand_idle_workers_as_with_ten() -> None:
    assert calls_of_a_wait(1_000) == calls_of_a_wait(10) < 50
