"""Executors that are kept from one `Parallel` call to the next, so that the next finds its workers ready.

The one idea: an executor belongs to one call at a time, and at most one waits between calls, for a while. Nothing
here knows joblib.
"""

import os
import threading
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from batchd.executor import Executor

IDLE_S: Final = 60.0
"""So long workers wait for another call, unless told otherwise."""


class _Kept(NamedTuple):
    key: Hashable
    executor: Executor
    timer: threading.Timer


class Shelf:
    """At most one executor that nobody uses.

    >>> shelf, made = Shelf(), Executor(1)
    >>> shelf.put("two workers", made, idle_s=60)
    >>> shelf.take("two workers", Executor) is made
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: _Kept | None = None

    def take(self, key: Hashable, make: Callable[[], Executor]) -> Executor:
        """Return the executor that is kept, if it is of this kind, else a new one; what is kept then goes."""
        kept = self._take_kept()
        if kept is not None and kept.key == key:
            return kept.executor
        if kept is not None:
            kept.executor.shutdown(wait=False)
        return make()

    def put(self, key: Hashable, executor: Executor, *, idle_s: float) -> None:
        """Keep an executor in place of the one that is kept."""
        timer = threading.Timer(idle_s, self._drop, [executor])
        timer.daemon = True
        before = self._take_kept()
        with self._lock:
            taken, self._kept = self._kept, _Kept(key, executor, timer)
            timer.start()
        for each in (before, taken):
            if each is not None:
                each.timer.cancel()
                each.executor.shutdown(wait=False)

    def clear(self) -> None:
        """End the workers of what is kept, and wait until they are gone."""
        kept = self._take_kept()
        if kept is not None:
            kept.executor.shutdown()

    def _take_kept(self) -> _Kept | None:
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.timer.cancel()
        return kept

    def _drop(self, executor: Executor) -> None:
        with self._lock:
            if self._kept is None or self._kept.executor is not executor:
                return
            self._kept = None
        executor.shutdown(wait=False)


_shelves: dict[int, Shelf] = {}
"""By process: a child made by fork can use none of its parent's."""


def shelf() -> Shelf:
    """Return this process's shelf.

    >>> shelf() is shelf()
    True
    """
    return _shelves.setdefault(os.getpid(), Shelf())
