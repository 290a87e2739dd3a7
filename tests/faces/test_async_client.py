"""`AsyncClient`: what it returned for is on disk, and the event loop goes on whatever is under way."""

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any, Self

import pytest

import batchd
from batchd.edge.lock import holder_of
from batchd.errors import BatchNotFound, ClientClosed, UsageError
from tests.bench import await_death
from tests.commands import Desk, until
from tests.contract.calls import WAIT_S, Door, fail, kill_myself, note, notes, square
from tests.faces.programs import Programs

MAY_WAIT = {
    *("accept", "connect", "recv", "recv_into", "recvmsg", "recvmsg_into", "send", "sendall", "sendmsg"),
    *("poll", "select", "sleep", "wait", "wait4", "waitid", "waitpid", "acquire"),
    *("begin", "commit", "copy", "sync", "fdatasync", "fsync", "flock", "lockf", "read", "write"),
}
"""Names of functions of C that may keep a thread waiting, the journal's among them."""
OWN = {"asyncio", "selectors"}
"""The event loop waits by itself, when nothing else is to be done."""
STARTS = {Thread.start.__code__, ThreadPoolExecutor.submit.__code__}


def half(x: int) -> int:
    if x % 2:
        raise ValueError("odd")
    return x // 2


def enter_last(item: tuple[Door, bool]) -> bool:
    door, is_last = item
    return bool(door.enter(is_last)) if is_last else is_last


class Watch:
    """Notes what may have kept this thread, which is the event loop's, from going on."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def __enter__(self) -> Self:
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_call(self, frame: FrameType, event: str, called: object) -> None:
        if event != "c_call" or getattr(called, "__name__", "") not in MAY_WAIT:
            return
        if not self._is_excused(frame):
            self.found.add(f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname} calls {called}")

    def _is_excused(self, frame: FrameType) -> bool:
        """Starting a thread and importing wait for nobody's work; the test of an idle thread does not wait at all."""
        if frame.f_globals["__name__"].partition(".")[0] in OWN:
            return True
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_code in STARTS or outer.f_globals["__name__"].startswith("importlib."):
                return True
            outer = outer.f_back
        return False


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


@pytest.mark.parametrize("is_used", [False, True])
def test_a_call_that_is_given_up_while_the_client_opens_leaves_nothing(desk: Desk, is_used: bool) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        client.submit(square, 2).result(WAIT_S)

    async def main() -> None:
        client = batchd.AsyncClient(desk.journal, workers=1)
        call = asyncio.create_task(client.batches())
        while client._making is None:
            await asyncio.wait([call], timeout=0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        if is_used:
            assert await (await client.submit(square, 3)).result() == 9
        await client.close()
        made = await client._making
        assert made is client._client
        assert made._queue._is_closing

    asyncio.run(main())


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
            batch = await client.submit_batch(half, range(10), name="n", seal=False, keep_going=True)
            assert await batch.add(range(10, 600)) == 590
            assert (batch.added, batch.skipped, await batch.name()) == (600, 0, "n")
            await batch.seal()
            standing = await batch.wait(WAIT_S)
            assert standing[:4] == (600, 600, 300, 300)
            assert await batch.progress() == standing
            found = await client.batch("n")
            assert (found.id, repr(found)) == (batch.id, f"<AsyncBatch {batch.id}>")
            assert [x async for x in found.results(on_error="skip")] == list(range(300))
            assert [group.count for group in await found.failures()] == [300]
            assert await found.retry() == 300
            assert (await found.wait()).failed == 300
            results = found.results()
            assert await anext(results) == 0
            with pytest.raises(batchd.JobFailed, match="odd"):
                await anext(results)
            await found.close()

    asyncio.run(main())


def test_results_come_while_the_batch_runs(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            batch = await client.submit_batch(enter_last, [(door, False)] * 3 + [(door, True)])
            results = batch.results()
            assert [await anext(results) for _ in range(3)] == [False] * 3
            last = asyncio.ensure_future(anext(results))
            await asyncio.to_thread(until, door.came, "the last runs")
            assert not last.done()
            door.open()
            assert await last is True
            with pytest.raises(StopAsyncIteration):
                await anext(results)

    asyncio.run(main())


def test_any_number_may_stop_waiting_for_a_batch(desk: Desk, tmp_path: Path) -> None:
    """More than there are threads, and nobody who comes later waits for those that were left."""
    door = Door(tmp_path)

    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            batch = await client.submit_batch(enter_last, [(door, True)])
            await asyncio.to_thread(until, door.came, "it runs")
            waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(batch.wait()) for _ in range(100)]
            waiting += [asyncio.ensure_future(anext(batch.results())) for _ in range(20)]
            with pytest.raises(TimeoutError):
                await batch.wait(0.05)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert all(task.cancelled() for task in waiting)
            assert (await batch.progress()).done == 0
            door.open()
            assert (await batch.wait(WAIT_S)).done == 1

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


def test_what_waits_for_a_job_when_the_client_is_closed_is_told(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            job = await client.submit(door.enter, 7)
            await asyncio.to_thread(until, door.came, "it runs")
            waiting = asyncio.create_task(job.result())
            behind = await client.submit(square, 3)
            await behind.cancel()
            await asyncio.to_thread(client._client.close, at_once=True)  # type: ignore[union-attr]
            with pytest.raises(ClientClosed, match=f"job {job.id} had an outcome"):
                await waiting
            assert job.done()
            with pytest.raises(batchd.JobCancelled, match=f"job {behind.id}: cancelled"):
                await behind.result()
            assert behind.done()

    asyncio.run(main())


def test_nothing_in_the_event_loop_waits(desk: Desk) -> None:
    """Counted, not timed: how long a wait takes says more of the machine than of batchd."""

    async def main() -> Watch:
        with Watch() as watch:
            async with batchd.AsyncClient(desk.journal, workers=2) as client:
                for _ in range(2):  # The first comes before anything is started.
                    jobs = await asyncio.gather(*(client.submit(square, x) for x in range(500)))
                    results = await asyncio.gather(*(job.result() for job in jobs))
                    assert results == [x * x for x in range(500)]
                assert (await client.job(jobs[3].id)).value == 9
                await client.batches()
                await jobs[3].cancel()
                batch = await client.submit_batch(square, range(100), seal=False)
                await batch.add(range(100))
                assert (await batch.wait(WAIT_S)).done == len([x async for x in batch.results()])
                await batch.retry(), await batch.progress(), await batch.failures()
                await batch.seal()
                await batch.cancel()
        return watch

    assert asyncio.run(main()).found == set()


def test_what_waits_in_the_event_loop_is_seen(desk: Desk) -> None:
    async def main() -> Watch:
        with batchd.Client(desk.journal, workers=1) as client, Watch() as watch:
            client.submit(square, 3).result(WAIT_S)
        return watch

    assert any("acquire" in found for found in asyncio.run(main()).found)


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
