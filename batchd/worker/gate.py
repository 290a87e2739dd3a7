"""Read transactions, and the gate that keeps forks out of them.

A child made by fork has its parent's environments open and has to close them, or LMDB refuses them to it. Closing
waits for the calls that are under way, which nobody ends in a child, and ends its transactions, whose reader slots
are the parent's: the supervisor would then use pages again that the parent reads. The one idea: while a process
forks it has no transaction at all, so there is nothing of it that the child could end.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, RLock, get_ident
from weakref import proxy

import lmdb

from batchd.settings import FORK_WAIT_S


class Gate:
    """Held by whoever is in LMDB to read. Who forks waits for them, and they for who forks, each in another thread.

    A thread that forks while it is inside itself (a signal's handler, a finalizer) does not wait.
    """

    def __init__(self) -> None:
        self.wait_s = FORK_WAIT_S
        self._renew({})
        os.register_at_fork(
            before=self._close, after_in_parent=self._open, after_in_child=lambda: self._renew(self._inside)
        )

    def _renew(self, inside: dict[int, int]) -> None:
        me = get_ident()
        self.was_held = bool(inside)
        """In a child: whether somebody was inside all the same when it was forked."""
        self._lock = RLock()  # A handler or finalizer may come while its own thread has it.
        self._changed = Condition(self._lock)
        self._inside: dict[int, int] = {me: inside[me]} if me in inside else {}
        """By thread: how often it is inside."""
        self._forking: set[int] = set()
        """Threads that fork."""

    def __enter__(self) -> None:
        me = get_ident()
        with self._lock:
            if self._forking and me not in self._inside:
                self._changed.wait_for(lambda: self._forking <= {me})
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        with self._lock:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
                if self._forking:
                    self._changed.notify_all()

    def _close(self) -> None:
        me = get_ident()
        with self._lock:
            self._forking.add(me)
            if me not in self._inside:
                self._changed.wait_for(lambda: not self._inside, self.wait_s)

    def _open(self) -> None:
        with self._lock:
            self._forking.discard(get_ident())
            self._changed.notify_all()


gate = Gate()


@contextmanager
def begin(env: lmdb.Environment) -> "Iterator[lmdb.Transaction[bytes]]":
    """Read for a moment; follows a map that the supervisor grew. What it gives is nothing any more afterwards.

    LMDB's own transaction keeps its reader slot until nobody holds it, and a local name may hold it for long.
    """
    with gate:
        try:
            txn = env.begin()
        except lmdb.MapResizedError:
            env.set_mapsize(0)
            txn = env.begin()
        try:
            yield proxy(txn)
        finally:
            txn.abort()  # Cursors hold it until then.
            del txn
