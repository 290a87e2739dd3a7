"""Dask's collections on a batchd executor: Dask asks for `submit` and `_max_workers`, and decides the rest."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import batchd
from tests.contract.calls import fail, kill_myself, square

dask = pytest.importorskip("dask", reason="dask is not installed: pip install dask")
array = pytest.importorskip("dask.array", reason="its arrays need numpy: pip install numpy")
bag = pytest.importorskip("dask.bag")
get_scheduler = pytest.importorskip("dask.base").get_scheduler
np = pytest.importorskip("numpy", reason="numpy is not installed: pip install numpy")


@pytest.fixture(scope="module")
def executor() -> Iterator[batchd.Executor]:
    with batchd.Executor(2) as made:
        yield made


def test_dask_sees_how_many_workers_there_are(executor: batchd.Executor) -> None:
    assert get_scheduler(scheduler=executor).args == (executor.submit, 2)
    assert get_scheduler(scheduler=batchd.Executor()).args[1] >= 1


def test_a_bag(executor: batchd.Executor) -> None:
    numbers = bag.from_sequence(range(100), npartitions=7)
    assert numbers.map(square).filter(lambda x: x % 2).sum().compute(scheduler=executor) == 166_650
    words = bag.from_sequence(["a b", "b", "c a b"], npartitions=3).map(str.split).flatten()
    assert sorted(words.frequencies().compute(scheduler=executor)) == [("a", 2), ("b", 3), ("c", 1)]


def test_delayed_calls_that_need_each_other(executor: batchd.Executor) -> None:
    squares = [dask.delayed(square)(x) for x in range(10)]
    total, where = dask.delayed(sum)(squares), dask.delayed(os.getpid)()
    assert total.compute(scheduler=executor) == 285
    assert where.compute(scheduler=executor) != os.getpid()
    assert dask.compute(total, *squares, scheduler=executor) == (285, *(x * x for x in range(10)))


def test_an_array_has_the_numbers_it_has_without(executor: batchd.Executor) -> None:
    made = array.random.default_rng(7).integers(0, 99, (300, 300), chunks=(100, 150))
    product = (made @ made.T).sum(axis=0)
    assert np.array_equal(product.compute(scheduler=executor), product.compute(scheduler="synchronous"))


def test_it_may_be_configured_once_for_all(executor: batchd.Executor) -> None:
    where = dask.delayed(os.getpid)
    with dask.config.set(scheduler=executor):
        assert where().compute() != os.getpid()
    for scheduler in ("processes", "threads"):
        with dask.config.set(pool=executor):
            assert where().compute(scheduler=scheduler) != os.getpid()


def test_what_a_task_raises_is_raised(executor: batchd.Executor) -> None:
    with pytest.raises(ValueError, match="no such colour") as caught:
        dask.delayed(fail)(ValueError, "no such colour").compute(scheduler=executor)
    assert "# the line that failed" in str(caught.value.__cause__)


def test_a_crash_costs_one_computation(executor: batchd.Executor) -> None:
    with pytest.raises(batchd.JobCrashed, match="killed by SIGKILL"):
        dask.delayed(kill_myself)(signal.SIGKILL).compute(scheduler=executor)
    assert dask.delayed(square)(3).compute(scheduler=executor) == 9


def test_tasks_may_travel_together(executor: batchd.Executor) -> None:
    calls = [dask.delayed(batchd_job)() for _ in range(40)]
    jobs: tuple[Any, ...] = dask.compute(*calls, scheduler=executor, chunksize=10)
    assert len(set(jobs)) <= 8


def batchd_job() -> int:
    return batchd.current_job().index
