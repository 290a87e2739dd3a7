"""What a job may know about itself, and that nobody else is told it."""

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import batchd
from batchd.testing import fake_job
from batchd.worker import context
from batchd.worker.context import CurrentJob, current_job, provide
from tests.bench import ROOT


@pytest.fixture(autouse=True)
def nobody_else_provides(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(context, "_provider", [])
    return iter(())


def test_outside_of_a_job_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="outside of a batchd job"):
        current_job()


def test_the_worker_is_asked_each_time() -> None:
    jobs = [CurrentJob("b", 1, 1), CurrentJob("b", 2, 3)]
    provide(jobs.pop)
    assert current_job() == CurrentJob(batch="b", index=2, attempt=3)
    assert batchd.current_job() == CurrentJob(batch="b", index=1, attempt=1)


def test_the_last_provider_counts() -> None:
    provide(lambda: CurrentJob("old", 0, 1))
    provide(lambda: CurrentJob("new", 0, 1))
    assert current_job().batch == "new"


def test_a_job_cannot_change_what_it_was_told() -> None:
    with pytest.raises(AttributeError):
        CurrentJob("b", 1, 1).attempt = 2  # type: ignore[misc]


# --- What a job may say, and the fake that a test of a task has -------------------------------------------------


def test_who_it_is_is_all_that_is_compared_shown_and_kept() -> None:
    with fake_job("b", 7, 2):
        job = current_job()
    plain = CurrentJob("b", 7, 2)
    assert job == plain
    assert hash(job) == hash(plain)
    assert repr(job) == repr(plain) == "CurrentJob(batch='b', index=7, attempt=2)"
    assert pickle.loads(pickle.dumps(job)) == copy.copy(job) == plain
    assert job != CurrentJob("b", 7, 3)


@pytest.mark.parametrize(
    "act",
    [
        lambda job: job.progress(0.5),
        lambda job: job.log("x"),
        lambda job: job.checkpoint("x"),
        lambda job: job.last_checkpoint,
        lambda job: job.cancelled,
    ],
)
def test_a_job_that_was_sent_elsewhere_says_nothing(act: Callable[[CurrentJob], object]) -> None:
    with fake_job("b", 7):
        job = pickle.loads(pickle.dumps(current_job()))
        with pytest.raises(RuntimeError, match="job b:7 does not run here"):
            act(job)


def test_a_fake_job_records_what_is_said_and_answers_as_told() -> None:
    with fake_job("nightly", 3, 2, last_checkpoint=[1]) as fake:
        job = batchd.current_job()
        assert (job.batch, job.index, job.attempt) == ("nightly", 3, 2)
        job.progress(0.5)
        job.progress(1 + 1e-9)
        job.log("hello")
        found = job.last_checkpoint
        found.append(2)
        assert job.last_checkpoint == [1]
        job.checkpoint(found)
        found.append(3)
        assert job.last_checkpoint == [1, 2]
        is_told = [job.cancelled]
        fake.cancel()
        is_told.append(job.cancelled)
    assert (fake.progress, fake.logs, fake.checkpoints) == ([0.5, 1.0], ["hello"], [[1, 2]])
    assert is_told == [False, True]


def test_fake_jobs_may_stand_in_each_other_and_end_with_their_errors() -> None:
    with fake_job("outer"):
        with suppress(ZeroDivisionError), fake_job("inner"):
            assert current_job().batch == "inner"
            raise ZeroDivisionError
        assert current_job().batch == "outer"
    with pytest.raises(RuntimeError, match="outside of a batchd job"):
        current_job()


def test_a_fake_job_is_as_strict_as_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "CHECKPOINT_BYTES_MAX", 100)
    with fake_job() as fake:
        with pytest.raises(ValueError, match="progress is a fraction from 0 to 1, not 50"):
            current_job().progress(50)
        with pytest.raises(ValueError, match="at most 100 are kept"):
            current_job().checkpoint("x" * 100)
        with pytest.raises(TypeError, match="lock"):
            current_job().checkpoint(threading.Lock())
    assert (fake.progress, fake.checkpoints) == ([], [])


def test_a_fake_job_loads_neither_a_journal_nor_the_simulator() -> None:
    program = "import sys; from batchd.testing import fake_job; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"lmdb", "psutil", "cloudpickle", "batchd.core.scheduler"} & set(loaded.stdout.split())
