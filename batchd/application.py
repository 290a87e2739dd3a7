"""`Client` and `AsyncClient`: for applications that hand work to a journal and go on.

A client shares the journal's supervisor, which is started when there is none and leaves with the last client. What a
client was told is durable; what it handed over and nobody runs stays in the journal until a client comes again.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from batchd.batch import Batch
from batchd.client.codedigest import code_digest
from batchd.client.reading import error_at, values_of
from batchd.client.session import Session, batch_id
from batchd.client.world import (
    library_folder,
    library_key,
    library_spec,
    name_of,
    pack_task,
    settle_known,
)
from batchd.core.events import Options
from batchd.core.job import Allowances, JobState
from batchd.core.ranges import RangeSet
from batchd.edge.folder import journal_folder
from batchd.edge.gauges import cpus_usable, parse_workers
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.shelf import Damaged, find_batch, list_batches
from batchd.engine import Engine, JobFuture
from batchd.errors import BatchNotFound, UsageError
from batchd.intake import KeyedInput, PlainInput
from batchd.mapping import Key, key_function
from batchd.worker.calls import ONE

_SLICE: Final = 200
"""Calls in one turn of an event loop: a few milliseconds of it."""


class BatchInfo(NamedTuple):
    """A batch of the journal, as `Client.batches` lists it."""

    id: str
    name: str
    state: str
    size: int
    done: int
    failed: int
    created: str
    """When, in ISO 8601."""


class Job:
    """A job that was handed to a queue, and is on disk."""

    def __init__(self, future: JobFuture) -> None:
        self.batch = future.batch
        self.index = future.index or 0
        self._future = future

    @property
    def id(self) -> str:
        """`batch:index`: what `Client.job` and the command line know it by."""
        return f"{self.batch}:{self.index}"

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def done(self) -> bool:
        """Whether it has an outcome."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the job and return its result. Raises what it raised, JobError, TimeoutError."""
        return self._future.result(timeout)

    def cancel(self) -> bool:
        """Cancel it if it has not begun; return whether it will never run."""
        return self._future.cancel()


class JobRecord(NamedTuple):
    """What the journal holds of a job."""

    id: str
    state: str
    """queued (or running), succeeded, failed, quarantined or cancelled."""
    value: Any
    """Its result, or the JobError that tells why there is none; None while there is no outcome."""


