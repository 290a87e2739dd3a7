"""The lead: two threads of which one runs the loop, so that a small commit needs no wake-up and delays nobody.

Whoever leads commits by itself, as the last thing of a turn. If that takes longer than LEAD_S a timer of the kernel
wakes the deputy, which leads from then on; the other, when the disk lets it go, is the deputy. The one idea: to hand
every commit to a thread takes two wake-ups, and most commits are done before the first of them.

Law: what belongs to the loop is touched by the leader alone, and by nobody during a write.
"""

from collections.abc import Callable
from threading import Lock, Thread, get_ident
from typing import TypeVar

from batchd.edge.timer import Timer
from batchd.settings import LEAD_S

Made = TypeVar("Made")


class Lead:
    """Who leads, of the thread that calls `run` and one more."""

    def __init__(self, patience_s: float = LEAD_S) -> None:
        """`patience_s`: how long a write may take before the deputy leads."""
        self._timer = Timer(patience_s)
        self._lock = Lock()
        self._leader = 0
        self._is_writing = False
        self._is_over = False
        self._error: BaseException | None = None

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread leads."""
        return self._leader == get_ident()

    def run(self, serve: Callable[[], bool]) -> None:
        """Have `serve` called by whoever comes to lead, until it says that all is over. Raises what it raises."""
        deputy = Thread(target=self._take_turns, args=(serve,), name="deputy", daemon=True)
        self._leader = get_ident()
        deputy.start()
        self._take_turns(serve)
        deputy.join()
        self._timer.close()
        if self._error is not None:
            raise self._error

    def write(self, call: Callable[[], Made]) -> Made:
        """Make a call that may wait for the disk. `is_mine` tells afterwards whether this thread still leads."""
        self._is_writing = True
        self._timer.start()
        try:
            return call()
        finally:
            with self._lock:
                if self.is_mine:
                    self._is_writing = False
            if self.is_mine:
                self._timer.stop()

    def _take_turns(self, serve: Callable[[], bool]) -> None:
        try:
            while self.is_mine or self._takes_over():
                if serve():
                    break
        except BaseException as error:
            self._error = error
        finally:
            self._is_over = True
            self._timer.go_off()

    def _takes_over(self) -> bool:
        """Wait until the leader has been writing for too long, and lead; return False if all is over instead."""
        while True:
            self._timer.wait()
            with self._lock:
                if self._is_over:
                    return False
                if self._is_writing:  # Else it went off just as the call ended.
                    self._is_writing, self._leader = False, get_ident()
                    return True
