"""An executor behind an event loop, as a web application has one: what it is handed never holds up the loop.

Two cores that others use as well make gaps of their own, so a measurement is made again, and the best one counts:
what batchd does itself, it does each time. That nothing waits in the loop is counted in
tests/faces/test_async_client.py.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from time import perf_counter, thread_time
from typing import Any, Final, NamedTuple

import pytest

import batchd
from tests.commands import until
from tests.contract.calls import WAIT_S, Door, fail, kill_myself, square

TICK_S: Final = 0.001
GAP_S_MAX: Final = 0.1
ATTEMPTS: Final = 10

HandOff = Callable[[batchd.Executor, Callable[..., Any], Any], Awaitable[Any]]


class Gaps(NamedTuple):
    """How long the loop was kept from going on."""

    p99_s: float
    longest_s: float


async def measured(work: Awaitable[Any]) -> Gaps:
    """Tick every millisecond while the work is done."""
    gaps: list[float] = []

    async def tick() -> None:
        before = perf_counter()
        while True:
            await asyncio.sleep(TICK_S)
            now = perf_counter()
            gaps.append(now - before)
            before = now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(5 * TICK_S)
    gaps.clear()
    await work
    await asyncio.sleep(5 * TICK_S)  # What the last results cost counts too.
    ticker.cancel()
    gaps.sort()
    return Gaps(gaps[int(0.99 * (len(gaps) - 1))], gaps[-1])


def best_of(attempt: Callable[[], Awaitable[Any]]) -> Gaps:
    """Return the gaps of the quietest attempt."""
    found = []
    for _ in range(ATTEMPTS):
        found.append(asyncio.run(measured(attempt())))
        if found[-1].longest_s < GAP_S_MAX / 2:
            break
    return min(found, key=lambda gaps: gaps.longest_s)


def through_the_loop(executor: batchd.Executor, fn: Callable[..., Any], item: Any) -> Awaitable[Any]:
    return asyncio.get_running_loop().run_in_executor(executor, fn, item)


def through_a_future(executor: batchd.Executor, fn: Callable[..., Any], item: Any) -> Awaitable[Any]:
    return asyncio.wrap_future(executor.submit(fn, item))


@pytest.fixture(scope="module")
def executor() -> Iterator[batchd.Executor]:
    with batchd.Executor(2) as made:
        made.submit(square, 1).result(WAIT_S)
        yield made


# --- The loop goes on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand_off", [through_the_loop, through_a_future])
def test_the_loop_goes_on_while_requests_hand_off_their_work(hand_off: HandOff, executor: batchd.Executor) -> None:
    async def application() -> None:
        requests = []
        for x in range(300):
            requests.append(asyncio.ensure_future(hand_off(executor, square, x)))
            if x % 5 == 0:
                await asyncio.sleep(2 * TICK_S)
        assert await asyncio.gather(*requests) == [x * x for x in range(300)]

    gaps = best_of(application)
    assert gaps.longest_s < GAP_S_MAX
    assert gaps.p99_s < GAP_S_MAX / 2


def test_handing_off_costs_the_loop_little(executor: batchd.Executor) -> None:
    async def burst() -> float:
        began = thread_time()
        waiting = [through_the_loop(executor, square, x) for x in range(500)]
        spent_s = thread_time() - began
        assert await asyncio.gather(*waiting) == [x * x for x in range(500)]
        return spent_s / len(waiting)

    assert min(asyncio.run(burst()) for _ in range(ATTEMPTS)) < 0.001


def test_the_loop_goes_on_while_the_first_job_starts_everything() -> None:
    async def application() -> None:
        with batchd.Executor(1) as executor:
            assert await through_the_loop(executor, square, 3) == 9
            began.append(perf_counter())

    began: list[float] = []
    assert best_of(application).longest_s < GAP_S_MAX
    assert began


def test_the_loop_goes_on_while_large_values_come_and_go(executor: batchd.Executor) -> None:
    async def application() -> None:
        found = await asyncio.gather(*(through_the_loop(executor, bytes, 1 << 20) for _ in range(20)))
        assert {len(each) for each in found} == {1 << 20}

    assert best_of(application).longest_s < GAP_S_MAX


def test_cancelled_tasks_do_not_hold_up_the_loop_and_do_not_run(executor: batchd.Executor, door: Door) -> None:
    calls: list[Future[Any]] = []

    async def application() -> None:
        made = [executor.submit(door.enter, x) for x in range(200)]
        tasks = [asyncio.wrap_future(call) for call in made]
        await asyncio.sleep(20 * TICK_S)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in found)
        calls.extend(made)

    assert best_of(application).longest_s < GAP_S_MAX
    until(lambda: sum(not call.cancelled() for call in calls) <= 2, "those that no worker has begun are cancelled")
    door.open()
    assert executor.submit(square, 3).result(WAIT_S) == 9
    assert len(door.came()) == sum(not call.cancelled() for call in calls)


def test_what_takes_too_long_is_let_go_of(executor: batchd.Executor, door: Door) -> None:
    async def application() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(through_the_loop(executor, door.enter, 1), 0.2)
        door.open()
        result: int = await through_the_loop(executor, square, 3)
        return result

    assert asyncio.run(application()) == 9
    until(door.came, "what ran goes on to its end")


# --- What comes back ---------------------------------------------------------------------------------------------


def test_errors_arrive_where_they_are_awaited(executor: batchd.Executor) -> None:
    async def application() -> None:
        with pytest.raises(ValueError, match="no such colour"):
            await asyncio.get_running_loop().run_in_executor(executor, fail, ValueError, "no such colour")
        with pytest.raises(batchd.JobCrashed, match="killed by SIGKILL"):
            await through_the_loop(executor, kill_myself, signal.SIGKILL)
        assert await through_the_loop(executor, square, 3) == 9

    asyncio.run(application())


def test_results_may_be_taken_as_they_come(executor: batchd.Executor, door: Door) -> None:
    async def application() -> list[int]:
        calls = [through_the_loop(executor, door.pass_through, 1), through_the_loop(executor, square, 3)]
        found = []
        for each in asyncio.as_completed(calls):
            found.append(await each)
            door.open()
        return found

    assert asyncio.run(application()) == [9, 1]


def test_a_group_of_tasks_fails_together(executor: batchd.Executor) -> None:
    async def application() -> None:
        async def call(fn: Callable[..., Any], *args: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(executor, fn, *args)

        async def calls() -> None:
            async with asyncio.TaskGroup() as group:
                assert await group.create_task(call(square, 3)) == 9
                group.create_task(call(fail, KeyError, "mauve"))

        with pytest.raises(ExceptionGroup) as caught:
            await calls()
        assert [type(each) for each in caught.value.exceptions] == [KeyError]

    asyncio.run(application())


def test_a_loop_may_end_while_its_jobs_run(executor: batchd.Executor, door: Door) -> None:
    async def application() -> None:
        through_the_loop(executor, door.enter, 1)
        await asyncio.to_thread(until, door.came, "it runs")

    asyncio.run(application())
    door.open()
    assert executor.submit(square, 4).result(WAIT_S) == 16
