"""The futures: waiting, cancelling, callbacks, asyncio. Both executors must agree."""

import asyncio
import logging
import os
import queue
import threading
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    as_completed,
    wait,
)
from pathlib import Path
from typing import Any

import pytest

from tests.commands import until
from tests.contract.calls import WAIT_S, Door, fail, note, notes, square
from tests.contract.executors import Make


def held(executor: Executor, door: Door, word: str = "held") -> "Future[Any]":
    """Return the future of a job that waits at the door."""
    future = executor.submit(door.enter, word)
    until(lambda: word in door.came(), "the job waits at the door")
    return future


# --- wait and as_completed ---------------------------------------------------------------------------------------


def test_wait_for_all(pool: Executor) -> None:
    futures = [pool.submit(square, x) for x in range(10)] + [pool.submit(fail, ValueError)]
    done, waiting = wait(futures, timeout=WAIT_S, return_when=ALL_COMPLETED)
    assert (done, waiting) == (set(futures), set())


def test_wait_for_the_same_future_twice(pool: Executor) -> None:
    future = pool.submit(square, 2)
    assert wait([future, future], timeout=WAIT_S) == ({future}, set())


def test_wait_for_the_first(pool: Executor, door: Door) -> None:
    slow = held(pool, door)
    quick = pool.submit(square, 3)
    assert wait([slow, quick], timeout=WAIT_S, return_when=FIRST_COMPLETED) == ({quick}, {slow})


def test_wait_for_the_first_error(pool: Executor, door: Door) -> None:
    slow = held(pool, door)
    good = pool.submit(square, 3)
    good.result(WAIT_S)
    bad = pool.submit(fail, ValueError)
    done, waiting = wait([slow, good, bad], timeout=WAIT_S, return_when=FIRST_EXCEPTION)
    assert (done, waiting) == ({good, bad}, {slow})


def test_wait_gives_up_in_time(pool: Executor, door: Door) -> None:
    slow = held(pool, door)
    assert wait([slow], timeout=0.05) == (set(), {slow})
    with pytest.raises(TimeoutError):
        slow.result(0.05)
    with pytest.raises(TimeoutError):
        slow.exception(0)
    door.open()
    assert slow.result(WAIT_S) == "held"


def test_as_completed_gives_each_as_it_is_done(pool: Executor, door: Door) -> None:
    slow = held(pool, door)
    quick = [pool.submit(square, x) for x in range(5)]
    each = as_completed([slow, *quick, *quick], timeout=WAIT_S)
    assert {next(each) for _ in quick} == set(quick)
    door.open()
    assert list(each) == [slow]


def test_as_completed_gives_up_in_time(pool: Executor, door: Door) -> None:
    slow, quick = held(pool, door), pool.submit(square, 3)
    quick.result(WAIT_S)
    found = []
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        found += list(as_completed([slow, quick], timeout=0.05))
    assert found == []


# --- Running and cancelling --------------------------------------------------------------------------------------


def test_a_running_job_says_so_and_cannot_be_cancelled(pool: Executor, door: Door) -> None:
    future = held(pool, door)
    until(future.running, "the future says that its job runs")
    assert not future.done()
    assert not future.cancel()
    assert not future.cancelled()
    door.open()
    assert future.result(WAIT_S) == "held"
    assert not future.running()
    assert not future.cancel()


def test_cancelled_means_that_it_will_not_run(make: Make, door: Door, tmp_path: Path) -> None:
    executor = make(1)
    first = held(executor, door)
    rest = {x: executor.submit(note, tmp_path / "ran", x) for x in range(30)}
    cancelled = {x for x, future in rest.items() if x % 3 and future.cancel()}
    assert not first.cancel()
    assert len(cancelled) > 10
    assert [rest[x].cancelled() and rest[x].done() and not rest[x].running() for x in cancelled] == [True] * len(
        cancelled
    )
    assert rest[max(cancelled)].cancel()  # Once more is no error.
    door.open()
    executor.shutdown()
    assert notes(tmp_path / "ran") == [str(x) for x in rest if x not in cancelled]
    for x in cancelled:
        with pytest.raises(CancelledError):
            rest[x].result(0)


def test_a_job_cancelled_at_once_never_runs(pool: Executor, tmp_path: Path) -> None:
    futures = {x: pool.submit(note, tmp_path / "ran", x) for x in range(200)}
    cancelled = {x for x, future in futures.items() if future.cancel()}
    for x in futures.keys() - cancelled:
        futures[x].result(WAIT_S)
    pool.submit(square, 2).result(WAIT_S)
    assert sorted(map(int, notes(tmp_path / "ran"))) == sorted(futures.keys() - cancelled)


