"""`AsyncClient`: what `Client` does, for asyncio applications: the event loop never waits for anything but its own.

Every call that may wait runs in a thread; what comes of it is given back a few pieces a turn of the loop.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Thread
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from batchd.application import BatchInfo, Client, Job, JobRecord, accepted, result_of
from batchd.asyncbatch import AsyncBatch, in_thread
from batchd.engine import JobFuture

_SLICE: Final = 200
"""Calls in one turn of an event loop: a few milliseconds of it."""
_HANDS: Final = 64
"""Threads at most that wait for batches, each started when it is needed."""


class _Slices:
    """Calls that an event loop is to make, from any thread: so few in each turn that nobody else waits long."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._is_due = False

    def add(self, call: Callable[[], None]) -> None:
        """Have a call made soon."""
        self._calls.append(call)
        if not self._is_due:
            self._is_due = True
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                self.loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._is_due = False
        for _ in range(min(_SLICE, len(self._calls))):
            self._calls.popleft()()
        if self._calls and not self._is_due:
            self._is_due = True
            self.loop.call_soon(self._run)


class AsyncJob:
    """A job that was handed over by an asyncio application, and is on disk. `batch` and `index` name it there.

    >>> async def application():
    ...     async with AsyncClient(folder, workers=1) as client:
    ...         job = await client.submit(pow, 2, 5)
    ...         return await job.result(), job.done()
    >>> asyncio.run(application())
    (32, True)
    """

    def __init__(self, job: Job, future: JobFuture, slices: _Slices) -> None:
        self.id = job.id
        """`batch:index`: what `AsyncClient.job` and the command line know it by."""
        self.batch, self.index = job.batch, job.index
        self._future, self._slices = future, slices

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    def done(self) -> bool:
        """Whether `result` answers at once: the job has an outcome, or its client was closed before it heard of one.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         job = await client.submit(pow, 2, 5)
        ...         while not job.done():
        ...             await asyncio.sleep(0.01)  # A request is served meanwhile.
        ...         return await job.result()
        >>> asyncio.run(application())
        32
        """
        return self._future.done()

    async def result(self) -> Any:
        """Wait for the job and return its result. To stop waiting does not stop the job.

        Raises what the job raised; JobCrashed, JobTimeout and the like; JobCancelled; and ClientClosed when the
        client was closed before it heard of an outcome: the job stays in the journal.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         job = await client.submit(int, "many")
        ...         try:
        ...             return await asyncio.wait_for(job.result(), timeout=60)
        ...         except ValueError as error:
        ...             return str(error)
        >>> asyncio.run(application())
        "invalid literal for int() with base 10: 'many'"
        """
        if not self._future.done():
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._future.add_done_callback(lambda _: self._slices.add(partial(_settle, done)))
            await done
        return result_of(self._future)

    async def cancel(self) -> bool:
        """Cancel it if it has not begun; return whether it will never run.

        >>> import time
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         running, waiting = await client.submit(time.sleep, 1), await client.submit(time.sleep, 60)
        ...         return await waiting.cancel()
        >>> asyncio.run(application())
        True
        """
        return await asyncio.to_thread(self._future.cancel)


