"""A job that ends its worker fails alone, at once, and says how. The standard library gives up the whole pool."""

import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import batchd
from tests.commands import dead, until
from tests.contract.calls import (
    WAIT_S,
    Door,
    KillsItsPickler,
    KillsItsReader,
    Unreadable,
    crash_elsewhere,
    fail,
    kill_myself,
    leave,
    made_by,
    note_and_read_null,
    notes,
    read_null,
    run_nonsense,
    sign_and_end,
    square,
    square_or_crash,
    survive_from,
)
from tests.fault.ledger import Tally


@pytest.fixture
def executor(make_ours: Any) -> Any:
    """One worker: whoever dies, the next job needs another."""
    return make_ours(1)


def crash_of(executor: Executor, call: Callable[..., Any], *args: Any) -> Any:
    """Return what a job that ends its worker is told to have done."""
    error = executor.submit(call, *args).exception(WAIT_S)
    assert isinstance(error, batchd.JobCrashed)
    return error


@pytest.mark.parametrize(
    ("end", "args", "number", "code"),
    [
        (leave, (3,), None, 3),
        (leave, (0,), None, 0),
        (kill_myself, (signal.SIGKILL,), signal.SIGKILL, None),
        (kill_myself, (signal.SIGTERM,), signal.SIGTERM, None),
        (read_null, (), signal.SIGSEGV, None),
        (run_nonsense, (), signal.SIGILL, None),
        (os.abort, (), signal.SIGABRT, None),
    ],
    ids=["exit 3", "exit 0", "SIGKILL", "SIGTERM", "SIGSEGV", "SIGILL", "abort"],
)
@pytest.mark.covers("W4", "W5", "P4")
def test_a_crash_is_told_exactly(
    executor: Executor, tmp_path: Path, end: Any, args: tuple[Any, ...], number: int | None, code: int | None
) -> None:
    before = executor.submit(square, 2)
    error = crash_of(executor, sign_and_end, str(tmp_path / "signed"), end, *args)
    after = executor.submit(square, 3)

    assert issubclass(type(error), BrokenProcessPool)
    assert (before.result(WAIT_S), after.result(WAIT_S)) == (4, 9)
    assert len(notes(tmp_path / "signed")) == 1  # Not run again.
    pid, batch, index, attempt = notes(tmp_path / "signed")[0].split()
    assert (error.pid, error.batch) == (int(pid), batch)
    assert (error.index, error.attempt) == (int(index), int(attempt))
    assert error.attempt == 1
    assert error.signal == number
    if code is not None:
        assert error.exitcode == code
    assert "the last words" in error.output


def test_the_message_names_the_end(executor: Executor) -> None:
    assert "SIGKILL" in str(crash_of(executor, kill_myself, signal.SIGKILL))
    assert "7" in str(crash_of(executor, leave, 7))


def test_a_crash_can_be_passed_on(executor: Executor) -> None:
    error = crash_of(executor, leave, 3)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is batchd.JobCrashed
    assert (str(copy), copy.exitcode, copy.pid, copy.index) == (str(error), 3, error.pid, error.index)


@pytest.mark.covers("P28")
def test_a_crash_in_an_executor_within_a_job_comes_out(executor: Executor) -> None:
    error = executor.submit(crash_elsewhere).exception(WAIT_S)
    assert isinstance(error, batchd.JobCrashed)
    assert error.signal == signal.SIGKILL
    assert executor.submit(square, 3).result(WAIT_S) == 9


@pytest.mark.covers("P1")
def test_neighbours_of_a_crash_all_have_their_results(make_ours: Any, tmp_path: Path) -> None:
    executor = make_ours(2)
    jobs = {x: executor.submit(square_or_crash, x, 50, str(tmp_path / "crashed")) for x in range(100)}
    errors = {x: type(error) for x, job in jobs.items() if (error := job.exception(WAIT_S))}
    assert errors == {50: batchd.JobCrashed}
    assert [job.result(0) for x, job in jobs.items() if x != 50] == [x * x for x in jobs if x != 50]
    assert notes(tmp_path / "crashed") == ["50"]


def test_a_job_in_another_worker_hears_nothing_of_a_crash(make_ours: Any, door: Door) -> None:
    executor = make_ours(2)
    slow = executor.submit(door.enter, "slow")
    until(door.came, "the slow job runs")
    crash_of(executor, kill_myself, signal.SIGKILL)
    assert not slow.done()
    door.open()
    assert slow.result(WAIT_S) == "slow"
    assert door.came() == ["slow"]


def test_a_dozen_crashes_do_not_end_the_executor(executor: Executor) -> None:
    jobs = [executor.submit(leave, 3) for _ in range(12)] + [executor.submit(square, 3)]
    assert [type(job.exception(WAIT_S)) for job in jobs] == [batchd.JobCrashed] * 12 + [type(None)]
    assert jobs[-1].result(0) == 9


def test_a_worker_killed_from_outside_costs_the_job_it_ran(executor: Executor, door: Door) -> None:
    pid = executor.submit(os.getpid).result(WAIT_S)
    job = executor.submit(door.enter)
    until(door.came, "the job runs")
    os.kill(pid, signal.SIGKILL)
    error = job.exception(WAIT_S)
    assert isinstance(error, batchd.JobCrashed)
    assert (error.signal, error.pid) == (signal.SIGKILL, pid)
    assert executor.submit(square, 3).result(WAIT_S) == 9


