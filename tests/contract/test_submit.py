"""`submit`: what can be called, and that results and arguments come through. Both executors must agree."""

import gc
import operator
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.commands import until
from tests.contract.calls import (
    WAIT_S,
    Annotated,
    Counter,
    Door,
    Farewell,
    Thing,
    call_with,
    doubled,
    fail,
    make_thing,
    nap,
    note,
    notes,
    square,
    where_and_what,
)
from tests.contract.executors import Make


def test_what_is_submitted_is_called(pool: Executor) -> None:
    future = pool.submit(pow, 2, 8)
    assert isinstance(future, Future)
    assert future.result(WAIT_S) == 256
    assert future.done()
    assert future.exception() is None


def test_every_name_may_be_a_keyword(pool: Executor) -> None:
    future = pool.submit(call_with, 1, self=2, fn=3, timeout=4)
    assert future.result(WAIT_S) == ((1,), {"self": 2, "fn": 3, "timeout": 4})


def test_a_call_needs_a_function(pool: Any) -> None:
    with pytest.raises(TypeError):
        pool.submit()
    with pytest.raises(TypeError):
        pool.submit(fn=call_with, arg=1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (square, 25),
        (abs, 5),
        (str, "5"),
        ([4, 5, 5].count, 2),
        (partial(pow, 2), 32),
        (partial(pow, exp=3), 125),
        (operator.methodcaller("bit_length"), 3),
        (Counter(100).plus, 105),
        (Counter(100), 95),
        (Counter.step_times, 50),
        (Counter(0).step_times, 50),
        (Counter.negated, -5),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_what_can_be_pickled_can_be_called(pool: Executor, call: Callable[[int], Any], expected: Any) -> None:
    assert pool.submit(call, 5).result(WAIT_S) == expected


@pytest.mark.parametrize("value", [None, False, 0, "", (), [1, {"a": {2.5}}], "\udc80", b"\0" * 70_000, -(10**30)])
def test_a_value_comes_back_as_it_went(pool: Executor, value: Any) -> None:
    found = pool.submit(operator.itemgetter(0), [value]).result(WAIT_S)
    assert found == value
    assert type(found) is type(value)


def test_large_values_go_and_come(pool: Executor) -> None:
    data = random.Random(1).randbytes(3 << 20)
    assert pool.submit(doubled, data).result(WAIT_S) == data + data


def test_a_thousand_small_jobs_each_have_their_own_result(pool: Executor) -> None:
    futures = [pool.submit(square, x) for x in range(1000)]
    assert [future.result(WAIT_S) for future in futures] == [x * x for x in range(1000)]


def test_jobs_run_in_other_processes_and_at_the_same_time(pool: Executor, door: Door) -> None:
    futures = [pool.submit(door.enter, each) for each in "ab"]
    until(lambda: sorted(door.came()) == ["a", "b"], "both jobs run at once")
    door.open()
    assert [future.result(WAIT_S) for future in futures] == ["a", "b"]
    assert pool.submit(os.getpid).result(WAIT_S) != os.getpid()


def test_no_more_jobs_run_at_once_than_there_are_workers(make: Make, door: Door, tmp_path: Path) -> None:
    executor = make(1)
    first, second = executor.submit(door.enter, "a"), executor.submit(door.enter, "b")
    until(door.came, "the first job runs")
    wait([second], timeout=0.1)
    assert door.came() == ["a"]
    door.open()
    assert (first.result(WAIT_S), second.result(WAIT_S)) == ("a", "b")


def test_one_worker_takes_jobs_in_their_order(make: Make, tmp_path: Path) -> None:
    with make(1) as executor:
        for x in range(100):
            executor.submit(note, tmp_path / "order", x)
    assert notes(tmp_path / "order") == [str(x) for x in range(100)]


def test_threads_may_submit_at_once(pool: Executor) -> None:
    found: dict[int, int] = {}

    def submit_some(first: int) -> None:
        futures = {x: pool.submit(square, x) for x in range(first, first + 50)}
        found.update({x: future.result(WAIT_S) for x, future in futures.items()})

    threads = [threading.Thread(target=submit_some, args=(first,)) for first in range(0, 300, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {x: x * x for x in range(300)}


def test_many_failures_alike_do_not_stop_the_others(pool: Executor) -> None:
    bad = [pool.submit(fail, ValueError, "the same every time") for _ in range(250)]
    good = pool.submit(square, 3)
    assert {type(future.exception(WAIT_S)) for future in bad} == {ValueError}
    assert good.result(WAIT_S) == 9


def test_a_long_job_does_not_hold_up_short_ones(pool: Executor, door: Door) -> None:
    long = pool.submit(door.enter)
    until(door.came, "the long job runs")
    assert [pool.submit(square, x).result(WAIT_S) for x in range(20)] == [x * x for x in range(20)]
    futures = [pool.submit(square, x) for x in range(50)]
    assert [future.result(WAIT_S) for future in futures] == [x * x for x in range(50)]
    assert not long.done()


def test_a_worker_sees_folder_environment_and_path_of_its_maker(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found_on_the_path.py").write_text("def triple(x):\n    return 3 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    from importlib import import_module

    executor = make(1)
    try:
        assert executor.submit(import_module("found_on_the_path").triple, 5).result(WAIT_S) == 15
        folder, _ = executor.submit(where_and_what, "HOME").result(WAIT_S)
        assert folder == str(tmp_path)
    finally:
        sys.modules.pop("found_on_the_path", None)


# --- Nothing is held for longer than it is needed ----------------------------------------------------------------


def is_gone(reference: "weakref.ref[Any]") -> bool:
    gc.collect()
    return reference() is None


def test_an_argument_is_let_go_while_its_future_lives(pool: Executor) -> None:
    thing = Thing()
    watched = weakref.ref(thing)
    future = pool.submit(type, thing)
    del thing
    assert future.result(WAIT_S) is Thing
    until(lambda: is_gone(watched), "the argument is let go")


def test_what_a_forgotten_job_was_called_on_is_let_go(pool: Executor) -> None:
    thing = Thing()
    watched = weakref.ref(thing)
    pool.submit(thing.method)
    del thing
    until(lambda: is_gone(watched), "the object of the method is let go")


def test_a_result_is_let_go_with_its_future(pool: Executor) -> None:
    future = pool.submit(make_thing)
    watched = weakref.ref(future.result(WAIT_S))
    assert not is_gone(watched)
    del future
    until(lambda: is_gone(watched), "the result is let go")


def test_an_error_is_let_go_with_its_future(pool: Executor) -> None:
    future = pool.submit(fail, Annotated, "no")
    error = future.exception(WAIT_S)
    assert isinstance(error, Annotated)  # Python's own errors cannot be watched.
    watched = weakref.ref(error)
    del future, error
    until(lambda: is_gone(watched), "the error is let go")


def test_results_of_map_are_let_go_one_by_one(pool: Executor) -> None:
    seen = 0
    for thing in pool.map(make_thing, range(10)):
        watched = weakref.ref(thing)
        del thing
        until(partial(is_gone, watched), "the result is let go")
        seen += 1
    assert seen == 10


def test_an_argument_is_let_go_in_the_worker_as_soon_as_its_job_is_done(make: Make, tmp_path: Path) -> None:
    executor = make(1)
    assert executor.submit(type, Farewell(tmp_path / "farewell")).result(WAIT_S) is Farewell
    until(lambda: notes(tmp_path / "farewell") == ["gone"], "the worker's copy is let go")


# --- How many workers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, -1])
def test_there_must_be_a_worker(make: Make, workers: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        make(workers)


@pytest.mark.parametrize("workers", [None, 3])
def test_the_number_of_workers_can_be_read(make: Make, workers: int | None) -> None:
    executor: Any = make(workers)
    assert type(executor._max_workers) is int
    assert executor._max_workers == workers if workers else executor._max_workers > 0


def test_an_executor_that_is_idle_for_a_while_goes_on(make: Make) -> None:
    executor = make(1)
    assert executor.submit(square, 2).result(WAIT_S) == 4
    assert executor.submit(nap, 0.4, "rested").result(WAIT_S) == "rested"
    nap(0.5)
    assert executor.submit(square, 3).result(WAIT_S) == 9
