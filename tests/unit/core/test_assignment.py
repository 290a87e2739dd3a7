"""Who gets what: sharing, choosing, and taking back."""

import pytest

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.assignment import choose_batch, choose_victims, pool_size, rest_s, workers_per_key
from batchd.core.books import Kill, LiveBatch, Worker, WorkerState
from batchd.core.crew import Crew
from batchd.core.events import Options
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import FRESH, History, JobState
from batchd.core.lease import Lease, Pace
from batchd.core.scheduler import Scheduler
from batchd.settings import LEASE_TARGET_S, REST_S_EAGER, REST_S_MAX, REST_SHARE


def batch(name: str, queued: int, *, workers: int = 4, key: str = "key") -> LiveBatch:
    live = LiveBatch(BatchFacts(name, size=queued), Options(workers=workers), key)
    live.put(0, queued, None)
    return live


def worker(number: int, *leases: Lease, key: str = "key") -> Worker:
    return Worker(number, key, [], WorkerState.READY, list(leases))


def lease(number: int, first: int, stop: int, name: str = "a") -> Lease:
    return Lease(number, name, 0, first, stop, first, FRESH)


def test_the_pool_is_as_large_as_the_largest_cap() -> None:
    batches = [batch("a", 1, workers=2), batch("b", 1, workers=5)]

    assert [pool_size(batches, None), pool_size(batches, 3), pool_size([], None)] == [5, 3, 0]


@pytest.mark.parametrize(("key", "is_leaving", "jobs"), [("key", False, 4), ("key", True, 8), ("other", False, 8)])
def test_leases_are_shorter_while_another_batch_waits_for_the_same_workers(
    key: str, is_leaving: bool, jobs: int
) -> None:
    batches = {"a": batch("a", 1000), "b": batch("b", 1000, key=key)}
    batches["b"].is_leaving = is_leaving
    batches["a"].pace.report(1, LEASE_TARGET_S / 8)
    crew = Crew(batches)
    crew.workers[1] = Worker(1, "key", [0, 1], WorkerState.READY)
    crew.grant_leases(0.0)
    made = [each for each in crew.orders if isinstance(each, c.GrantLease) and each.batch == "a"]
    assert made[0].stop - made[0].first == jobs


def test_workers_are_shared_evenly() -> None:
    batches = [batch("a", 100, key="one"), batch("b", 100, key="two")]

    assert workers_per_key(batches, 4) == {"one": 2, "two": 2}


def test_what_the_modest_leave_goes_to_the_others() -> None:
    batches = [batch("a", 100, key="one"), batch("b", 1, key="two"), batch("c", 0, key="three")]

    assert workers_per_key(batches, 4) == {"one": 3, "two": 1}


def test_the_batch_with_the_fewest_workers_comes_first() -> None:
    rich, poor, foreign = batch("a", 9), batch("b", 9), batch("c", 9, key="other")
    rich.lend(7, lease(1, 0, 1))

    assert choose_batch([rich, poor, foreign], worker(1)) is poor


def test_a_batch_at_its_cap_is_for_those_who_have_it() -> None:
    full = batch("a", 9, workers=1)
    full.lend(7, lease(1, 0, 1))

    assert choose_batch([full], worker(1)) is None
    assert choose_batch([full], worker(7)) is full


def test_a_batch_above_its_cap_is_for_nobody() -> None:
    full = batch("a", 9, workers=1)
    full.lend(7, lease(1, 0, 1))
    full.lend(8, lease(2, 1, 2))

    assert choose_batch([full], worker(7)) is None


def victims(live: LiveBatch, *workers: Worker, now: float = 0.0) -> tuple[int, int, int] | None:
    found = choose_victims(workers, {"a": live}, {"key"}, now)
    return next(((first.worker.number, first.lease.number, first.stop) for first, *_ in found.values()), None)


def test_a_waiting_lease_is_taken_whole_before_a_running_one_is_halved() -> None:
    live = batch("a", 0)

    assert victims(live, worker(1, lease(1, 0, 10), lease(2, 10, 20))) == (1, 2, 10)
    assert victims(live, worker(1, lease(1, 0, 10))) == (1, 1, 5)


def test_what_waits_behind_a_job_that_takes_long_is_taken_whatever_the_pace_says() -> None:
    live = batch("a", 0)
    live.pace.report(jobs=1_000, busy_s=0.001)

    assert victims(live, worker(1, lease(1, 0, 1), lease(2, 1, 2)), now=0.001) is None
    assert victims(live, worker(1, lease(1, 0, 1), lease(2, 1, 2)), now=1.0) == (1, 2, 1)