class AsyncClient:
    """The twin of `Client` for asyncio: nothing here blocks the event loop.

    >>> async def application(folder):
    ...     async with AsyncClient(folder) as client:
    ...         job = await client.submit(pow, 2, 5)
    ...         return await job.result()
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     asyncio.run(application(folder))
    32
    """

    def __init__(self, journal: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Take the options of `Client`."""
        self._journal, self._options = journal, options
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._making: asyncio.Task[Client] | None = None
        """Goes on when the call that began it is given up: what it makes is used by the next, or closed."""
        self._slices: _Slices
        self._given: deque[_Given] = deque()
        self._is_due = self._is_closed = False
        self._courier = ThreadPoolExecutor(1, "batchd-async")
        """Hands over what was given meanwhile, all at once: the event loop only puts it down and looks at it."""
        self._hands = ThreadPoolExecutor(_HANDS, "batchd-async-batch")
        """The loop's own threads are few, and its application's."""

    async def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncJob:
        """Hand over one job; return when it is on disk. Raises what pickling raises, and BatchdError.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         jobs = await asyncio.gather(*(client.submit(pow, 2, n) for n in range(4)))
        ...         return await asyncio.gather(*(job.result() for job in jobs))
        >>> asyncio.run(application())
        [1, 2, 4, 8]
        """
        await self._opened()
        told: asyncio.Future[AsyncJob] = asyncio.get_running_loop().create_future()
        self._given.append(_Given(told, fn, args, kwargs))
        if not self._is_due:
            self._is_due = True  # First: the thread may be faster.
            try:
                self._courier.submit(self._hand_over)
            except RuntimeError:  # It was closed meanwhile.
                self._is_due = False
                raise
        return await told

    async def submit_batch(self, fn: Callable[[Any], Any], items: Iterable[Any] = (), **options: Any) -> AsyncBatch:
        """`Client.submit_batch`, with its options; `items` are read in a thread.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(len, ["one", "three"])
        ...         return [result async for result in batch.results()]
        >>> asyncio.run(application())
        [3, 5]
        """
        client = await self._opened()
        return AsyncBatch(
            await in_thread(self._hands, partial(client.submit_batch, fn, items, **options)), self._hands
        )

    async def batch(self, name: str) -> AsyncBatch:
        """`Client.batch`: return a batch by name, id or the beginning of an id. Raises BatchNotFound.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         await client.submit_batch(abs, [-1, -2], name="signs")
        ...         batch = await client.batch("signs")
        ...         return [result async for result in batch.results()]
        >>> asyncio.run(application())
        [1, 2]
        """
        client = await self._opened()
        return AsyncBatch(await in_thread(self._hands, partial(client.batch, name)), self._hands)

    async def batches(self) -> list[BatchInfo]:
        """`Client.batches`: return the batches of the journal that can be read.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         await client.submit_batch(abs, [-1, -2], name="twins")
        ...         return [info.size for info in await client.batches() if info.name == "twins"]
        >>> asyncio.run(application())
        [2]
        """
        client = await self._opened()
        return await in_thread(self._hands, client.batches)

    async def job(self, job: str) -> JobRecord:
        """`Client.job`: return what the journal holds of the job `batch:index`. Raises BatchNotFound.

        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         job = await client.submit(pow, 2, 5)
        ...         await job.result()
        ...         return (await client.job(job.id)).state
        >>> asyncio.run(application())
        'succeeded'
        """
        client = await self._opened()
        return await in_thread(self._hands, partial(client.job, job))

    async def close(self, *, at_once: bool = False) -> None:
        """Let go of everything: running jobs may finish unless `at_once`, the rest stays in the journal.

        Cancelled while it waits, as by a second Ctrl-C, it cuts off what runs as `at_once` does, and then ends.

        >>> async def application():
        ...     client = AsyncClient(folder, workers=1)
        ...     try:
        ...         return await (await client.submit(pow, 2, 5)).result()
        ...     finally:
        ...         await client.close()
        >>> asyncio.run(application())
        32
        """
        self._is_closed = True
        if self._client is None and self._making is not None:
            with suppress(Exception):  # Then there is nothing to close.
                self._client = await self._making
        closing = asyncio.get_running_loop().create_future()
        slices = _Slices(asyncio.get_running_loop())

        def close() -> None:
            try:
                if self._client is not None:
                    self._client.close(at_once=at_once)
                self._courier.shutdown()
                self._hands.shutdown()
            except Exception as error:
                slices.add(partial(_settle, closing, error=error))
            else:
                slices.add(partial(_settle, closing))

        # One of its own: asyncio.run() waits for those of the event loop, whoever is interrupted.
        Thread(target=close, name="batchd-close", daemon=True).start()
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            if self._client is not None:
                self._client.let_go(True)
            await closing
            raise

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _opened(self) -> Client:
        if self._is_closed:
            raise RuntimeError("this AsyncClient was closed: make another")
        if self._client is not None and self._slices.loop is asyncio.get_running_loop():
            return self._client
        async with self._opening:
            if self._making is not None and self._slices.loop is not asyncio.get_running_loop():
                raise RuntimeError(
                    "this AsyncClient belongs to another event loop: make one in the loop that uses it"
                )
            if self._client is None:
                if self._making is None:
                    self._slices = _Slices(asyncio.get_running_loop())
                    self._making = asyncio.create_task(asyncio.to_thread(Client, self._journal, **self._options))
                try:
                    self._client = await asyncio.shield(self._making)
                except Exception:
                    self._making = None  # The next call may have more luck.
                    raise
        return self._client

    def _hand_over(self) -> None:
        """In a thread: hand over what was given, and tell those who gave it when it is on disk."""
        assert self._client is not None
        self._is_due = False
        under_way: list[tuple[asyncio.Future[AsyncJob], JobFuture]] = []
        while self._given:
            told, fn, args, kwargs = self._given.popleft()
            try:
                under_way.append((told, self._client.hand_over(fn, args, kwargs)))
            except Exception as error:
                self._slices.add(partial(_settle, told, error=error))
        for told, future in under_way:
            try:
                self._slices.add(partial(_settle, told, AsyncJob(accepted(future), future, self._slices)))
            except Exception as error:
                self._slices.add(partial(_settle, told, error=error))


class _Given(NamedTuple):
    told: "asyncio.Future[AsyncJob]"
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _settle(waiting: "asyncio.Future[Any]", value: Any = None, *, error: Exception | None = None) -> None:
    if waiting.done():
        return  # Nobody waits any more.
    if error is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(value)
