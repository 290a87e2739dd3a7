"""`batchd.Executor`: a `concurrent.futures.Executor` whose jobs survive the death of their neighbours.

What a caller touches lives here; what moves calls to the supervisor and outcomes back is in engine.py. The errors and
messages are those of `ProcessPoolExecutor`, with one difference: a crash fails the job that crashed, and only that.
"""

import operator
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from itertools import islice
from time import monotonic
from typing import Any, TypeVar

from batchd.client.world import check_name
from batchd.core.events import Options
from batchd.core.job import Allowances
from batchd.edge.gauges import workers_auto
from batchd.engine import Engine, JobFuture
from batchd.settings import WORKERS_MAX
from batchd.units import job_memory, seconds_of

T = TypeVar("T")


class Executor(futures.Executor):
    """Runs calls in worker processes, like `concurrent.futures.ProcessPoolExecutor`.

    Functions of `__main__`, lambdas and closures work. A call that takes its worker down fails alone, with
    `JobCrashed`, and at once (`crashes_max=1`). Without `journal` or `name` the journal is thrown away at the end;
    with one, what `flush` has waited for survives power loss.

    >>> with Executor(2) as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        journal: str | os.PathLike[str] | None = None,
        name: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        timeout: float | str | None = None,
        retries: int = 0,
        crashes_max: int = 1,
        memory_per_job: int | str | None = None,
        mp_context: None = None,
        max_tasks_per_child: None = None,
    ) -> None:
        """Prepare; processes start with the first call. `memory_per_job` is bytes, or a text such as "2G",
        `timeout` seconds per job, or a text such as "1m30s".

        `mp_context` and `max_tasks_per_child` of ProcessPoolExecutor are refused with ValueError unless None: workers
        are always forked from a clean process, and they are not replaced after so many calls.
        """
        if mp_context is not None:
            raise ValueError(
                "mp_context is not offered: workers are always forked from a clean process; leave it out"
            )
        if max_tasks_per_child is not None:
            raise ValueError(
                "max_tasks_per_child is not offered: workers stay; memory_per_job bounds what a call may take"
            )
        max_workers = workers_auto()[0] if max_workers is None else operator.index(max_workers)
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_workers > WORKERS_MAX:
            raise ValueError(f"max_workers must be {WORKERS_MAX} or less")
        check_name(name)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if isinstance(timeout, int | float) and timeout <= 0:
            raise ValueError("timeout must be greater than 0")
        for option, value, least in (("retries", retries, 0), ("crashes_max", crashes_max, 1)):
            _check_count(option, value, least)
        self._max_workers = max_workers
        options = Options(
            workers=max_workers,
            allowances=Allowances(retries=retries, crashes_max=crashes_max),
            timeout_s=seconds_of("timeout", timeout),
            memory_bytes_max=job_memory("memory_per_job", memory_per_job),
            keep_going=True,
            brings_workers=True,
        )
        self._engine = Engine(options, journal, name, initializer, initargs)
        self._finalizer = weakref.finalize(self, self._engine.close)
        self._finalizer.atexit = False  # The interpreter's exit waits for what was submitted: engine.py.

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Return the future of `fn(*args, **kwargs)`. Arguments that do not pickle fail the future, not this call.

        Raises RuntimeError after `shutdown`, BrokenProcessPool when no worker can be prepared.

        >>> with Executor(1) as executor:
        ...     executor.submit(int, "10", base=2).result()
        2
        """
        return self._engine.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over `fn(*args)` in order, as `Executor.map` of the standard library.

        `chunksize` changes nothing, because calls are gathered by time. With `buffersize` at most so many calls are
        under way, and the iterables are read as results are taken. Raises TimeoutError, and what `fn` raises.

        >>> with Executor(1) as executor:
        ...     list(executor.map(pow, [2, 3], [5, 2]))
        [32, 9]
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else monotonic() + timeout
        calls = zip(*iterables, strict=False)
        under_way = deque(self.submit(fn, *args) for args in islice(calls, buffersize))
        return _results(self, fn, calls if buffersize is not None else iter(()), under_way, deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds until everything submitted so far is in the journal. Raises TimeoutError.

        With `journal` or `name` it survives power loss from then on.

        >>> with Executor(1, journal=folder, name="kept") as executor:
        ...     futures = [executor.submit(pow, 2, n) for n in range(10)]
        ...     executor.flush(timeout=60)
        ...     executor.shutdown()  # What was taken is done first; so does the end of `with`.
        >>> client.batch("kept").progress().succeeded
        10
        """
        self._engine.flush(timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait until those that were taken are done, or cancel what has not begun.

        >>> import time
        >>> executor = Executor(1)
        >>> running, waiting = executor.submit(time.sleep, 1), executor.submit(time.sleep, 60)
        >>> executor.shutdown(cancel_futures=True)
        >>> waiting.cancelled()
        True
        >>> executor.submit(abs, -1)
        Traceback (most recent call last):
        RuntimeError: cannot schedule new futures after shutdown
        """
        self._finalizer.detach()
        self._engine.close(cancel=cancel_futures)
        if wait:
            self._engine.join()

    def kill_workers(self) -> None:
        """Shut down without waiting for what runs: it is killed, and like all that was not done fails.

        Its future raises BrokenProcessPool; calls that were not sent yet are cancelled. As in Python 3.14.

        >>> import time
        >>> executor = Executor(1)
        >>> future = executor.submit(time.sleep, 60)
        >>> executor.flush()
        >>> executor.kill_workers()
        >>> type(future.exception()).__name__
        'BrokenProcessPool'
        """
        self._finalizer.detach()
        self._engine.kill()

    def terminate_workers(self) -> None:
        """Do the same: a job that looks at `current_job().cancelled` is given a moment by either.

        >>> import time
        >>> executor = Executor(1)
        >>> future = executor.submit(time.sleep, 60)
        >>> executor.flush()
        >>> executor.terminate_workers()
        >>> type(future.exception()).__name__
        'BrokenProcessPool'
        """
        self.kill_workers()

    def __reduce__(self) -> Any:
        raise TypeError("an Executor cannot be pickled: make one in the process that uses it")


def _check_count(name: str, value: int, least: int) -> None:
    if operator.index(value) < least:
        raise ValueError(f"{name} must be {least} or more")


def _results(
    executor: Executor,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    under_way: "deque[futures.Future[T]]",
    deadline: float | None,
) -> Iterator[T]:
    """Give results in order and submit a call for each; whoever stops early cancels the rest."""
    under_way.reverse()
    try:
        while under_way:
            left_s = None if deadline is None else max(0.0, deadline - monotonic())
            if not futures.wait([under_way[-1]], left_s).done:
                raise TimeoutError
            for args in islice(calls, 1):
                under_way.appendleft(executor.submit(fn, *args))
            yield under_way.pop().result()  # Held by nobody here.
    finally:
        JobFuture.cancel_all(under_way)


def _at_exit() -> None:
    for engine in Engine.living():
        engine.close()
    for engine in Engine.living():
        engine.join()


# As the standard library's executors do: what was submitted is done before the interpreter goes.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # noqa: SLF001
