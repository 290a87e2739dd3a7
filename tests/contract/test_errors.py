"""What jobs raise, and values that cannot travel. Both executors must agree."""

import gc
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest

from tests.commands import until
from tests.contract.calls import (
    WAIT_S,
    Annotated,
    KillsItsPickler,
    KillsItsReader,
    LeavesItsPickler,
    Refuses,
    Thing,
    Unreadable,
    fail,
    fail_annotated,
    fail_because,
    fail_in_a_group,
    fail_with_a_lock,
    kill_myself,
    leave,
    made_by,
    note,
    notes,
    remember,
    remembered,
    square,
)
from tests.contract.executors import Make


def error_of(executor: Executor, call: Callable[..., Any], *args: Any) -> BaseException:
    """Return what a job raised."""
    error = executor.submit(call, *args).exception(WAIT_S)
    assert error is not None
    return error


# --- What a job raises -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "args"),
    [
        (ValueError, ("no such colour", "mauve")),
        (KeyError, ("mauve",)),
        (OSError, (2, "No such file or directory", "/no/where")),
        (AssertionError, ()),
        (StopIteration, (3,)),
        (TimeoutError, ("a job's own",)),
        (MemoryError, ("too large",)),
        (SystemExit, (3,)),
        (SystemExit, ("good bye",)),
        (KeyboardInterrupt, ()),
        (BrokenProcessPool, ("somebody else's",)),
    ],
)
def test_an_error_comes_back_as_itself(pool: Executor, raised: type[BaseException], args: tuple[Any, ...]) -> None:
    error = error_of(pool, fail, raised, *args)
    assert type(error) is type(raised(*args))  # OSError chooses a class of its own.
    assert error.args == raised(*args).args
    assert str(error) == str(raised(*args))


def test_a_job_that_leaves_gives_its_code_and_keeps_the_worker(make: Make) -> None:
    executor = make(1)
    error = error_of(executor, fail, SystemExit, 3)
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert executor.submit(square, 3).result(WAIT_S) == 9


def test_result_raises_what_the_job_raised(pool: Executor) -> None:
    future = pool.submit(fail, ValueError, "no")
    with pytest.raises(ValueError, match=r"^no$"):
        future.result(WAIT_S)
    with pytest.raises(ValueError, match=r"^no$"):  # As often as it is asked.
        future.result(WAIT_S)
    assert type(future.exception()) is ValueError


def test_the_cause_holds_the_traceback_of_the_worker(pool: Executor) -> None:
    error = error_of(pool, fail, RuntimeError, 123)
    assert error.__cause__ is not None
    told = str(error.__cause__)
    assert "Traceback (most recent call last)" in told
    assert "# the line that failed" in told
    assert "calls.py" in told
    assert "RuntimeError: 123" in told
    assert "# the line that failed" in "".join(traceback.format_exception(error))


def test_the_cause_holds_what_led_to_the_error(pool: Executor) -> None:
    error = error_of(pool, fail_because)
    assert type(error) is ValueError
    told = str(error.__cause__)
    assert "the key that is missing" in told
    assert "no such colour" in told
    assert "direct cause" in told


def test_what_an_error_carries_comes_along(pool: Executor) -> None:
    error = error_of(pool, fail_annotated)
    assert type(error) is Annotated
    assert (str(error), error.place) == ("see the place", "line 7")


def test_a_group_of_errors_comes_back_as_one(pool: Executor) -> None:
    error = error_of(pool, fail_in_a_group)
    assert isinstance(error, ExceptionGroup)
    assert [(type(each), str(each)) for each in error.exceptions] == [(ValueError, "one"), (TypeError, "two")]


@pytest.mark.covers("R2", "P14")
def test_an_error_that_does_not_pickle_fails_its_job_alone(pool: Executor) -> None:
    bad, good = pool.submit(fail_with_a_lock), pool.submit(square, 3)
    assert isinstance(bad.exception(WAIT_S), Exception)
    assert good.result(WAIT_S) == 9
    assert pool.submit(square, 4).result(WAIT_S) == 16


def test_a_call_that_does_not_fit_is_the_error_of_its_job(pool: Executor) -> None:
    error = error_of(pool, square, 1, 2, 3)
    assert type(error) is TypeError
    assert "square()" in str(error)


# --- Values that cannot travel -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kinds"), [(threading.Lock(), (TypeError, PicklingError)), (Refuses(), PicklingError)]
)
def test_an_argument_that_does_not_pickle_fails_its_job_alone(pool: Executor, value: Any, kinds: Any) -> None:
    before, bad, after = pool.submit(square, 2), pool.submit(id, value), pool.submit(square, 3)
    assert isinstance(bad.exception(WAIT_S), kinds)
    assert (before.result(WAIT_S), after.result(WAIT_S)) == (4, 9)
    assert pool.submit(square, 4).result(WAIT_S) == 16