def test_the_most_is_taken_from_the_busiest() -> None:
    assert victims(batch("a", 0), worker(1, lease(1, 0, 10)), worker(2, lease(2, 10, 50))) == (2, 2, 30)
    assert victims(batch("a", 0), worker(1, lease(1, 0, 50)), worker(2, lease(2, 50, 60))) == (1, 1, 25)


def test_nothing_is_taken_where_nothing_is_won() -> None:
    live, cutting, full = batch("a", 0), lease(1, 0, 10), batch("a", 0, workers=1)
    cutting.is_cutting = True
    full.lend(1, lease(1, 0, 10))
    killed = worker(1, lease(1, 0, 10))
    killed.kill = Kill(None, 0)

    assert victims(live) is None
    assert victims(live, worker(1, lease(1, 0, 1))) is None
    assert victims(live, worker(1, cutting)) is None
    assert victims(live, killed) is None
    assert victims(live, worker(1, lease(1, 0, 10), key="other")) is None
    assert victims(full, worker(1, lease(1, 0, 10))) is None


def test_a_lease_that_turns_out_slow_is_taken_back_at_its_next_report() -> None:
    scheduler = Scheduler(jitter=lambda: 0.0)
    scheduler.step([ev.BatchAttached(BatchFacts("a"), Options(workers=2), "key", 1)], 0.0)
    scheduler.step([ev.SegmentsReceived("a", 300, (b"x",), "client", 1, "")], 0.0)
    scheduler.step([ev.Committed(2)], 0.0)
    scheduler.step([ev.WorkerReady(1), ev.WorkerReady(2)], 0.0)
    slow, fast = scheduler.workers[1], scheduler.workers[2]
    while fast.leases:  # Worker 2 runs everything there is; nothing says that worker 1 is slow.
        it = fast.leases[0]
        report = ev.JobsAcked(2, it.number, it.next, it.stop - it.next, JobState.SUCCEEDED, b"", 1e-6)
        turn = scheduler.step([report, ev.LeaseEnded(2, it.number, it.stop)], 0.0)
        scheduler.step([ev.Committed(turn.number)], 0.0)
    first, second = slow.leases
    turn = scheduler.step([ev.JobsAcked(1, first.number, first.next, 1, JobState.SUCCEEDED, b"", 5.0)], 0.0)
    assert turn.commands == [c.CutLease(1, second.number, second.lane, second.first)]


def test_batches_that_bring_their_workers_come_on_top() -> None:
    bringing = LiveBatch(BatchFacts("c"), Options(workers=3, brings_workers=True), "key")

    assert pool_size([batch("a", 1, workers=2), bringing], None) == 5


def test_reports_may_rest_while_everybody_has_work_for_longer() -> None:
    batches = {"a": batch("a", 0)}
    busy, idle, last = worker(1, lease(1, 0, 5)), worker(2), worker(3, lease(2, 5, 6))

    assert rest_s([busy], batches) == 0.0, "nobody knows yet how long a job takes"
    batches["a"].pace.report(jobs=10, busy_s=0.1)
    assert rest_s([busy], batches) == pytest.approx(0.04 / REST_SHARE), "the job that runs may end at any moment"
    assert rest_s([worker(1, lease(1, 0, 1))], batches) == 0.0, "nobody who waits for a report has work"
    assert rest_s([worker(1, lease(1, 0, 1), lease(2, 1, 3))], batches) == pytest.approx(0.02 / REST_SHARE)
    assert rest_s([worker(1, lease(1, 0, 4_000))], batches) == REST_S_MAX
    assert rest_s([worker(1, lease(1, 0, 4_000))], batches, REST_S_EAGER) == REST_S_EAGER
    assert rest_s([busy, idle], batches) == 0.0
    assert rest_s([busy, last], batches) == 0.0, "its only job may end at any moment"
    batches["a"].pace = Pace()
    batches["a"].pace.report(jobs=1_000, busy_s=0.01)
    assert rest_s([busy], batches) == 0.0, "fast jobs fill the pipe"


def test_jobs_of_which_supervisors_may_be_dying_run_one_by_one() -> None:
    """Whoever runs at the fifth death is given up: it is not to be a neighbour of the one that is guilty."""
    facts = BatchFacts("a", size=10, is_attached=True)
    for first, interruptions in ((0, 3), (1, 4), (3, 4)):
        apply(facts, e.Charged("a", first, 1, History(attempts=interruptions, interruptions=interruptions)))
    live = LiveBatch(facts, Options(workers=4), "key")
    assert live.workers_max == 1
    apply(facts, e.Recorded("a", 1, 1, JobState.SUCCEEDED))
    assert live.workers_max == 1
    apply(facts, e.Recorded("a", 3, 1, JobState.QUARANTINED))
    assert live.workers_max == 4
