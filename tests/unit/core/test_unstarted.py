"""Workers that never became processes: one cause counts once, however many were waiting for it."""

from collections.abc import Sequence

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.events import Options
from batchd.core.facts import BatchFacts, BatchState
from batchd.core.scheduler import Scheduler
from batchd.settings import RESTART_DEATHS_MAX, SHORT_S

WORKERS = 2 * RESTART_DEATHS_MAX


@pytest.mark.parametrize(("causes", "state"), [(1, BatchState.OPEN), (RESTART_DEATHS_MAX, BatchState.STOPPED)])
def test_a_death_of_the_template_is_one_death(causes: int, state: BatchState) -> None:
    scheduler = Scheduler(jitter=lambda: 0.0)
    segments = ev.SegmentsReceived("b", 100, (b"x",), "client", 1, "")
    scheduler.step([ev.BatchAttached(BatchFacts("b"), Options(workers=WORKERS), "key", 1), segments], 0.0)
    orders = scheduler.step([ev.Committed(1)], 0.0).commands
    started = [order.worker for order in orders if isinstance(order, c.StartWorker)]
    assert len(started) == WORKERS
    told = ["the template died"] * causes + [""] * (WORKERS - causes)
    scheduler.step([ev.WorkerGone(worker, None, why) for worker, why in zip(started, told, strict=True)], 0.0)
    scheduler.check()
    assert scheduler.batches["b"].facts.state is state


def test_processes_that_the_system_refuses_are_no_deaths_while_others_live() -> None:
    """They are asked for again after a while, and not at once."""
    scheduler = Scheduler(jitter=lambda: 0.0)
    segments = ev.SegmentsReceived("b", 100, (b"x",), "client", 1, "")
    scheduler.step([ev.BatchAttached(BatchFacts("b"), Options(workers=WORKERS), "key", 1), segments], 0.0)
    first, *others = started(scheduler.step([ev.Committed(1)], 0.0).commands)
    refused = [ev.WorkerGone(worker, None, "cannot fork", is_short=True) for worker in others]
    assert started(scheduler.step([ev.WorkerReady(first), *refused], 0.0).commands) == []
    assert scheduler.batches["b"].facts.state is BatchState.OPEN
    assert scheduler.next_due() == SHORT_S
    assert started(scheduler.step([], SHORT_S / 2).commands) == []
    assert len(started(scheduler.step([], SHORT_S).commands)) == WORKERS - 1
    scheduler.check()


def test_a_worker_that_is_to_end_is_nobody_to_go_on_with() -> None:
    """Or another process would be asked for at every turn, for as long as it takes to end."""
    scheduler = Scheduler(jitter=lambda: 0.0)
    segments = ev.SegmentsReceived("b", 100, (b"x",), "client", 1, "")
    scheduler.step([ev.BatchAttached(BatchFacts("b"), Options(workers=2), "key", 1), segments], 0.0)
    ending, other = started(scheduler.step([ev.Committed(1)], 0.0).commands)
    orders = scheduler.step([ev.WorkerReady(ending), ev.WorkerReady(other)], 0.0).commands
    (lease,) = (order.lease for order in orders if isinstance(order, c.GrantLease) and order.worker == ending)
    scheduler.step([ev.LeaseEnded(ending, lease, 50)], 0.0)  # It skipped jobs, and is killed for that.
    orders = scheduler.step([ev.WorkerGone(other, None, "cannot fork", is_short=True)], 0.0).commands
    asked = 0
    while started(orders) and asked <= RESTART_DEATHS_MAX:
        asked += 1
        refused = [ev.WorkerGone(worker, None, "cannot fork", is_short=True) for worker in started(orders)]
        orders = scheduler.step(refused, 0.0).commands
    scheduler.check()
    assert asked < RESTART_DEATHS_MAX
    assert scheduler.batches["b"].facts.state is BatchState.STOPPED


def test_where_no_process_can_be_had_at_all_the_batch_is_stopped() -> None:
    scheduler = Scheduler(jitter=lambda: 0.0)
    segments = ev.SegmentsReceived("b", 100, (b"x",), "client", 1, "")
    scheduler.step([ev.BatchAttached(BatchFacts("b"), Options(workers=WORKERS), "key", 1), segments], 0.0)
    orders = scheduler.step([ev.Committed(1)], 0.0).commands
    for _ in range(RESTART_DEATHS_MAX):
        refused = [ev.WorkerGone(worker, None, "cannot fork", is_short=True) for worker in started(orders)]
        orders = scheduler.step(refused, 0.0).commands
    assert scheduler.batches["b"].facts.state is BatchState.STOPPED


def started(orders: Sequence[c.Command]) -> list[int]:
    return [order.worker for order in orders if isinstance(order, c.StartWorker)]
