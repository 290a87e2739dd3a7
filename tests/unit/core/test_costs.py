"""Costs: which are kept, that their order of arrival does not show, and what starts first because of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchd.core import commands as c
from batchd.core import costs as costs_module
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.costs import Costs, checked_costs
from batchd.core.events import Options
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler
from batchd.settings import COSTLY_JOBS_MAX


@pytest.mark.parametrize("found", [(1, 1.0), (-1, 1.0), (0, 0.0), (0, -2.0), (0, float("inf")), (0, float("nan"))])
def test_what_is_no_cost_or_of_no_job_is_refused(found: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match="a cost that is none, or of no job"):
        checked_costs([found], 1)


def test_costs_are_compared_and_shown_by_what_they_hold_and_not_hashed() -> None:
    costs = Costs()
    costs.add(100, [(7, 4.0)])
    assert (costs == Costs(), repr(costs)) == (False, f"Costs{costs.stored()!r}")
    with pytest.raises(TypeError, match="cannot be hashed"):
        hash(costs)


def test_only_the_costliest_are_kept() -> None:
    costs = Costs()
    costs.add(0, [(job, 1.0) for job in range(COSTLY_JOBS_MAX)])
    assert len(costs) == COSTLY_JOBS_MAX

    costs.add(COSTLY_JOBS_MAX, [(0, 100.0), (7, 0.001)])

    assert costs.within(0, 10**9) == [(COSTLY_JOBS_MAX, 100.0)]


def test_ten_million_growing_costs_do_not_fill_the_memory() -> None:
    costs = Costs()
    for first in range(0, 10_000_000, 500_000):
        costs.add(first, [(place, 1.0 + first + place) for place in range(0, 500_000, 100)])
    assert len(costs) <= COSTLY_JOBS_MAX


def test_what_is_stored_is_what_is_read() -> None:
    costs = Costs()
    costs.add(5, [(0, 0.1), (3, 1e300)])

    assert Costs(*json.loads(json.dumps(costs.stored()))) == costs


prices = st.sampled_from([0.1, 1.0, 2.0, 3.0, 100.0, 1e9])


@given(submissions=st.lists(st.lists(prices, min_size=1, max_size=9), max_size=6), cut=st.integers(0, 40))
def test_it_makes_no_difference_whether_jobs_ended_before_others_were_given(
    submissions: list[list[float]], cut: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs_module, "COSTLY_JOBS_MAX", 8)
        live, replayed, size = Costs(), Costs(), 0
        for given_costs in submissions:
            live.add(size, enumerate(given_costs))
            replayed.add(size, enumerate(given_costs))
            size += len(given_costs)
            live.drop(0, min(cut, size))
        replayed.drop(0, min(cut, size))

        assert live == replayed == Costs(*replayed.stored())
        assert len(live) <= 8


class Desk:
    """A scheduler with one batch whose jobs cost what is given here, and whatever workers start."""

    def __init__(self, costs: dict[int, float], size: int, workers: int = 1) -> None:
        self.scheduler = Scheduler(jitter=lambda: 0.0)
        self.grants: list[c.GrantLease] = []
        self.cuts: list[c.CutLease] = []
        self.facts = BatchFacts("b")
        self.tell(ev.BatchAttached(self.facts, Options(workers=workers), "key", 1))
        self.tell(ev.SegmentsReceived("b", size, (), "client", 1, "", costs=tuple(costs.items())))
        for worker in range(1, workers + 1):
            self.tell(ev.WorkerReady(worker))

    def tell(self, *events: ev.Event) -> None:
        for event in (*events, None):
            turn = self.scheduler.step([event or ev.Committed(self.scheduler._turn)], 0.0)
            self.scheduler.check()
            self.grants += [command for command in turn.commands if isinstance(command, c.GrantLease)]
            self.cuts += [command for command in turn.commands if isinstance(command, c.CutLease)]

    def finish(self, grant: c.GrantLease, seconds_each: float) -> None:
        count = grant.stop - grant.first
        busy_s = seconds_each * count
        self.tell(
            ev.JobsAcked(grant.worker, grant.lease, grant.first, count, JobState.SUCCEEDED, b"", busy_s),
            ev.LeaseEnded(grant.worker, grant.lease, grant.stop),
        )

    @property
    def leased(self) -> list[tuple[int, int]]:
        return [(grant.first, grant.stop) for grant in self.grants]


def test_the_costliest_goes_first_and_alone() -> None:
    desk = Desk({2: 10.0, 7: 50.0}, size=10)
    assert desk.leased == [(7, 8)]

    desk.finish(desk.grants[0], 1.0)

    assert desk.leased == [(7, 8), (2, 3)]
    assert desk.facts.costs.within(0, 10) == [(2, 10.0)]


def test_a_job_that_is_short_after_all_waits_for_its_turn() -> None:
    desk = Desk({7: 50.0, 8: 0.1}, size=10)
    desk.finish(desk.grants[0], 1.0)  # So a cost of 0.1 is 2 ms.

    assert desk.leased == [(7, 8), (0, 1)]


def test_what_waits_behind_a_giant_is_no_giant() -> None:
    desk = Desk({7: 50.0, 8: 40.0, 9: 8.0}, size=10)
    desk.finish(desk.grants[0], 1.0)
    assert desk.leased == [(7, 8), (8, 9)], "of long jobs one at a time"

    desk.finish(desk.grants[1], 0.8)

    assert desk.leased == [(7, 8), (8, 9), (9, 10), (0, 1)], "behind 160 ms something may wait"


def test_equal_costs_keep_the_order_of_the_input() -> None:
    desk = Desk(dict.fromkeys(range(10), 3.0), size=10)
    for at in range(9):
        desk.finish(desk.grants[at], 1.0)

    assert desk.leased == [(job, job + 1) for job in range(10)]


def test_a_giant_that_was_taken_back_goes_first_again() -> None:
    desk = Desk({7: 50.0, 8: 40.0}, size=10)
    desk.tell(ev.WorkerGone(1, None, "killed by SIGKILL"))
    desk.tell(ev.WorkerReady(2))

    assert desk.leased == [(7, 8), (7, 8)]


def test_a_supervisor_that_starts_again_knows_the_costs() -> None:
    desk = Desk({7: 50.0, 8: 40.0}, size=10)
    again = Scheduler(jitter=lambda: 0.0)
    again.step([ev.BatchAttached(desk.facts, Options(), "key", 2)], 0.0)
    again.step([ev.Committed(1)], 0.0)
    (grant,) = again.step([ev.WorkerReady(1)], 0.0).commands

    assert isinstance(grant, c.GrantLease)
    assert (grant.first, grant.stop) == (7, 8)


def test_costly_jobs_that_come_back_again_and_again_take_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchd.core.books.COSTLY_JOBS_MAX", 8)
    desk = Desk(dict.fromkeys(range(8), 3.0), size=10)
    batch = desk.scheduler.batches["b"]
    for _ in range(100):
        batch.queued.remove(7, 8)
        batch.put(7, 8, None)

    assert len(batch._costly) <= 16
    desk.scheduler.check()


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.QUARANTINED, JobState.CANCELLED])
def test_a_job_has_its_cost_until_it_has_succeeded(state: JobState) -> None:
    facts = BatchFacts("b")
    apply(facts, e.Submitted("b", 0, 3, (), "c", 1, "", costs=((0, 5.0), (2, 7.0))))
    apply(facts, e.Recorded("b", 0, 3, state))
    apply(facts, e.Reopened("b", 1, ((0, 3),), state))
    assert facts.costs.within(0, 3) == [(0, 5.0), (2, 7.0)]
    apply(facts, e.Recorded("b", 0, 2, JobState.SUCCEEDED))
    assert facts.costs.within(0, 3) == [(2, 7.0)]
