"""`Client`: for applications that hand work to a journal and go on. Its twin for asyncio is in asyncclient.py.

A client shares the journal's supervisor, which is started when there is none and leaves with the last client. What a
client was told is durable; what it handed over and nobody runs stays in the journal until a client comes again.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, NamedTuple, Self
from weakref import WeakSet

from batchd.batch import Batch
from batchd.client.attachment import Attachment
from batchd.client.codedigest import code_digest
from batchd.client.costing import CostOf
from batchd.client.leaving import leave
from batchd.client.reading import error_at, values_of
from batchd.client.session import Session, batch_id
from batchd.client.world import (
    library_folder,
    library_key,
    library_spec,
    name_of,
    pack_task,
    settle_known,
    warn,
)
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.folder import journal_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.shelf import Unread, find_batch, list_batches
from batchd.engine import Engine, JobFuture
from batchd.errors import BatchNotFound, UsageError
from batchd.joberrors import cancellation
from batchd.mapping import Key, costing_of, job_options
from batchd.worker.calls import ONE


class BatchInfo(NamedTuple):
    """A batch of the journal, as `Client.batches` lists it. `size`, `done` and `failed` count jobs.

    >>> client.submit_batch(abs, [-1, -2], name="pair").wait().done
    2
    >>> info = next(info for info in client.batches() if info.name == "pair")
    >>> info.state, info.size, info.done, info.failed
    ('finished', 2, 2, 0)
    """

    id: str
    name: str
    state: str
    """open, sealed, stopped, finished or cancelled."""
    size: int
    done: int
    failed: int
    """With the quarantined."""
    created: str
    """When, in ISO 8601."""


class Job:
    """A job that was handed to a queue, and is on disk. `batch` and `index` name it in the journal.

    >>> job = client.submit(pow, 2, 5)
    >>> job.result(), job.done(), job.cancel()
    (32, True, False)
    """

    def __init__(self, future: JobFuture) -> None:
        self.batch = future.batch
        self.index = future.index or 0
        self._future = future

    @property
    def id(self) -> str:
        """`batch:index`: what `Client.job` and the command line know it by, in every process.

        >>> job = client.submit(pow, 2, 5)
        >>> job.id == f"{job.batch}:{job.index}", client.job(job.id).id == job.id
        (True, True)
        """
        return f"{self.batch}:{self.index}"

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def done(self) -> bool:
        """Whether `result` answers at once: the job has an outcome, or its client was closed before it heard of one.

        >>> import time
        >>> client.submit(time.sleep, 1).done()
        False
        """
        return self._future.done()

    def result(self, timeout: float | None = None) -> Any:
        """Wait up to `timeout` seconds for the job and return its result.

        Raises what the job raised; JobCrashed, JobTimeout and the like; JobCancelled; TimeoutError; and ClientClosed
        when the client was closed before it heard of an outcome: the job stays in the journal.

        >>> client.submit(pow, 2, 5).result(timeout=60)
        32
        >>> client.submit(int, "many").result()
        Traceback (most recent call last):
        ValueError: invalid literal for int() with base 10: 'many'
        """
        return result_of(self._future, timeout)

    def cancel(self) -> bool:
        """Cancel it if it has not begun; return whether it will never run.

        >>> import time
        >>> running, waiting = client.submit(time.sleep, 2), client.submit(time.sleep, 60)
        >>> waiting.cancel(), client.job(waiting.id).state
        (True, 'cancelled')
        """
        return self._future.cancel()


class JobRecord(NamedTuple):
    """What the journal holds of a job.

    >>> batch = client.submit_batch(int, ["7", "many"], keep_going=True)
    >>> batch.wait().failed
    1
    >>> client.job(f"{batch.id}:0").value, client.job(f"{batch.id}:1").state
    (7, 'failed')
    """

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
        timeout: float | str | None = None,
        crashes_max: int = 3,
        memory_per_job: int | str | None = None,
    ) -> None:
        """`queue` is the batch that `submit` hands jobs to; the other options are those of its jobs.

        What earlier clients left is run from now on, with the import path and folder of who opened the queue: a
        function whose module is another file there fails with TaskError, and needs a queue of another name.
        """
        self._folder, _ = library_folder(journal if journal is not None else journal_folder(None, os.environ), queue)
        self._workers = workers
        self._pid = os.getpid()
        self._batches: WeakSet[Batch] = WeakSet()  # What runs is held by its thread.
        options = job_options(workers, retries, timeout, crashes_max, memory_per_job, keep_going=True)
        self._queue = Engine(options, self._folder, queue, is_queue=True)
        if self._is_any_left():
            self._queue.take_up()

    # --- Jobs one by one ---------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        """Hand over one job, `fn(*args, **kwargs)`; return when it is on disk. Many threads that do so share commits.

        Raises what pickling raises, RuntimeError after `close`, and BatchdError.

        >>> jobs = [client.submit(pow, 2, n) for n in range(4)]
        >>> [job.result() for job in jobs]
        [1, 2, 4, 8]
        """
        return accepted(self.hand_over(fn, args, kwargs))

    def job(self, job: str) -> JobRecord:
        """Return what the journal holds of the job `batch:index`, whoever handed it over. Raises BatchNotFound.

        >>> job = client.submit(pow, 2, 5)
        >>> job.result(), client.job(job.id).state, client.job(job.id).value
        (32, 'succeeded', 32)
        """
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
        cost: CostOf | None = None,
        retries: int = 0,
        timeout: float | str | None = None,
        crashes_max: int = 3,
        memory_per_job: int | str | None = None,
        workers: int | str | None = None,
        keep_going: bool = False,
        seal: bool = True,
        accept_code: bool = False,
    ) -> Batch:
        """Submit `fn(item)` for each item; return the batch when they are on disk and it runs.

        A batch of that name goes on: what it was given before is not given again (`Batch.skipped`); with `key` only
        new and changed items run, the latter in place of what failed (`Batch.replaced`). Options are those of
        `batchd.map`. It stops when the first 100 jobs fail alike, unless `keep_going`; `seal=False`: for `add`.

        Raises what pickling `fn` and iterating raise; InputChanged, CodeChanged (unless `accept_code`), BatchdError.

        >>> batch = client.submit_batch(len, ["one", "three"], name="lengths")
        >>> batch = client.submit_batch(len, ["one", "three", "seventeen"], name="lengths")
        >>> batch.skipped, batch.added, list(batch.results())
        (2, 1, [3, 5, 9])
        """
        self._check_process()
        limits = retries, timeout, crashes_max, memory_per_job
        options = job_options(workers or self._workers, *limits, keep_going=keep_going)
        spec = library_spec(
            name_of(fn) if name is None else name,
            is_named=name is not None,
            task=name_of(fn),
            call=ONE,
            kind="iterable" if key is None else "keyed",
            digest=code_digest(fn),
            is_throwaway=False,
        )
        identity = batch_id(["name", name] if name else ["batch", os.urandom(16).hex()])
        for earlier in list(self._batches):
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
                digest=spec["digest"],
                note=warn,
                follows=True,
            )

        self._batches.add(batch)
        batch.open(make, key, costing_of(cost), items, seal=seal)
        return batch

    def batch(self, name: str) -> Batch:
        """Return a batch by name, id or the beginning of an id, or the `last`. Raises BatchNotFound.

        Nothing of it runs before it is waited for or added to.

        >>> client.submit_batch(abs, [-1, -2], name="found again").wait().done
        2
        >>> list(client.batch("found again").results())
        [1, 2]
        """
        self._check_process()
        journal = find_batch(self._folder, name)
        journal.close()
        found = next((each for each in list(self._batches) if each.id == journal.folder.name), None)
        if found is None:
            found = Batch(self._folder, journal.folder.name, job_options(self._workers, 0, None, 3, keep_going=True))
            self._batches.add(found)
        return found

    def batches(self) -> list[BatchInfo]:
        """Return the batches of the journal that can be read.

        >>> client.submit_batch(abs, [-1, -2], name="listed").wait().done
        2
        >>> [info.size for info in client.batches() if info.name == "listed"]
        [2]
        """
        return list(self._listed())

    def close(self, *, at_once: bool = False) -> None:
        """Let go of everything: running jobs may finish unless `at_once`, the rest stays in the journal.

        What waits there is run when a client comes again. A client used with `with` is closed at its end. A
        KeyboardInterrupt meanwhile makes it `at_once`: what runs is cut off, uncharged, and waits like the rest.

        >>> mine = Client(folder, queue="mine", workers=1)
        >>> job = mine.submit(pow, 2, 5)
        >>> mine.close()
        >>> with Client(folder, queue="mine", workers=1) as mine:  # It is there, and may have run.
        ...     mine.submit(pow, 2, 6).result(), mine.job(job.id).value
        (64, 32)
        """
        try:
            leave(self.let_go, at_once=at_once)
        finally:
            for batch in list(self._batches):
                batch.release()

    def let_go(self, at_once: bool) -> list[Attachment]:
        """Have everything stop; return what is to end then: client/leaving.py."""
        queue = self._queue.let_go(at_once)
        return queue + [each for batch in list(self._batches) for each in batch.let_go(at_once)]

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

    def hand_over(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> JobFuture:
        """Queue a call without waiting for the disk: for AsyncClient, which waits for many at once."""
        return self._queue.submit(fn, args, kwargs)

    def _listed(self) -> Iterator[BatchInfo]:
        for found in list_batches(self._folder):
            if isinstance(found, Unread):
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


def result_of(future: JobFuture, timeout: float | None = None) -> Any:
    """Return the result of a job that was handed over, or raise what tells why there is none."""
    try:
        return future.result(timeout)
    except CancelledError:
        if not future.cancelled():  # It is what the job raised.
            raise
    raise cancellation(future.batch, future.index or 0)


def accepted(future: JobFuture) -> Job:
    """Return the job of a call when it is on disk. Raises what kept it from there."""
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
