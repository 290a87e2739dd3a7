"""The backend itself: what `joblib.Parallel` asks of one, over `batchd.Executor`.

joblib cuts a call into batches, asks for each to be submitted, and is called back from the executor's thread. The one
idea: nothing may be raised in that thread, where nobody would hear it and `Parallel` would wait for ever, so whatever
goes wrong with a batch is the outcome of its future.
"""

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from joblib import cpu_count
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from batchd.client.world import modules_of
from batchd.executor import Executor
from batchd.joblib.inside import Preparation, joblib_call
from batchd.joblib.keeping import IDLE_S, shelf
from batchd.joblib.shared import SharedArrays
from batchd.settings import KILL_WAIT_S

_ABOUT_JOBS: Final = frozenset({"timeout", "retries", "crashes_max", "memory_per_job"})
_ABOUT_PLACE: Final = frozenset({"journal", "name"})
_OPTIONS: Final = _ABOUT_JOBS | _ABOUT_PLACE | {"initializer", "initargs", "idle_worker_timeout"}
_OF_JOBLIB: Final = frozenset({"context", "prefer", "require", "verbose"})
"""What joblib tells every backend and this one has no use for."""


class BatchdBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """A joblib backend over `batchd.Executor`; `batchd.joblib.register` has its options.

    >>> import joblib
    >>> joblib.Parallel(n_jobs=2, backend=BatchdBackend(retries=1))(joblib.delayed(abs)(n) for n in (-1, 2))
    [1, 2]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1
    living: ClassVar["weakref.WeakSet[BatchdBackend]"] = weakref.WeakSet()
    """All there are: what a generator that nobody can read any more left running ends with the interpreter."""

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        """Take the options of the executors to come. Raises TypeError for one that there is not."""
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._given = _checked(options)
        self._lock = threading.RLock()  # The garbage collector may end a generator, and so come here, at any moment.
        self._users = 0
        """Calls of `Parallel` under way: with generators there can be several."""
        self._executor: Executor | None = None
        self._unfinished: set[Future[Any]] = set()
        self._workers = 1
        self._options: dict[str, Any] = {}
        self._key: tuple[Any, ...] = ()
        self._shared: SharedArrays | None = None
        self.living.add(self)

    # --- How many ----------------------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of workers that n_jobs means: joblib's rules, where -1 is all CPUs."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs != 1 and self.nesting_level and not self.in_main_thread():
            warnings.warn("batchd runs no parallel calls below threads of one, setting n_jobs=1", stacklevel=3)
            return 1
        return max(cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def compute_batch_size(self) -> int:
        """Return how many calls make a job: one, where options speak of jobs or a journal names them."""
        if self._options.keys() & (_ABOUT_JOBS | _ABOUT_PLACE):
            return 1
        return int(super().compute_batch_size())

    # --- Before and after a call -------------------------------------------------------------------------------

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        *,
        max_nbytes: int | None = None,
        mmap_mode: str | None = None,
        temp_folder: str | None = None,
        **options: Any,
    ) -> int:
        """Prepare for a call of `Parallel` and return the number of workers; they start with the first batch."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        own = {name: value for name, value in options.items() if name not in _OF_JOBLIB}
        options = {**self._given, **_checked(own)}
        with self._lock:
            self.parallel = parallel
            self._users += 1
            if self._executor is None:
                self._workers, self._options = n_jobs, options
            if self._shared is None:
                # What a journal keeps must not name a file that goes with this call.
                bytes_min = None if _is_durable(options) else max_nbytes
                self._shared = SharedArrays(temp_folder, bytes_min=bytes_min, mode=mmap_mode)
        return n_jobs

    def terminate(self) -> None:
        """A call of `Parallel` is over: the workers wait for the next, and its files go."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users:
                return
            executor, self._executor = self._executor, None
            shared, self._shared = self._shared, None
        self.reset_batch_stats()
        if executor is not None:
            if _is_keepable(self._options):
                idle_s = self._options.get("idle_worker_timeout")
                shelf().put(self._key, executor, idle_s=IDLE_S if idle_s is None else idle_s)
            else:
                executor.shutdown()
        if shared is not None:
            shared.close()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002  (it is, at the next batch)
        """End what runs, because a batch failed or nobody wants the rest."""
        with self._lock:
            executor, self._executor = self._executor, None
            unfinished = self._unfinished.copy()
        if executor is not None:
            executor.kill_workers()
            wait(unfinished, KILL_WAIT_S)  # Not for the executor's thread, which may be waiting for this one.

    # --- Batches -----------------------------------------------------------------------------------------------

    def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Run a batch of calls, and then the callback with its future."""
        try:
            future = self._submitted(func)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # What joblib before 1.5 calls it.

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a finished batch returned, or raise what it raised."""
        return out.result()

    def _submitted(self, func: Any) -> Future[Any]:
        shared = self._shared
        if shared is None:
            raise RuntimeError(
                "the call of Parallel this batch belongs to is over: was a generator given up that others came after?"
            )
        payload, files = shared.pickled(func)
        with self._lock:
            executor = self._executor or self._made(func)
            self._executor = executor
            future: Future[Any] = executor.submit(joblib_call, payload)
            self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        future.add_done_callback(lambda _: shared.release(files))
        return future

    # --- The executor ------------------------------------------------------------------------------------------

    def _made(self, func: Any) -> Executor:
        make = partial(self._new_executor, func)
        if not _is_keepable(self._options):
            return make()
        self._key = self._key_now()
        return shelf().take(self._key, make)

    def _new_executor(self, func: Any) -> Executor:
        environ = self._environ()
        # Libraries loaded before a fork would bring their threads with them.
        modules = _modules_in(func) if {environ[name] for name in self.MAX_NUM_THREADS_VARS} == {"1"} else ()
        options = {name: value for name, value in self._options.items() if name != "idle_worker_timeout"}
        preparation = Preparation(environ, modules, options.pop("initializer", None), options.pop("initargs", ()))
        return Executor(self._workers, initializer=preparation, **options)

    def _environ(self) -> dict[str, str]:
        found: dict[str, str] = self._prepare_worker_env(n_jobs=self._workers)
        return found

    def _key_now(self) -> tuple[Any, ...]:
        """Return what two calls must have in common for one to use the other's workers."""
        options = tuple(sorted((name, self._options[name]) for name in _ABOUT_JOBS & self._options.keys()))
        environ = frozenset({**os.environ, **self._environ()}.items())
        return self._workers, options, environ, Path.cwd(), tuple(sys.path)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise TypeError(f"the batchd backend has no option {unknown[0]!r}; it has {', '.join(sorted(_OPTIONS))}")
    return options


def _is_durable(options: dict[str, Any]) -> bool:
    return any(options.get(name) is not None for name in _ABOUT_PLACE)


def _is_keepable(options: dict[str, Any]) -> bool:
    """Whether the next call may use the same executor: a journal is to be complete when its call is over."""
    return not _is_durable(options) and options.get("initializer") is None


def _modules_in(batch: Any) -> tuple[str, ...]:
    """Return the modules that the first call of a batch needs: imported once, all workers have them."""
    function, args, kwargs = batch.items[0]
    kinds = {type(value).__module__ for value in (*args, *kwargs.values())}
    return tuple(sorted({*modules_of(function), *kinds} - {"builtins", "__main__"}))


def _at_exit() -> None:
    for backend in list(BatchdBackend.living):
        backend.abort_everything(ensure_ready=False)


# Before executors wait for what they were given, because they registered before this.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # noqa: SLF001
