"""Who gets what: sharing, choosing, and taking back."""

from batchd.core.assignment import choose_batch, choose_victim, pool_size, workers_per_key
from batchd.core.books import Kill, LiveBatch, Worker, WorkerState
from batchd.core.events import Options
from batchd.core.facts import BatchFacts
from batchd.core.job import FRESH
from batchd.core.lease import Lease


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


def victims(live: LiveBatch, *workers: Worker) -> tuple[int, int, int] | None:
    found = choose_victim({it.number: it for it in workers}, {"a": live}, "key")
    return (found[0].number, found[1].number, found[2]) if found else None


def test_a_waiting_lease_is_taken_whole_before_a_running_one_is_halved() -> None:
    live = batch("a", 0)

    assert victims(live, worker(1, lease(1, 0, 10), lease(2, 10, 20))) == (1, 2, 10)
    assert victims(live, worker(1, lease(1, 0, 10))) == (1, 1, 5)


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
