"""Jobs their client wants no more, wherever they are; and what else a client may send about a live batch."""

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.books import Held, LiveBatch
from batchd.core.events import Options, Phase, Position
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.scheduler import Turn
from tests.unit.core.test_scheduler import attached, leased


def cancelled(entries: list[e.Entry]) -> set[int]:
    found: set[int] = set()
    for entry in entries:
        if isinstance(entry, e.Recorded) and entry.state is JobState.CANCELLED:
            found |= set(range(entry.first, entry.first + entry.count))
    return found


def test_jobs_are_found_whether_they_are_queued_wait_or_are_held() -> None:
    batch = LiveBatch(BatchFacts("b", size=40), Options(), "key")
    batch.put(0, 10, None)
    batch.put(10, 20, 5.0)
    batch.held = [Held(1, 20, 30, None)]
    assert batch.take_unwanted(5, 25) == [(5, 10), (10, 20), (20, 25)]
    assert list(batch.queued) == [(0, 5)]
    assert batch.waiting == {}
    assert batch.held == [Held(1, 25, 30, None)]
    assert list(batch.unleased()) == [(0, 5), (25, 30)]


def test_what_has_not_begun_is_cancelled_at_once() -> None:
    desk = attached(5)
    assert cancelled(desk.tell(ev.WithdrawRequested("b", ((1, 3),))).entries) == {1, 2}


def test_what_a_worker_holds_is_cut_and_cancelled_when_it_is_known_not_to_have_begun() -> None:
    desk = leased(50)
    desk.tell(ev.JobsAcked(1, 1, 0, 1, JobState.SUCCEEDED, b"block", 0.001, b""), ev.LeaseEnded(1, 1, 1))
    held = desk.last_grant()
    assert held.stop - held.first > 1, "a lease of one job is not cut"
    turn = desk.tell(ev.WithdrawRequested("b", ((held.stop - 1, held.stop),)))
    assert cancelled(turn.entries) == set()
    (cut,) = (command for command in turn.commands if isinstance(command, c.CutLease))
    assert (cut.lease, cut.stop) == (held.lease, held.stop - 1)
    assert desk.scheduler.batches["b"].is_cutting
    assert cancelled(desk.tell(ev.LeaseCut(1, cut.lease, cut.stop)).entries) == {held.stop - 1}
    assert not desk.scheduler.batches["b"].is_cutting


def test_what_dies_while_nobody_wants_it_any_more_is_cancelled_and_not_tried_again() -> None:
    desk = leased(3)
    desk.tell(ev.WithdrawRequested("b", ((0, 1),)))
    assert cancelled(desk.gone(Position(1, 0, Phase.RUNNING)).entries) == {0}


def test_functions_and_what_was_read_become_entries() -> None:
    desk = leased(2)
    assert desk.tell(ev.FunctionReceived("b", b"mark", b"pickle")).entries == [e.Defined("b", b"mark", b"pickle")]
    desk.ack(0)
    desk.commit()
    marks = (b"a function",)
    assert desk.tell(ev.TrimRequested("b", ((0, 2),), marks)).entries == [e.Trimmed("b", ((0, 1),), marks)]


def test_jobs_that_others_replace_are_cancelled_and_do_not_run() -> None:
    desk = leased(1)
    desk.ack(0, state=JobState.FAILED, why=b"why")
    desk.tell(ev.LeaseEnded(1, 1, 1))
    request = ev.ReopenRequested("b", ((JobState.FAILED, ((0, 1),)),), 0, is_replaced=True)

    assert desk.tell(request).entries == [
        e.Reopened("b", 1, ((0, 1),), JobState.FAILED),
        e.Recorded("b", 0, 1, JobState.CANCELLED),
    ]
    assert not [command for command in desk.commit().commands if isinstance(command, c.GrantLease)]


def test_a_client_that_leaves_in_order_is_forgotten_and_no_other() -> None:
    desk = attached(3)

    assert desk.tell(ev.ClientLeft("b", "another")).entries == []
    assert desk.submit(3, sequence=1).entries == [], "it had not left"
    assert desk.tell(ev.ClientLeft("b", "client")) == Turn(6, [e.Left("b", "client")], [])
    assert desk.tell(ev.ClientLeft("b", "client")).entries == []
    assert desk.scheduler.batches["b"].facts.sequences == {}
