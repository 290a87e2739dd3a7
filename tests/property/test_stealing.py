"""One search for the work of all idle workers finds what a search for each of them would, one after the other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from batchd.core import commands as c
from batchd.core.assignment import choose_batch
from batchd.core.books import Kill, LiveBatch, Worker, WorkerState
from batchd.core.crew import Crew
from batchd.core.events import Options
from batchd.core.facts import BatchFacts
from batchd.core.job import FRESH
from batchd.core.lease import Lease
from batchd.settings import STEAL_MIN_S

keys = st.sampled_from(["one", "two"])


@st.composite
def batches(draw: st.DrawFn) -> dict[str, LiveBatch]:
    found = {}
    for name in ("a", "b", "c", "d")[: draw(st.integers(1, 4))]:
        batch = LiveBatch(BatchFacts(name, size=100), Options(workers=draw(st.integers(1, 9))), draw(keys))
        if draw(st.integers(0, 3)) == 0:
            batch.put(90, 100, None)
        if each_s := draw(st.sampled_from([0.0, 0.0001, 0.002, 1.0])):
            batch.pace.report(1, each_s)
        batch.is_leaving = draw(st.integers(0, 9)) == 0
        found[name] = batch
    return found


@st.composite
def crews(draw: st.DrawFn) -> Crew:
    """A crew in any state it can be in, and many it cannot."""
    live = draw(batches())
    crew, number = Crew(live), 0
    for worker_number in range(1, draw(st.integers(2, 9)) + 1):
        worker = Worker(
            worker_number, draw(keys), [], draw(st.sampled_from([*3 * [WorkerState.READY], *WorkerState]))
        )
        worker.kill = draw(st.sampled_from([None] * 9 + [Kill(None, 0)]))
        worker.reported_at = draw(st.sampled_from([0.0, 9.0, 9.99]))
        crew.workers[worker_number] = worker
        alike = [batch for batch in live.values() if batch.key == worker.key]
        for _ in range(draw(st.integers(0, 2)) if alike else 0):
            batch, number = draw(st.sampled_from(alike)), number + 1
            first = draw(st.sampled_from([0, 7]))
            stop = first + draw(st.sampled_from([0, 1, 2, 3, 10, 11, 40]))
            lease = Lease(number, batch.facts.batch, 0, first, stop, first, FRESH)
            lease.is_cutting = draw(st.booleans())
            worker.leases.append(lease)
            batch.lend(worker_number, lease)
    return crew


def searched_one_by_one(crew: Crew, now: float) -> list[c.CutLease]:
    """Return what is cut when each idle worker is sought work for, with what was found for others left out."""
    found: list[c.CutLease] = []
    for idle in crew.workers.values():
        if idle.leases or idle.state is not WorkerState.READY or idle.kill:
            continue
        if choose_batch(crew._batches.values(), idle):
            continue
        best_s, best = 0.0, None
        for worker in crew.workers.values():
            if worker.key != idle.key or worker.kill or worker.state is not WorkerState.READY:
                continue
            behind_s = now - worker.reported_at
            for lease in worker.leases:
                batch = crew._batches[lease.batch]
                each_s = batch.seconds_per_job(lease) or STEAL_MIN_S
                left = lease.stop - lease.next
                is_waiting = lease is not worker.leases[0]
                gain_s = (left if is_waiting else left // 2) * each_s + behind_s
                stop = lease.next if is_waiting else lease.stop - left // 2
                behind_s += left * each_s
                is_taken = lease.is_cutting or any(cut.lease == lease.number for cut in found)
                is_worth_it = stop < lease.stop and gain_s >= STEAL_MIN_S and gain_s > best_s
                if is_worth_it and not is_taken and batch.is_leasing and batch.has_room:
                    best_s, best = gain_s, c.CutLease(worker.number, lease.number, lease.lane, stop, lease.is_ending)
        found += [best] if best else []
    return found


@given(crews())
@settings(max_examples=300)
def test_one_search_for_all_finds_what_one_for_each_does(crew: Crew) -> None:
    expected = searched_one_by_one(crew, 10.0)
    crew.steal(10.0)
    assert crew.orders == expected
