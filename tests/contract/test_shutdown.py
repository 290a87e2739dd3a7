"""`shutdown`, and what an executor leaves behind. Both executors must agree."""

import gc
import os
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.commands import dead, until
from tests.contract.calls import WAIT_S, Door, nap, note, notes, square
from tests.contract.executors import KINDS, Make


def test_nothing_can_be_submitted_afterwards(make: Make) -> None:
    executor = make(1)
    assert executor.submit(square, 2).result(WAIT_S) == 4
    executor.shutdown()
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.submit(square, 2)
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.map(square, [2])
    executor.shutdown()  # Once more is no error.
    executor.shutdown(wait=False, cancel_futures=True)


def test_an_unused_executor_shuts_down(make: Make) -> None:
    make(2).shutdown()
    with make(2):
        pass
    executor = make(2)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 2)


def test_it_waits_for_every_job(make: Make) -> None:
    executor = make(2)
    futures = [executor.submit(nap, 0.01, x) for x in range(40)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == list(range(40))


def test_results_of_map_can_be_read_afterwards(make: Make) -> None:
    executor = make(2)
    found = executor.map(square, range(20))
    executor.shutdown()
    assert list(found) == [x * x for x in range(20)]


def test_a_with_statement_shuts_down(make: Make) -> None:
    with make(2) as executor:
        futures = [executor.submit(square, x) for x in range(20)]
        pid = executor.submit(os.getpid)
    assert [future.result(0) for future in futures] == [x * x for x in range(20)]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 2)
    until(lambda: dead(pid.result(0)), "the worker is gone")


def test_an_error_in_a_with_statement_comes_out_of_it_after_the_jobs(make: Make) -> None:
    futures = []

    def fail_within() -> None:
        with make(1) as executor:
            futures.append(executor.submit(nap, 0.05, "done"))
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail_within()
    assert futures[0].result(0) == "done"


def test_without_waiting_the_jobs_run_all_the_same(make: Make, door: Door) -> None:
    executor = make(1)
    futures = [executor.submit(door.enter, x) for x in range(5)]
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 2)
    door.open()
    assert [future.result(WAIT_S) for future in futures] == list(range(5))


def test_jobs_that_have_not_begun_can_be_cancelled(make: Make) -> None:
    executor = make(4)
    futures = [executor.submit(nap, 0.05, x) for x in range(50)]
    executor.shutdown(cancel_futures=True)
    ran = {x: future for x, future in enumerate(futures) if not future.cancelled()}
    assert len(ran) < 30
    assert {x: future.result(0) for x, future in ran.items()} == {x: x for x in ran}


def test_what_runs_is_not_cancelled(make: Make, door: Door, tmp_path: Path) -> None:
    executor = make(1)
    first = executor.submit(door.enter, "first")
    until(door.came, "the first job runs")
    rest = [executor.submit(note, tmp_path / "ran", x) for x in range(30)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert not first.cancelled()
    door.open()
    assert first.result(WAIT_S) == "first"
    # Not wait(): the standard library leaves it waiting for futures that a shutdown has cancelled.
    until(lambda: all(future.done() for future in rest), "every future is done")
    assert notes(tmp_path / "ran") == [str(x) for x, future in enumerate(rest) if not future.cancelled()]
    assert rest[-1].cancelled()


def test_a_job_cancelled_just_before_does_not_hang_it(kind: str, make: Make) -> None:
    if kind == "standard" and sys.version_info < (3, 11, 7):
        pytest.skip("the standard library may hang here: github.com/python/cpython/issues/94440")
    executor = make(1)
    assert executor.submit(square, 1).result(WAIT_S) == 1
    last = executor.submit(square, 2)
    is_cancelled = last.cancel()
    ended = threading.Thread(target=executor.shutdown)
    ended.start()
    ended.join(WAIT_S)
    assert not ended.is_alive()
    assert last.cancelled() if is_cancelled else last.result(0) == 4


def test_every_future_that_was_given_is_done_when_others_shut_down(make: Make) -> None:
    executor = make(2)
    given: list[Future[int]] = []
    is_refused = threading.Event()

    def submit_until_refused() -> None:
        try:
            while True:
                given.append(executor.submit(square, len(given)))
        except RuntimeError:
            is_refused.set()

    submitting = threading.Thread(target=submit_until_refused)
    submitting.start()
    until(lambda: len(given) > 100, "some jobs were submitted")
    executor.shutdown()
    submitting.join(WAIT_S)
    assert is_refused.is_set()
    assert [future.result(0) for future in given] == [x * x for x in range(len(given))]


def test_an_executor_nobody_holds_finishes_its_jobs_and_ends(kind: str) -> None:
    executor = KINDS[kind](2)
    pid = executor.submit(os.getpid).result(WAIT_S)
    found = executor.map(square, range(20))
    del executor
    gc.collect()
    assert list(found) == [x * x for x in range(20)]
    until(lambda: dead(pid), "the worker is gone")


def test_no_thread_is_left(make: Make) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with make(1) as executor:
            assert executor.submit(square, 3).result(WAIT_S) == 9
    until(lambda: not [each for each in set(threading.enumerate()) - before if each.is_alive()], "no thread is left")


def test_no_descriptor_is_left(make: Make) -> None:
    def run_one() -> int:
        with make(1) as executor:
            assert executor.submit(square, 3).result(WAIT_S) == 9
        del executor
        gc.collect()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (names are enough)

    run_one()  # What is opened once and kept, such as a server to fork from.
    before = run_one()
    until(lambda: run_one() <= before, "no descriptor is left")


def test_two_executors_do_not_meet(make: Make, door: Door) -> None:
    first, second = make(1), make(1)
    slow = first.submit(door.enter, "first")
    until(door.came, "the first one is busy")
    assert second.submit(square, 3).result(WAIT_S) == 9
    second.shutdown()
    assert not slow.done()
    door.open()
    assert slow.result(WAIT_S) == "first"
    assert first.submit(square, 4).result(WAIT_S) == 16