class Client:
    """An application's connection to a journal: `journal` is its folder, by default that of the command line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Client(folder) as client:
    ...     batch = client.submit_batch(abs, [-1, -2], name="doubles")
    ...     batch.wait().succeeded, list(batch.results()), client.submit(pow, 2, 5).result()
    (2, [1, 2], 32)
    """

    def __init__(
        self,
        journal: str | os.PathLike[str] | None = None,
        *,
        workers: int | str = "auto",
        queue: str = "jobs",
        retries: int = 0,
        timeout: float | None = None,
        crashes_max: int = 3,
    ) -> None:
        """`queue` is the batch that `submit` hands jobs to; the other options are those of its jobs.

        What earlier clients left is run from now on, with the import path and folder of who opened the queue.
        """
        self._folder, _ = library_folder(journal if journal is not None else journal_folder(None, os.environ), queue)
        self._workers = workers
        self._pid = os.getpid()
        self._batches: list[Batch] = []
        options = self._options(workers, retries, timeout, crashes_max)
        self._queue = Engine(options, self._folder, queue, is_queue=True)
        if self._is_any_left():
            self._queue.take_up()

    # --- Jobs one by one ---------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        """Hand over one job; return when it is on disk. Many threads that do so share commits.

        Raises what pickling raises, and BatchdError.
        """
        return _accepted(self._hand_over(fn, args, kwargs))

    def job(self, job: str) -> JobRecord:
        """Return what the journal holds of `batch:index`. Raises BatchNotFound."""
        batch, _, index = job.rpartition(":")
        if not batch or not index.isdigit():
            raise UsageError(f"{job!r} is no job: write batch:index")
        journal = find_batch(self._folder, batch)
        try:
            return _record(journal, int(index))
        finally:
            journal.close()

    # --- Batches -----------------------------------------------------------------------------------------------

    def submit_batch(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any] = (),
        *,
        name: str | None = None,
        key: Key | None = None,
        retries: int = 0,
        timeout: float | None = None,
        crashes_max: int = 3,
        workers: int | str | None = None,
        keep_going: bool = False,
        seal: bool = True,
        accept_code: bool = False,
    ) -> Batch:
        """Submit `fn(item)` for each item; return the batch when they are on disk and it runs.

        A batch of that name goes on: what it was given before is not given again (`Batch.skipped`); with `key` only
        new and changed items run. `seal=False` leaves it open for `Batch.add`. Raises BatchdError.
        """
        self._check_process()
        options = self._options(workers or self._workers, retries, timeout, crashes_max, keep_going=keep_going)
        digest = code_digest(fn)
        spec = library_spec(
            name or name_of(fn),
            is_named=name is not None,
            task=name_of(fn),
            call=ONE,
            kind="iterable" if key is None else "keyed",
            digest=digest,
            is_throwaway=False,
        )
        identity = batch_id(["name", name] if name else ["batch", os.urandom(16).hex()])
        for earlier in self._batches:
            if earlier.id == identity:
                earlier.close()  # Or this process would stand in its own way.
        if (self._folder / "batches" / identity).exists():
            settle_known(self._folder, identity, spec, accept_code=accept_code)
        batch = Batch(self._folder, identity, options)
        payload = pack_task(fn)

        def make() -> Session:
            return Session(
                self._folder,
                identity,
                spec=spec,
                options=options,
                key_spec=library_key(payload),
                digest=digest,
                note=lambda _: None,
                follows=True,
            )

        key_of = key_function(key)
        batch.open(make, lambda door: KeyedInput(door, key_of) if key_of else PlainInput(door))
        self._batches.append(batch)
        batch.add(items)
        if seal:
            batch.seal()
        return batch

    def batch(self, name: str) -> Batch:
        """Return a batch by name, id or the beginning of an id, or the `last`. Raises BatchNotFound."""
        self._check_process()
        journal = find_batch(self._folder, name)
        journal.close()
        found = next((each for each in self._batches if each.id == journal.folder.name), None)
        if found is None:
            found = Batch(self._folder, journal.folder.name, self._options(self._workers, 0, None, 3))
            self._batches.append(found)
        return found

    def batches(self) -> list[BatchInfo]:
        """Return the batches of the journal that can be read."""
        return list(self._listed())

    def close(self, *, at_once: bool = False) -> None:
        """Let go of everything: running jobs may finish unless `at_once`, the rest stays in the journal."""
        if self._pid != os.getpid():
            return
        self._queue.close(at_once=at_once)
        for batch in self._batches:
            batch.close(at_once=at_once)
        self._queue.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Client cannot be pickled: make one in the process that uses it")

    # --- Small things ------------------------------------------------------------------------------------------

    def _is_any_left(self) -> bool:
        """Whether the queue holds jobs without an outcome."""
        place = self._folder / "batches" / self._queue.batch
        if not place.exists():
            return False
        journal = BatchJournal(place)
        journal.close()
        return journal.facts.done.size < journal.facts.size

    def _hand_over(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> JobFuture:
        return self._queue.submit(fn, args, kwargs)

    def _listed(self) -> Iterator[BatchInfo]:
        for found in list_batches(self._folder):
            if isinstance(found, Damaged):
                continue
            made, spec = found.progress(), found.spec
            failed = made.counts.get(JobState.FAILED, 0) + made.counts.get(JobState.QUARANTINED, 0)
            yield BatchInfo(
                id=found.folder.name,
                name=str(spec.get("name", "")),
                state=made.state,
                size=made.size,
                done=made.done,
                failed=failed,
                created=str(spec.get("created", "")),
            )

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this Client belongs to process {self._pid}, from which this process ({os.getpid()}) was forked: "
                "make one here"
            )

    @staticmethod
    def _options(
        workers: int | str, retries: int, timeout: float | None, crashes_max: int, *, keep_going: bool = True
    ) -> Options:
        if retries < 0 or crashes_max < 1:
            raise UsageError("retries must be 0 or more, crashes_max 1 or more")
        if timeout is not None and timeout <= 0:
            raise UsageError("timeout must be more than 0")
        return Options(
            workers=parse_workers(str(workers), cpus_usable()),
            allowances=Allowances(retries=retries, crashes_max=crashes_max),
            timeout_s=timeout,
            keep_going=keep_going,
        )


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
    """A job that was handed over by an asyncio application, and is on disk."""

    def __init__(self, job: Job, future: JobFuture, slices: _Slices) -> None:
        self.id = job.id
        self.batch, self.index = job.batch, job.index
        self._future, self._slices = future, slices

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    def done(self) -> bool:
        """Whether it has an outcome."""
        return self._future.done()

    async def result(self) -> Any:
        """Wait for the job and return its result. Raises what it raised. To stop waiting does not stop the job."""
        if not self._future.done():
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._future.add_done_callback(lambda _: self._slices.add(partial(_settle, done)))
            await done
        return self._future.result()

    async def cancel(self) -> bool:
        """Cancel it if it has not begun; return whether it will never run."""
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
        self._slices: _Slices
        self._given: deque[_Given] = deque()
        self._is_due = self._is_closed = False
        self._hands = ThreadPoolExecutor(1, "batchd-async")
        """Hands over what was given meanwhile, all at once: the event loop only puts it down and looks at it."""

    async def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncJob:
        """Hand over one job; return when it is on disk. Raises what pickling raises, and BatchdError."""
        await self._opened()
        told: asyncio.Future[AsyncJob] = asyncio.get_running_loop().create_future()
        self._given.append(_Given(told, fn, args, kwargs))
        if not self._is_due:
            self._is_due = True  # First: the thread may be faster.
            try:
                self._hands.submit(self._hand_over)
            except RuntimeError:  # It was closed meanwhile.
                self._is_due = False
                raise
        return await told

    async def submit_batch(self, fn: Callable[[Any], Any], items: Iterable[Any] = (), **options: Any) -> Batch:
        """`Client.submit_batch`, in a thread: so is the reading of `items`."""
        client = await self._opened()
        return await asyncio.to_thread(client.submit_batch, fn, items, **options)

    async def batch(self, name: str) -> Batch:
        """`Client.batch`; call the batch's own methods with `asyncio.to_thread`."""
        client = await self._opened()
        return await asyncio.to_thread(client.batch, name)

    async def batches(self) -> list[BatchInfo]:
        """`Client.batches`."""
        client = await self._opened()
        return await asyncio.to_thread(client.batches)

    async def job(self, job: str) -> JobRecord:
        """`Client.job`."""
        client = await self._opened()
        return await asyncio.to_thread(client.job, job)

    async def close(self) -> None:
        """Let go of everything; what was handed over and not run stays in the journal."""
        self._is_closed = True
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
        await asyncio.to_thread(self._hands.shutdown)

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
            if self._client is not None and self._slices.loop is not asyncio.get_running_loop():
                raise RuntimeError(
                    "this AsyncClient belongs to another event loop: make one in the loop that uses it"
                )
            if self._client is None:
                self._slices = _Slices(asyncio.get_running_loop())
                self._client = await asyncio.to_thread(Client, self._journal, **self._options)
        return self._client

    def _hand_over(self) -> None:
        """In a thread: hand over what was given, and tell those who gave it when it is on disk."""
        assert self._client is not None
        self._is_due = False
        under_way: list[tuple[asyncio.Future[AsyncJob], JobFuture]] = []
        while self._given:
            told, fn, args, kwargs = self._given.popleft()
            try:
                under_way.append((told, self._client._hand_over(fn, args, kwargs)))  # noqa: SLF001  (its other face)
            except Exception as error:
                self._slices.add(partial(_settle, told, error=error))
        for told, future in under_way:
            try:
                self._slices.add(partial(_settle, told, AsyncJob(_accepted(future), future, self._slices)))
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


def _accepted(future: JobFuture) -> Job:
    assert future.accepted is not None
    future.accepted.result()
    return Job(future)


def _record(journal: BatchJournal, index: int) -> JobRecord:
    facts, batch = journal.facts, journal.folder.name
    if index >= facts.size:
        raise BatchNotFound(f"batch {batch} has {facts.size:,} jobs, and no job {index}")
    if index not in facts.done:
        return JobRecord(f"{batch}:{index}", "queued", None)
    outcomes = Outcomes(journal)
    (span,) = outcomes.spans(RangeSet([(index, index + 1)]), facts.generation)
    state = span.state.name.lower()
    if span.state is JobState.SUCCEEDED:
        (value,) = values_of(span, journal, outcomes, "return")
        return JobRecord(f"{batch}:{index}", state, value)
    ((_, failure),) = span.failures()
    error = error_at(journal, outcomes, index, span.state, failure)
    return JobRecord(f"{batch}:{index}", state, error)
