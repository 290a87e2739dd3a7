"""Pools of futures as contenders: batchd's executor and the standard library's, made, warmed, and taken down.

The clock of whoever uses one starts when every worker has answered, and covers nothing of a pool's birth or end.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, NamedTuple

from batchd import Executor
from batchd.client.throwaway import throwaway_folder
from batchd.edge.folder import remove_journal
from benchmarks.batch import await_gone, cpu_s, processes
from benchmarks.contest import Setting
from benchmarks.jobs import noop

WARM_JOBS: Final = 200
_NAP_S: Final = 0.02
_READY_S: Final = 30.0


class Pool(NamedTuple):
    """A pool that is up: how a call is handed over, and how its result is waited for."""

    submit: Callable[..., Any]
    take: Callable[[Any], Any]
    folder: Path | None = None
    """The journal's, of batchd."""


Made = Callable[[Setting], Any]
"""Makes a pool: a context manager."""


@contextmanager
def on_disk(setting: Setting) -> Iterator[Pool]:
    """Batchd's executor with a journal that stays."""
    folder = Path(mkdtemp(dir=setting.scratch))
    try:
        with Executor(setting.workers, journal=folder) as executor:
            yield _warmed(Pool(executor.submit, _result, folder), setting)
    finally:
        await_gone(folder)
        remove_journal(folder)


@contextmanager
def thrown_away(setting: Setting) -> Iterator[Pool]:
    """Batchd's executor as one gets it without naming a journal."""
    with Executor(setting.workers) as executor:
        yield _warmed(Pool(executor.submit, _result, throwaway_folder()), setting)


@contextmanager
def process_pool(setting: Setting) -> Iterator[Pool]:
    """The executor of the standard library."""
    with ProcessPoolExecutor(setting.workers) as executor:
        yield _warmed(Pool(executor.submit, _result), setting)


@contextmanager
def plain_pool(setting: Setting) -> Iterator[Pool]:
    """The older pool of the standard library."""
    with multiprocessing.Pool(setting.workers) as pool:
        yield _warmed(Pool(lambda task, *args: pool.apply_async(task, args), lambda handle: handle.get()), setting)


def _result(future: Any) -> Any:
    return future.result()


def nap(_: int) -> int:
    """Sleep for a moment; return which process did."""
    time.sleep(_NAP_S)
    return os.getpid()


def _warmed(pool: Pool, setting: Setting) -> Pool:
    """Wait until every worker has run a job, then run quick ones: what is timed follows such as these."""
    deadline = time.monotonic() + _READY_S
    found: set[int] = set()
    while len(found) < setting.workers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {len(found)} of {setting.workers} workers were up after {_READY_S:.0f} s")
        found |= {pool.take(handle) for handle in [pool.submit(nap, 0) for _ in range(2 * setting.workers)]}
    for handle in [pool.submit(noop, number) for number in range(WARM_JOBS)]:
        pool.take(handle)
    return pool


class Usage:
    """The CPU time that batchd's processes use from now on."""

    def __init__(self, pool: Pool) -> None:
        self._pids = processes(pool.folder) if pool.folder is not None else []
        self._before = [cpu_s(pid) for pid in self._pids]
        self._client_s = time.process_time()

    def figures(self, jobs: int) -> dict[str, float]:
        """Return microseconds a job, by process; nothing for other pools."""
        if not self._pids:
            return {}
        client_s = time.process_time() - self._client_s
        supervisor_s, *workers_s = (cpu_s(pid) - before for pid, before in zip(self._pids, self._before, strict=True))
        return {
            "supervisor CPU, us a job": supervisor_s / jobs * 1e6,
            "workers CPU, us a job": sum(workers_s) / jobs * 1e6,
            "this process's CPU, us a job": client_s / jobs * 1e6,
        }