def test_waiting_for_cancelled_jobs_ends(make: Make, door: Door) -> None:
    executor = make(1)
    first = held(executor, door)
    rest = [executor.submit(square, x) for x in range(10)]
    assert rest[-1].cancel()
    threading.Timer(0.05, door.open).start()
    assert wait([first, *rest], timeout=WAIT_S) == ({first, *rest}, set())
    assert set(as_completed([first, *rest], timeout=WAIT_S)) == {first, *rest}
    assert [future.result(WAIT_S) for future in rest[:-1]] == [x * x for x in range(9)]


# --- Callbacks ---------------------------------------------------------------------------------------------------


def test_a_callback_runs_once_here_with_its_future(pool: Executor) -> None:
    heard: queue.Queue[tuple[int, Future[Any]]] = queue.Queue()
    good, bad = pool.submit(square, 3), pool.submit(fail, ValueError)
    for future in (good, bad):
        future.add_done_callback(lambda future: heard.put((os.getpid(), future)))
    found = [heard.get(timeout=WAIT_S) for _ in range(2)]
    assert {pid for pid, _ in found} == {os.getpid()}
    assert {future for _, future in found} == {good, bad}
    pool.submit(square, 3).result(WAIT_S)
    assert heard.empty()


def test_a_callback_on_a_finished_future_runs_at_once(pool: Executor) -> None:
    future = pool.submit(square, 3)
    future.result(WAIT_S)
    heard: list[Any] = []
    future.add_done_callback(lambda future: heard.append(future.result()))
    assert heard == [9]


def test_a_callback_hears_of_a_cancel(make: Make, door: Door) -> None:
    executor = make(1)
    held(executor, door)
    last = [executor.submit(square, x) for x in range(10)][-1]
    heard: list[bool] = []
    last.add_done_callback(lambda future: heard.append(future.cancelled()))
    assert last.cancel()
    assert heard == [True]
    door.open()
    executor.shutdown()
    assert heard == [True]


def test_a_callback_that_raises_is_logged_and_harms_nobody(
    pool: Executor, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    heard = threading.Event()
    future = held(pool, door)
    future.add_done_callback(lambda _: fail(ValueError, "a callback that raises"))
    future.add_done_callback(lambda _: heard.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        door.open()
        assert heard.wait(WAIT_S)
    assert "a callback that raises" in caplog.text
    assert pool.submit(square, 3).result(WAIT_S) == 9


def test_callbacks_may_submit(pool: Executor) -> None:
    ended: queue.Queue[int] = queue.Queue()

    def go_on(future: "Future[int]") -> None:
        if future.result() < 25:
            pool.submit(int.__add__, future.result(), 1).add_done_callback(go_on)
        else:
            ended.put(future.result())

    pool.submit(int, 0).add_done_callback(go_on)
    assert ended.get(timeout=WAIT_S) == 25


def test_a_callback_may_cancel_others_and_is_told_the_truth(make: Make, door: Door, tmp_path: Path) -> None:
    executor = make(1)
    (tmp_path / "second").mkdir()
    second = Door(tmp_path / "second")
    first = held(executor, door)
    rest = [executor.submit(second.enter, x) for x in range(20)]
    told: queue.Queue[list[bool]] = queue.Queue()
    first.add_done_callback(lambda _: told.put([future.cancel() for future in rest]))
    door.open()
    answers = told.get(timeout=WAIT_S)
    second.open()
    executor.shutdown()
    assert [future.cancelled() for future in rest] == answers
    assert second.came() == [str(x) for x, is_cancelled in enumerate(answers) if not is_cancelled]
    assert answers[-1]


# --- asyncio -----------------------------------------------------------------------------------------------------


def test_asyncio_runs_jobs_in_it(pool: Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(pool, square, x) for x in range(50))))

    assert asyncio.run(main()) == [x * x for x in range(50)]


def test_asyncio_awaits_a_future(pool: Executor) -> None:
    async def main() -> int:
        with pytest.raises(ValueError, match="no"):
            await asyncio.wrap_future(pool.submit(fail, ValueError, "no"))
        return await asyncio.wrap_future(pool.submit(square, 3))

    assert asyncio.run(main()) == 9


def test_asyncio_gives_up_and_cancels_what_has_not_begun(make: Make, door: Door) -> None:
    executor = make(1)
    first = held(executor, door)
    rest = [executor.submit(square, x) for x in range(10)]

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(rest[-1]), 0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(first), 0.05)

    asyncio.run(main())
    until(rest[-1].cancelled, "the supervisor has said so")  # In a coroutine nobody waits for that.
    assert not first.done()
    door.open()
    assert first.result(WAIT_S) == "held"
    assert [future.result(WAIT_S) for future in rest[:-1]] == [x * x for x in range(9)]
