"""What a running job is told of its end, by whom, and what it may leave behind: one fact at a time."""

import pytest

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.events import Options, Phase, Position
from batchd.core.facts import BatchFacts
from batchd.core.job import History, JobState
from tests.unit.core.test_scheduler import Desk, leased, long_lease


def cuts(desk: Desk) -> list[tuple[int, bool]]:
    """Return (lease, whether its job is to end) of every cut so far."""
    return [(order.lease, order.is_ending) for order in desk.commands if isinstance(order, c.CutLease)]


# --- Being told to end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        ev.DetachRequested("b"),
        ev.DetachRequested("b", at_once=True),
        ev.CancelRequested("b", "enough"),
        ev.KeyFailed("key", "cannot be started any more"),
        ev.JournalLost("b", "its file is gone"),
    ],
)
def test_who_ends_a_batch_ends_its_running_jobs(event: ev.Event) -> None:
    desk = long_lease()
    desk.tell(event)
    assert cuts(desk) == [(2, True), (3, True)]


@pytest.mark.parametrize(("is_leaving", "crashes"), [(True, 0), (False, 1)])
def test_a_worker_that_is_terminated_with_its_supervisor_blames_nobody(*, is_leaving: bool, crashes: int) -> None:
    desk = long_lease()
    gone = ev.WorkerGone(1, Position(2, 1, Phase.RUNNING), "killed by SIGTERM", b"failure", is_terminated=True)
    desk.tell(*[ev.DetachRequested("b")] * is_leaving)
    assert desk.tell(gone).entries[0] == e.Charged("b", 1, 1, History(1, crashes=crashes))


def test_a_worker_too_many_is_told_so() -> None:
    desk = leased(100, workers=2)
    desk.tell(ev.WorkerReady(2))
    desk.tell(ev.ScaleRequested(1))
    assert cuts(desk) == [(1, True)]


def test_a_worker_that_makes_room_for_another_batch_ends_no_running_job() -> None:
    desk = leased(100, workers=2)
    desk.tell(ev.WorkerReady(2))
    desk.tell(ev.BatchAttached(BatchFacts("c"), Options(workers=2), "other", 1))
    desk.tell(ev.SegmentsReceived("c", 10, (b"x",), "client", 1, ""))
    desk.commit()
    assert [worker.state.value for worker in desk.scheduler.workers.values()].count("stopping") == 1
    assert cuts(desk) == [(1, False)]


def test_work_that_is_withdrawn_or_taken_back_ends_no_running_job() -> None:
    desk = long_lease(workers=2)
    desk.tell(ev.WithdrawRequested("b", ((2, 5),)))
    assert cuts(desk) == [(2, False)]
    worker = desk.scheduler.workers[1]
    desk.scheduler.crew.cut(worker, worker.leases[1], 10)
    assert not any(lease.is_ending for lease in worker.leases)


def test_an_end_ordered_while_work_is_taken_back_is_not_forgotten() -> None:
    desk = long_lease()
    desk.tell(ev.WithdrawRequested("b", ((5, 9),)))
    desk.tell(ev.DetachRequested("b"))
    desk.tell(ev.LeaseCut(1, 2, 5))
    assert cuts(desk) == [(2, False), (3, True), (2, True)]


@pytest.mark.parametrize(
    "event",
    [
        ev.DetachRequested("b", at_once=True),
        ev.CancelRequested("b", "enough"),
        ev.JournalLost("b", "its file is gone"),
    ],
)
def test_ending_what_runs_leaves_time_to_end(event: ev.Event) -> None:
    assert c.KillWorker(1, "", has_grace=True) in long_lease().tell(event).commands


def test_breaking_the_protocol_leaves_none() -> None:
    assert leased().ack(1).commands == [c.KillWorker(1, "", has_grace=False)]


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_what_a_job_of_a_cancelled_batch_ends_with_before_the_kill_is_recorded(state: JobState) -> None:
    desk = leased(2)
    desk.tell(ev.CancelRequested("b", "enough"))
    assert desk.ack(0, state=state, why=b"why").entries == [e.Recorded("b", 0, 1, state, b"block")]
    assert desk.tell(ev.LeaseEnded(1, 1, 1)).commands == []  # The kill is on its way: it gets no more work.
    desk.gone(None)
    assert desk.facts.is_finished


# --- Checkpoints -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_running_job_is_written_down() -> None:
    desk = long_lease()
    assert desk.tell(ev.CheckpointReceived(1, 2, 4, b"so far")).entries == [e.Noted("b", 4, b"so far")]
    assert list(desk.facts.noted) == [(4, 5)]


@pytest.mark.parametrize(
    ("worker", "lease", "index"), [(1, 2, 0), (1, 2, 1), (1, 2, 9), (1, 1, 0), (1, 99, 4), (99, 2, 4)]
)
def test_a_checkpoint_behind_the_outcome_or_of_nobodys_job_is_dropped(worker: int, lease: int, index: int) -> None:
    desk = long_lease()
    desk.ack(1, lease=2)
    assert desk.tell(ev.CheckpointReceived(worker, lease, index, b"so far")).entries == []


def test_a_checkpoint_stays_through_a_crash_and_goes_with_the_outcome() -> None:
    desk = leased(1)
    desk.tell(ev.CheckpointReceived(1, 1, 0, b"so far"))
    desk.gone(ev.Position(1, 0, ev.Phase.RUNNING))
    desk.commit()
    assert list(desk.facts.noted) == [(0, 1)]
    desk.tell(ev.WorkerReady(2))
    lease = desk.last_grant()
    assert (lease.first, lease.attempt) == (0, 2)
    desk.tell(ev.JobsAcked(2, lease.lease, 0, 1, JobState.SUCCEEDED, b"block", 0.1))
    assert not desk.facts.noted


def test_cancelled_jobs_leave_no_checkpoints() -> None:
    desk = long_lease()
    desk.tell(ev.CheckpointReceived(1, 2, 1, b"so far"), ev.CancelRequested("b", "enough"))
    desk.gone(ev.Position(2, 1, ev.Phase.RUNNING))
    assert not desk.facts.noted
    assert desk.facts.is_finished


def test_a_worker_that_skips_jobs_again_is_killed_once() -> None:
    desk = leased()
    orders = [*desk.ack(1).commands, *desk.ack(1).commands, *desk.tell(ev.LeaseEnded(1, 1, 1)).commands]
    assert orders == [c.KillWorker(1, "")]
