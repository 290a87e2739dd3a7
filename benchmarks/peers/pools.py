"""Pools of processes within one program: nothing of them outlives it."""

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import Any

from benchmarks.peers.peer import Peer, Task


class Futures(Peer):
    """A pool that follows `concurrent.futures`."""

    pool: Any

    def made(self) -> Any:
        """The pool: a context."""
        raise NotImplementedError

    def open(self) -> None:
        """Start."""
        self.pool = self.stack.enter_context(self.made())

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """The pool's own."""
        results: Iterable[Any] = self.pool.map(task, items, chunksize=grain)
        return results

    def submit(self, task: Task, item: Any) -> Any:
        """The pool's own."""
        return self.pool.submit(task, item)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """The future's own."""
        return handle.result(timeout_s)


class Executor(Futures):
    """`ProcessPoolExecutor` of the standard library."""

    grain = 4_096

    def made(self) -> Any:
        """The pool."""
        return ProcessPoolExecutor(self.workers)


class Loky(Futures):
    """Joblib's engine, by itself."""

    grain = 4_096

    def made(self) -> Any:
        """The pool."""
        return import_module("joblib.externals.loky").ProcessPoolExecutor(self.workers)


class Pool(Peer):
    """`multiprocessing.Pool` of the standard library."""

    grain = 4_096

    pool: Any

    def open(self) -> None:
        """Start."""
        self.pool = self.stack.enter_context(multiprocessing.Pool(self.workers))

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """The pool's own."""
        results: Iterable[Any] = self.pool.map(task, items, chunksize=grain)
        return results

    def submit(self, task: Task, item: Any) -> Any:
        """Asynchronously."""
        return self.pool.apply_async(task, (item,))

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """Its TimeoutError is not the built-in one."""
        try:
            return handle.get(timeout_s)
        except multiprocessing.TimeoutError as error:
            raise TimeoutError from error


class Joblib(Peer):
    """`joblib.Parallel`, kept open, which gathers small jobs by itself."""

    has_handles = False
    parallel: Any

    def open(self) -> None:
        """Start."""
        made = import_module("joblib").Parallel(self.workers, return_as="generator")
        self.parallel = self.stack.enter_context(made)

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """A generator of results."""
        del grain
        call = import_module("joblib").delayed(task)
        results: Iterable[Any] = self.parallel(call(item) for item in items)
        return results


class Mpire(Peer):
    """`mpire.WorkerPool`: one for each kind of call, because `map` after `apply_async` fails in 2.10."""

    mapping: Any
    applying: Any

    def open(self) -> None:
        """Start both; the second starts its workers when it is first used."""
        mpire = import_module("mpire")
        self.mapping = self.stack.enter_context(mpire.WorkerPool(self.workers, keep_alive=True))
        self.applying = self.stack.enter_context(mpire.WorkerPool(self.workers, keep_alive=True))

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """Each item as one argument, which mpire would take apart where it is a tuple, a dict or an array."""
        given = [(item,) for item in items]
        results: Iterable[Any] = self.mapping.map(task, given, chunk_size=grain, concatenate_numpy_output=False)
        return results

    def submit(self, task: Task, item: Any) -> Any:
        """Asynchronously."""
        return self.applying.apply_async(task, (item,))

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """The handle's own."""
        return handle.get(timeout_s)


class Pebble(Peer):
    """`pebble.ProcessPool`, which ends only the job whose worker died."""

    pool: Any

    def open(self) -> None:
        """Start."""
        self.pool = self.stack.enter_context(import_module("pebble").ProcessPool(self.workers))

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """The pool's own."""
        results: Iterable[Any] = self.pool.map(task, items, chunksize=grain).result()
        return results

    def submit(self, task: Task, item: Any) -> Any:
        """The pool's own."""
        return self.pool.schedule(task, args=[item])

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """The future's own."""
        return handle.result(timeout_s)
