"""Faults on order: they strike at their time, at no other, and a batch comes through them as through real ones."""

import errno
import os
import signal
from pathlib import Path

import pytest

import batchd
from batchd.core import events as ev
from batchd.edge.commits import Broken, CommitThread, Done, Outcome
from batchd.edge.journal import BatchJournal
from batchd.testing import Faults, die
from batchd.testing.faults import FaultyJournal, FaultyPool
from tests.author import submission, success
from tests.bench import Bench, at_work
from tests.commands import dead, until


def test_a_fault_strikes_at_its_time_only() -> None:
    struck: list[str] = []
    faults = Faults().at("a", 2, lambda: struck.append("second")).at("b", 1, ValueError("told to"))
    faults("a")
    assert struck == []
    with pytest.raises(ValueError, match="told to"):
        faults("b")
    faults("a")
    faults("a")
    faults("b")
    assert struck == ["second"]
    assert faults.reached == {"a": 3, "b": 2}


@pytest.mark.parametrize(("point", "jobs"), [("commit", 0), ("committed", 2)])
def test_a_commit_that_fails_is_an_unknown_outcome_and_the_disk_tells_which(
    tmp_path: Path, point: str, jobs: int
) -> None:
    BatchJournal.create(tmp_path / "b", {}).close()
    journal = FaultyJournal(tmp_path / "b", Faults().at(point, 2, OSError(errno.EIO, os.strerror(errno.EIO))))
    thread = CommitThread()
    thread.commit(1, [(journal, [submission(journal.facts, [1, 2])])])
    assert isinstance(next_of(thread), Done)
    thread.commit(2, [(journal, [success("b", 0, ["x", "y"])])])
    assert isinstance(next_of(thread), Broken)
    thread.stop()
    journal.close()
    again = BatchJournal(tmp_path / "b")
    assert again.facts.done.size == jobs
    again.close()


def next_of(thread: CommitThread) -> Outcome:
    """Return what became of the commit in flight."""
    (outcome,) = until(thread.outcomes, "it is told")
    found: Outcome = outcome
    return found


def test_a_pool_may_be_struck_between_its_orders(tmp_path: Path) -> None:
    """The worker dies before its lease is granted: nobody is blamed, and nothing of the lease has begun."""
    bench = Bench(tmp_path, pool=FaultyPool)
    try:
        worker = at_work(bench, [("same", 1)])
        assert isinstance(bench.pool, FaultyPool)
        assert bench.pool.faults.reached == {"StartWorker": 1}
        bench.pool.faults.at("GrantLease", 1, lambda: kill(worker.pid))
        number = bench.lease(worker, 0, 1)
        gone = bench.gone(worker)
        assert gone.cause == "killed by SIGKILL"
        assert gone.position is None or gone.position.phase is not ev.Phase.RUNNING
        assert bench.told(number) == []
    finally:
        bench.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: dead(pid), "it is dead")


def test_a_task_is_struck_at_the_attempt_that_was_asked_for() -> None:
    struck = Faults().at("job 2", 1, die).at("job 3", 1, ValueError("no")).around(abs)
    found = batchd.map(struck, [-1, -2, -3, -4], workers=1, retries=1)
    assert list(found) == [1, 2, 3, 4]


def test_a_task_that_is_struck_each_time_costs_its_own_job() -> None:
    struck = Faults().at("job 1", 1, die).at("job 1", 2, die).around(abs)
    found = list(batchd.map(struck, [-1, -2, -3], workers=1, crashes_max=2, on_error="return"))
    assert (found[0], found[2]) == (1, 3)
    assert isinstance(found[1], batchd.JobCrashed)
