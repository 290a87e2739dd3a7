"""Read transactions, and the gate that keeps forks out of them.

A child made by fork has its parent's environments open and has to close them, or LMDB refuses them to it. Closing
waits for the calls that are under way, which nobody ends in a child, and ends its transactions, whose reader slots
are the parent's: the supervisor would then use pages again that the parent reads. The one idea: while a process
forks it has no transaction at all, so there is nothing of it that the child could end.

A signal's handler may raise wherever Python code runs, Ctrl-C does. So what has to be undone is undone by functions
written in C, at once and whole: a lock's in `with`, a list's as a fork's hook. Nobody waits but for a while.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock, get_ident
from time import monotonic, sleep
from typing import Any, Literal, TypeVar, overload
from weakref import proxy

import lmdb

from batchd.errors import JournalCrowded
from batchd.settings import FORK_WAIT_S, READERS_MAX

_LOOK_S = 0.001
"""Who waits looks so often."""
_Read = TypeVar("_Read")


class Gate:
    """`with gate.inside` is around what reads. Who forks waits for who is in there, and who comes for who forks.

    A thread that forks while it is inside itself (a signal's handler, a finalizer) does not wait.
    """

    def __init__(self) -> None:
        self.wait_s = FORK_WAIT_S
        self.was_held = False
        """In a child: whether somebody was inside all the same when it was forked."""
        self._locks: dict[int, list[Lock]] = {}
        """By thread: it is inside once for each that is locked. Only itself takes them, so nobody waits for them."""
        self._forks: list[None] = []
        """One for each fork that is under way."""
        self._forking: set[int] = set()
        """Threads that fork: they do not wait for themselves."""
        os.register_at_fork(before=self._wait, after_in_parent=self._forks.pop, after_in_child=self._renew)
        # Of these the last is the first to be called.
        os.register_at_fork(
            before=partial(self._forks.append, None),
            after_in_parent=self._forking.clear,
            after_in_child=self._forking.clear,
        )
        os.register_at_fork(after_in_child=self._forks.clear)

    @property
    def inside(self) -> Lock:
        """A lock for one `with`, which is inside as long as that lasts. Waits for a fork, but not for ever.

        Who comes before the fork has ended costs its child these batches, and nobody else anything.
        """
        me = get_ident()
        locks = self._locks.setdefault(me, [])
        for lock in locks:
            if not lock.locked():
                break
        else:
            lock = Lock()
            locks.append(lock)
        end = 0.0
        while self._forks and me not in self._forking and not self._is_inside(me):
            now = monotonic()
            end = end or now + 2 * self.wait_s
            if now > end:
                break
            sleep(_LOOK_S)
        # No call between the last look and the lock: only there a thread gives way to another, which may fork.
        return lock

    def _is_inside(self, thread: int) -> bool:
        return any(lock.locked() for lock in list(self._locks.get(thread, ())))

    def _wait(self) -> None:
        me = get_ident()
        self._forking.add(me)
        self.was_held = True  # Until the child finds out.
        end = monotonic() + self.wait_s
        while not self._is_inside(me) and any(map(self._is_inside, list(self._locks))) and monotonic() < end:
            sleep(_LOOK_S)

    def _renew(self) -> None:
        me = get_ident()
        self.was_held = any(map(self._is_inside, list(self._locks)))
        self._locks = {me: self._locks.get(me, [])}


gate = Gate()


def crowded(folder: str | Path) -> JournalCrowded:
    """Return what is raised where the table of a batch's readers is full."""
    return JournalCrowded(f"{READERS_MAX} readers are in {folder}, which is the limit: try again later")


def in_place(env: lmdb.Environment, read: Callable[[], _Read]) -> _Read:
    """Return what is read, which takes a place; follows a map that the supervisor grew. Raises JournalCrowded."""
    is_checked = False
    while True:
        try:
            return read()
        except lmdb.MapResizedError:
            env.set_mapsize(0)
        except lmdb.ReadersFullError:
            if is_checked:
                raise crowded(env.path()) from None
            is_checked = env.reader_check() >= 0  # Who died in a transaction has its place until somebody looks.


@overload
def transaction(env: lmdb.Environment) -> "lmdb.Transaction[bytes]": ...
@overload
def transaction(env: lmdb.Environment, *, buffers: Literal[True]) -> "lmdb.Transaction[memoryview]": ...
def transaction(env: lmdb.Environment, *, buffers: bool = False) -> "lmdb.Transaction[Any]":
    """Begin to read. Raises JournalCrowded."""
    return in_place(env, partial(env.begin, buffers=buffers))


@contextmanager
def begin(env: lmdb.Environment) -> "Iterator[lmdb.Transaction[bytes]]":
    """Read for a moment. What it gives is nothing any more afterwards. Raises JournalCrowded.

    LMDB's own transaction keeps its reader slot until nobody holds it, and a local name may hold it for long.
    """
    with gate.inside:
        txn = transaction(env)
        try:
            yield proxy(txn)
        finally:
            txn.abort()  # Cursors hold it until then.
            del txn
