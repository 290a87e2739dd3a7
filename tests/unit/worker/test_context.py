"""What a job may know about itself, and that nobody else is told it."""

from collections.abc import Iterator

import pytest

import batchd
from batchd.worker import context
from batchd.worker.context import CurrentJob, current_job, provide


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
