"""Workers that never became processes: one cause counts once, however many were waiting for it."""

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.events import Options
from batchd.core.facts import BatchFacts, BatchState
from batchd.core.scheduler import Scheduler
from batchd.settings import RESTART_DEATHS_MAX

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