def test_the_traceback_says_why_an_argument_did_not_pickle(pool: Executor) -> None:
    told = "".join(traceback.format_exception(error_of(pool, id, Refuses())))
    assert "it refuses to travel" in told
    assert "in __reduce__" in told


def test_an_argument_that_does_not_pickle_holds_no_others(pool: Executor) -> None:
    thing = Thing()
    watched = weakref.ref(thing)
    good, bad = pool.submit(type, thing), pool.submit(id, Refuses())
    del thing
    assert good.result(WAIT_S) is Thing
    assert type(bad.exception(WAIT_S)) is PicklingError
    until(lambda: gc.collect() >= 0 and watched() is None, "the argument of the other job is let go")


def test_a_keyword_that_does_not_pickle_fails_its_job_alone(pool: Executor) -> None:
    bad = pool.submit(dict, key=Refuses())
    assert type(bad.exception(WAIT_S)) is PicklingError
    assert pool.submit(square, 4).result(WAIT_S) == 16


@pytest.mark.parametrize(("made", "kinds"), [(threading.Lock, (TypeError, PicklingError)), (Refuses, PicklingError)])
@pytest.mark.covers("R1", "P14")
def test_a_result_that_does_not_pickle_fails_its_job_alone(pool: Executor, made: Any, kinds: Any) -> None:
    before, bad, after = pool.submit(square, 2), pool.submit(made_by, made), pool.submit(square, 3)
    assert isinstance(bad.exception(WAIT_S), kinds)
    assert (before.result(WAIT_S), after.result(WAIT_S)) == (4, 9)
    assert pool.submit(square, 4).result(WAIT_S) == 16


def test_a_result_that_leaves_while_it_is_pickled_gives_its_code(pool: Executor) -> None:
    error = error_of(pool, made_by, LeavesItsPickler)
    assert isinstance(error, SystemExit)
    assert error.code == 5
    assert pool.submit(square, 4).result(WAIT_S) == 16


@pytest.mark.parametrize(
    ("call", "args"),
    [
        (id, (Unreadable(),)),
        (id, (KillsItsReader(),)),
        (made_by, (Unreadable,)),
        (made_by, (KillsItsPickler,)),
        (leave, (1,)),
        (kill_myself, (signal.SIGKILL,)),
    ],
    ids=["unreadable input", "deadly input", "unreadable result", "deadly result", "exit", "kill"],
)
def test_what_breaks_a_worker_or_the_way_back_is_called_a_broken_pool(
    make: Make, call: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    error = error_of(make(1), call, *args)
    assert isinstance(error, BrokenProcessPool)


def test_a_crash_after_shutdown_was_called_does_not_hang(make: Make) -> None:
    executor = make(1)
    future = executor.submit(kill_myself, signal.SIGKILL)
    executor.shutdown()
    assert isinstance(future.exception(0), BrokenProcessPool)


def test_a_crash_with_a_large_input_does_not_hang(kind: str, make: Make) -> None:
    if kind == "standard" and sys.version_info < (3, 11, 7):
        pytest.skip("the standard library may hang here: github.com/python/cpython/issues/94777")
    executor = make(2)
    futures = [executor.submit(kill_myself, signal.SIGKILL, b"x" * (1 << 20)) for _ in range(6)]
    errors = [future.exception(WAIT_S) for future in futures]
    assert [error for error in errors if not isinstance(error, BrokenProcessPool)] == []


# --- The initializer ---------------------------------------------------------------------------------------------


def test_every_worker_is_initialized_before_its_first_job(make: Make) -> None:
    executor = make(2, initializer=remember, initargs=("ready", 3))
    futures = [executor.submit(remembered) for _ in range(20)]
    assert [future.result(WAIT_S) for future in futures] == [["ready", 3]] * 20


def test_an_initializer_runs_once_a_worker(make: Make, tmp_path: Path) -> None:
    executor = make(1, initializer=note, initargs=(tmp_path / "starts", "started"))
    assert [executor.submit(square, x).result(WAIT_S) for x in range(5)] == [0, 1, 4, 9, 16]
    assert notes(tmp_path / "starts") == ["started"]


def test_an_initializer_must_be_callable(make: Any) -> None:
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make(1, initializer="no function")


def test_an_initializer_that_raises_breaks_the_pool(make: Make) -> None:
    executor = make(2, initializer=fail, initargs=(ValueError, "no start"))
    pending = [executor.submit(square, 2)]
    try:
        pending += [executor.submit(square, x) for x in range(4)]
    except BrokenProcessPool:
        pass  # It may be broken by now.
    errors = [future.exception(WAIT_S) for future in pending]
    assert [error for error in errors if not isinstance(error, BrokenProcessPool)] == []

    def is_refused() -> bool:
        try:
            executor.submit(square, 2)
        except BrokenProcessPool:
            return True
        return False

    until(is_refused, "submit says that the pool is broken")
    executor.shutdown()
    with pytest.raises(BrokenProcessPool):
        executor.submit(square, 2)
