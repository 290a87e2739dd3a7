"""What waits for the disk and is no commit: done in a thread of its own, so that the loop never waits for it.

Nothing is decided here, and nothing of the loop's is touched by the thread. The one idea: the work is about files,
and that it is over comes back as an event like any other.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from selectors import EVENT_READ, BaseSelector
from threading import Thread

from batchd.edge.callbacks import call_each

Then = Callable[[Exception | None], None]


class Aside:
    """Does work in a thread, and calls back in the loop that selects."""

    def __init__(self, selector: BaseSelector) -> None:
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: SimpleQueue[tuple[Callable[[], object], Then]] = SimpleQueue()
        self._over: SimpleQueue[tuple[Then, Exception | None]] = SimpleQueue()
        selector.register(self._wake_fd, EVENT_READ, self._on_over)
        # Now, for later the system may allow no more threads.
        Thread(target=self._run, name="aside", daemon=True).start()

    def do(self, work: Callable[[], object], then: Then | None = None) -> None:
        """Do the work after what was asked before, then call back with what it raised, None when all is well."""
        self._work.put((work, then or _check))

    def do_parts(self, parts: Iterator[object]) -> None:
        """Do work that nobody waits for, and between its parts what else was asked."""

        def then(raised: Exception | None) -> None:
            if raised is None:
                self.do(part, then)
            elif not isinstance(raised, StopIteration):
                raise raised

        part = partial(next, parts)
        self.do(part, then)

    def _run(self) -> None:
        while True:
            self._do_next()

    def _do_next(self) -> None:
        """Do what was asked first. A call of its own: else what the work holds is held until there is other work."""
        work, then = self._work.get()
        raised = None
        try:
            work()
        except Exception as error:
            raised = error
        self._over.put((then, raised))
        os.eventfd_write(self._wake_fd, 1)

    def _on_over(self) -> None:
        os.eventfd_read(self._wake_fd)
        while not self._over.empty():
            then, raised = self._over.get()
            call_each([then], raised)


def _check(raised: Exception | None) -> None:
    """Raise what nobody expected."""
    if raised is not None:
        raise raised
