"""A death that shows no position of a job: which jobs may have caused it, and what is done to find out."""

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.events import Phase, Position
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from tests.unit.core.test_scheduler import long_lease


@pytest.mark.parametrize(
    ("phase", "reported_alone"), [(Phase.RUNNING, [(4, 5)]), (Phase.REPORTING, [(1, 5)]), (Phase.IDLE, [(1, 5)])]
)
@pytest.mark.covers("W10")
def test_after_a_death_that_nobody_explains_each_job_is_reported_by_itself(
    phase: Phase, reported_alone: list[tuple[int, int]]
) -> None:
    """Those that may have caused it, and no others: it takes a hundred times as long."""
    desk = long_lease()
    desk.gone(Position(2, 4, phase))
    desk.commit()
    desk.now = desk.scheduler.next_due() or 0.0
    desk.commands.clear()
    for worker in (2, 3):
        desk.tell(ev.WorkerReady(worker))
    jobs, alone = RangeSet(), RangeSet()
    for lease in desk.commands:  # It grows.
        if isinstance(lease, c.GrantLease):
            count = lease.stop - lease.first
            desk.tell(
                ev.JobsAcked(lease.worker, lease.lease, lease.first, count, JobState.SUCCEEDED, b"", 0.001),
                ev.LeaseEnded(lease.worker, lease.lease, lease.stop),
            )
            desk.commit()
            for ranges in (jobs, alone) if lease.reports_each else (jobs,):
                ranges.add(lease.first, lease.stop)
    assert list(jobs) == [(1, 100)]
    assert list(alone) == reported_alone


def test_a_kill_that_was_ordered_needs_no_explanation() -> None:
    desk = long_lease()
    desk.tell(ev.DetachRequested("b", at_once=True))
    desk.gone(Position(2, 4, Phase.REPORTING))

    assert not desk.scheduler.batches["b"].unexplained
