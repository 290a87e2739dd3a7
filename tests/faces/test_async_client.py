"""`AsyncClient`: what it returned for is on disk, and the event loop goes on whatever is under way."""

import asyncio
import os
import signal
from pathlib import Path
from time import monotonic, process_time
from typing import Self

import pytest

import batchd
from batchd.edge.lock import holder_of
from batchd.errors import BatchNotFound, UsageError
from tests.bench import await_death
from tests.commands import Desk, until
from tests.contract.calls import WAIT_S, Door, fail, kill_myself, nap, note, notes, square
from tests.faces.programs import Programs

GAP_S_MAX = 0.1
"""Of this process's own work, which no other process delays."""
WALL_S_MAX = 0.5
"""Of all that goes by, on two cores that others use as well."""
ROUNDS = 3
"""The best of them counts: what blocks the loop does so in each."""


class Ticker:
    """Measures the longest time, of the process and of the clock, that the event loop was kept from going on."""

    def __init__(self) -> None:
        self.work_s = self.wall_s = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        before = process_time(), monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = process_time(), monotonic()
            self.work_s = max(self.work_s, now[0] - before[0])
            self.wall_s = max(self.wall_s, now[1] - before[1])
            before = now


def test_jobs_are_handed_over_and_results_come(desk: Desk) -> None:
    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=2) as client:
            job = await client.submit(pow, 2, 10)
            assert await job.result() == 1024
            assert job.done()
            assert repr(job) == f"<AsyncJob {job.batch}:0>"
            jobs = await asyncio.gather(*(client.submit(square, x) for x in range(50)))
            assert sorted(job.index for job in jobs) == list(range(1, 51))
            assert await asyncio.gather(*(job.result() for job in jobs)) == [x * x for x in range(50)]
            assert (await client.job(jobs[3].id)).value == 9
            assert [info.size for info in await client.batches()] == [51]

    asyncio.run(main())


def test_a_client_need_not_be_entered(desk: Desk) -> None:
    async def main() -> int:
        client = batchd.AsyncClient(desk.journal, workers=1)
        try:
            return int(await (await client.submit(square, 3)).result())
        finally:
            await client.close()
            await client.close()

    assert asyncio.run(main()) == 9


def test_exceptions_come_out(desk: Desk) -> None:
    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1, crashes_max=1) as client:
            job = await client.submit(fail, ValueError, "no such colour")
            with pytest.raises(ValueError, match="no such colour"):
                await job.result()
            crash = await client.submit(kill_myself, signal.SIGKILL)
            with pytest.raises(batchd.JobCrashed):
                await crash.result()
            with pytest.raises(TypeError, match="pickle"):
                await client.submit(square, (x for x in "generators do not pickle"))
            with pytest.raises(BatchNotFound):
                await client.batch("no such batch")

    asyncio.run(main())


def test_options_that_make_no_sense_are_refused(desk: Desk) -> None:
    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=0):
            pass

    with pytest.raises(UsageError):
        asyncio.run(main())


def test_batches(desk: Desk) -> None:
    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=2) as client:
            batch = await client.submit_batch(square, range(100), name="n")
            assert (await asyncio.to_thread(batch.wait, WAIT_S)).done == 100
            assert (await client.batch("n")).id == batch.id

    asyncio.run(main())


def test_who_stops_waiting_stops_no_job(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            job = await client.submit(door.enter, 7)
            waiting = asyncio.create_task(job.result())
            await asyncio.to_thread(until, door.came, "it runs")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(job.result(), 0.05)
            assert not job.done()
            door.open()
            assert await job.result() == 7

    asyncio.run(main())


def test_who_stops_handing_over_may_have_done_it(desk: Desk, ran: str) -> None:
    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            task = asyncio.create_task(client.submit(note, ran, "it ran"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await (await client.submit(square, 3)).result() == 9

    asyncio.run(main())
    assert len(notes(ran)) <= 1


def test_a_job_that_has_not_begun_may_be_cancelled(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            running, waiting = await client.submit(door.enter), await client.submit(square, 3)
            await asyncio.to_thread(until, door.came, "the first runs")
            assert await waiting.cancel()
            assert not await running.cancel()
            assert (await client.job(waiting.id)).state == "cancelled"
            door.open()
            await running.result()

    asyncio.run(main())


def test_the_event_loop_is_never_blocked(desk: Desk) -> None:
    async def hand_over(client: batchd.AsyncClient) -> Ticker:
        async with Ticker() as ticker:
            jobs = await asyncio.gather(*(client.submit(square, x) for x in range(2_000)))
            results = await asyncio.gather(*(job.result() for job in jobs))
        assert results == [x * x for x in range(2_000)]
        return ticker

    async def main() -> list[Ticker]:
        async with batchd.AsyncClient(desk.journal, workers=2) as client:
            return [await hand_over(client) for _ in range(ROUNDS)]

    assert_steady(asyncio.run(main()))


def assert_steady(rounds: list[Ticker]) -> None:
    assert min(ticker.work_s for ticker in rounds) < GAP_S_MAX
    assert min(ticker.wall_s for ticker in rounds) < WALL_S_MAX


def test_opening_and_closing_do_not_block_the_event_loop(desk: Desk) -> None:
    async def main() -> Ticker:
        async with Ticker() as ticker, batchd.AsyncClient(desk.journal, workers=1) as client:
            await (await client.submit(nap, 0.1)).result()
        return ticker

    assert_steady([asyncio.run(main()) for _ in range(2)])


@pytest.mark.fault
def test_what_was_handed_over_survives_the_death_of_everybody(programs: Programs) -> None:
    process = programs.start(
        """
import asyncio

async def main():
    client = batchd.AsyncClient(workers=1)
    jobs = await asyncio.gather(*(client.submit(nap, 60, x) for x in range(20)))
    print(*sorted(job.index for job in jobs), flush=True)
    signal.pause()

asyncio.run(main())
"""
    )
    assert process.stdout is not None
    indices = list(map(int, process.stdout.readline().split()))
    pid = int(holder_of(programs.journal)["pid"])
    os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    await_death(pid)
    assert indices == list(range(20))
    with batchd.Client(programs.journal, queue="another") as client:
        assert [(info.name, info.size, info.done) for info in client.batches()] == [("jobs", 20, 0)]
        assert client.job("jobs:19").state == "queued"


@pytest.mark.fault
def test_a_killed_supervisor_is_outlived(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            jobs = [await client.submit(door.enter, x) for x in range(3)]
            await asyncio.to_thread(until, door.came, "the first runs")
            pid = int(holder_of(desk.journal)["pid"])
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(await_death, pid)
            door.open()
            jobs += [await client.submit(square, 3)]
            assert await asyncio.gather(*(job.result() for job in jobs)) == [0, 1, 2, 9]

    asyncio.run(main())
