"""What waits for the disk, or for a lock, and is no commit: done aside, so that the loop never waits for it.

Nothing is decided here, and nothing of the loop's is touched by a thread. The one idea: the work is about files,
and that it is over comes back as an event like any other. What may wait for as long as somebody else likes has a
thread of its own, or it would hold up the rest.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from selectors import EVENT_READ, BaseSelector
from threading import Thread
from typing import Any, TypeVar

from batchd.edge.callbacks import call_each

Made = TypeVar("Made")
Then = Callable[[Exception | None], None]


class Aside:
    """Does work in threads, and calls back in the loop that selects."""

    def __init__(self, selector: BaseSelector) -> None:
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._over: SimpleQueue[Callable[[], None]] = SimpleQueue()
        selector.register(self._wake_fd, EVENT_READ, self._on_over)
        # Now, for later the system may allow no more threads.
        self._thread = Thread(target=self._run, name="aside", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], object], then: Then | None = None) -> None:
        """Do the work after what was asked before, then call back with what it raised, None when all is well."""
        told = then or _check
        self._work.put(partial(self._do, work, lambda made: told(made if isinstance(made, Exception) else None)))

    def do_alone(self, work: Callable[[], Made], then: Callable[[Made | Exception], None]) -> None:
        """Do work that may wait without end, then call back with what it returned or raised."""
        alone = partial(self._do, work, then)
        try:
            Thread(target=alone, name="alone", daemon=True).start()
        except RuntimeError:  # The system allows no more threads.
            self._work.put(alone)

    def do_parts(self, parts: Iterator[object]) -> None:
        """Do work that nobody waits for, and between its parts what else was asked."""

        def then(raised: Exception | None) -> None:
            if raised is None:
                self.do(part, then)
            elif not isinstance(raised, StopIteration):
                raise raised

        part = partial(next, parts)
        self.do(part, then)

    def close(self) -> None:
        """End the thread behind what it was asked to do. A supervisor waits for nothing: it ends with its process."""
        self._work.put(None)
        self._thread.join()
        os.close(self._wake_fd)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # Else what it holds is held until there is other work.

    def _do(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            made = work()
        except Exception as error:
            made = error
        self._over.put(partial(then, made))
        os.eventfd_write(self._wake_fd, 1)

    def _on_over(self) -> None:
        os.eventfd_read(self._wake_fd)
        while not self._over.empty():
            call_each([self._over.get()])


def _check(raised: Exception | None) -> None:
    """Raise what nobody expected."""
    if raised is not None:
        raise raised