@pytest.mark.covers("W3")
def test_an_idle_worker_killed_from_outside_costs_nothing(executor: Executor) -> None:
    pid = executor.submit(os.getpid).result(WAIT_S)
    os.kill(pid, signal.SIGKILL)
    until(lambda: dead(pid), "the worker is dead")
    assert executor.submit(square, 3).result(WAIT_S) == 9


def test_map_raises_a_crash_at_its_place(executor: Executor, tmp_path: Path) -> None:
    found = executor.map(square_or_crash, range(1, 5), [3] * 4, [str(tmp_path / "crashed")] * 4)
    assert (next(found), next(found)) == (1, 4)
    with pytest.raises(batchd.JobCrashed):
        next(found)


@pytest.mark.parametrize(
    ("call", "args"),
    [(id, (KillsItsReader(),)), (made_by, (KillsItsPickler,))],
    ids=["its input is read", "its result is written"],
)
@pytest.mark.covers("I2", "R1", "P14")
def test_a_crash_while_a_value_travels_is_the_jobs(executor: Executor, call: Any, args: tuple[Any, ...]) -> None:
    assert crash_of(executor, call, *args).signal == signal.SIGKILL
    assert executor.submit(square, 3).result(WAIT_S) == 9


@pytest.mark.parametrize(
    ("call", "args"), [(id, (Unreadable(),)), (made_by, (Unreadable,))], ids=["an input", "a result"]
)
@pytest.mark.covers("I1", "P14")
def test_a_value_that_does_not_read_back_fails_its_job_alone(
    executor: Executor, call: Any, args: tuple[Any, ...]
) -> None:
    before, bad, after = executor.submit(square, 2), executor.submit(call, *args), executor.submit(square, 3)
    error = bad.exception(WAIT_S)
    assert error is not None
    assert "cannot be read back" in f"{error} {error.__cause__}"
    assert (before.result(WAIT_S), after.result(WAIT_S)) == (4, 9)


@pytest.mark.covers("W13", "P6")
def test_an_initializer_that_raises_is_named(make_ours: Any) -> None:
    error = make_ours(1, initializer=fail, initargs=(ValueError, "no start")).submit(square, 2).exception(WAIT_S)
    assert isinstance(error, BrokenProcessPool)
    assert "no start" in f"{error} {error.__cause__}"


class PickledWhenDue:
    """An argument that keeps an executor from its first call until a test says so."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.is_due = threading.Event()
        self._error = error

    def __reduce__(self) -> Any:
        self.is_due.wait(WAIT_S)
        if self._error is not None:
            raise self._error
        return str, ()


class EndsItsPickler:
    """Leaves, where it is to be pickled."""

    def __reduce__(self) -> Any:
        raise SystemExit("it leaves")


def test_calls_of_an_executor_that_breaks_are_all_told_though_one_cancels_the_rest(make_ours: Any) -> None:
    argument = PickledWhenDue(TypeError("it does not pickle"))
    executor = make_ours(1, initializer=str, initargs=(argument,))
    first, second, *others = [executor.submit(square, number) for number in range(4)]
    answers: list[bool] = []
    first.add_done_callback(lambda _: answers.append(second.cancel()))
    argument.is_due.set()
    assert not wait([first, second, *others], WAIT_S).not_done
    assert (answers, second.cancelled()) == ([True], True)
    for call in (first, *others):
        with pytest.raises(BrokenProcessPool, match="it does not pickle"):
            call.result()


def test_calls_that_were_about_to_be_sent_are_told_what_ended_the_executor(make_ours: Any) -> None:
    """They were taken from the queue, and have no number yet: they are neither cancelled nor asked for."""
    argument = PickledWhenDue()
    executor = make_ours(1, initializer=str, initargs=(argument,))
    first, second = executor.submit(square, 1), executor.submit(square, EndsItsPickler())
    answers: list[bool] = []
    first.add_done_callback(lambda _: answers.append(second.cancel()))
    argument.is_due.set()
    for call in (first, second):
        with pytest.raises(BrokenProcessPool, match="it leaves"):
            call.result(WAIT_S)
    assert answers == [False]


@pytest.mark.covers("W13", "P6")
def test_an_initializer_that_dies_in_each_worker_is_given_up_after_few_starts(
    make_ours: Any, tmp_path: Path, tally: Tally
) -> None:
    """All workers may have begun before the first is seen to have died, and then each death starts one more."""
    starts = tmp_path / "starts"
    executor = make_ours(8, initializer=note_and_read_null, initargs=(str(starts),))
    jobs = [executor.submit(square, x) for x in range(20)]
    for job in jobs:
        error = job.exception(WAIT_S)
        assert isinstance(error, BrokenProcessPool)
        assert "workers keep dying without finishing a job: killed by SIGSEGV" in str(error)
    executor.shutdown()
    begun = len(notes(starts))
    assert 5 <= begun <= 8 + 5
    tally.injected(begun)
    tally.saw(f"{begun} starts of 8 workers")


# --- crashes_max -------------------------------------------------------------------------------------------------


def test_a_job_may_crash_more_often(make_ours: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "attempts")
    error = crash_of(make_ours(1, crashes_max=2), survive_from, path, 9, leave, 3)
    assert error.attempt == 2
    assert notes(path) == ["1", "2"]


def test_a_job_may_survive_a_crash(make_ours: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "attempts")
    job = make_ours(1, crashes_max=2).submit(survive_from, path, 2, kill_myself, signal.SIGKILL)
    assert job.result(WAIT_S) == 2
    assert notes(path) == ["1", "2"]
