"""Work in a process of its own, because what it touches may kill it: a damaged file LMDB, user code itself.

Nothing here knows what the work is. The one idea: a child tells what it finds, one JSON object a line, and how it
ended is an answer like any other: a sentence, never an exception, never the end of this process.
"""

import faulthandler
import json
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from batchd.edge.readiness import readable
from batchd.errors import BatchdError

Tell = Callable[[dict[str, Any]], None]
Item = TypeVar("Item")

SILENCE_S_MAX: Final = 60.0
"""A child that says nothing for so long is ended: LMDB can be caught in a loop by damage."""
_READ_BYTES: Final = 1 << 16
_OF_DAMAGE: Final = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)


IS_COMMAND: ContextVar[bool] = ContextVar("IS_COMMAND", default=False)
"""Whether this process runs a command and nothing else: a program's memory, threads and handlers are not forked."""


def may_try() -> bool:
    """Whether a child may be used to find out what is deadly: in a command of one thread."""
    return IS_COMMAND.get() and len(list(Path("/proc/self/task").iterdir())) == 1


class Isolated:
    """A forked child at work. It must be started while this process has no LMDB environment open.

    >>> with Isolated(lambda tell: tell({"found": 7})) as child:
    ...     list(child.told()), child.death
    ([{'found': 7}], '')
    """

    def __init__(self, work: Callable[[Tell], None]) -> None:
        self.death = ""
        """How the child ended, when it was not in order."""
        self.signal = 0
        """What killed it, if it was a signal of the system's or of others."""
        self._is_over = self._is_stuck = False
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            raise
        if self._pid == 0:
            os.close(read)
            _live(work, write)
        os.close(write)
        self._read = read
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def told(self, silence_s: float = SILENCE_S_MAX) -> Iterator[dict[str, Any]]:
        """Give what the child tells, until it has ended; then `death` is known."""
        while not self._is_over:
            *lines, self._rest = self._rest.split(b"\n")
            yield from map(json.loads, filter(None, lines))
            ready = readable([self._read], silence_s)
            if not ready:
                self._is_stuck = True
                self._end(f"it was stuck for {silence_s:.0f} s")
            elif data := os.read(self._read, _READ_BYTES):
                self._rest += data
            else:
                self._end("")

    @property
    def is_deadly(self) -> bool:
        """Whether it ended as damage ends whoever reads it, and not by what others or the system did to it."""
        return self._is_stuck or self.signal in _OF_DAMAGE

    def close(self) -> None:
        """End the child, whatever it does."""
        if not self._is_over:
            self._end("it was not waited for")
            self.death = ""

    def _end(self, why: str) -> None:
        self._is_over = True
        if why:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        status = 0
        with suppress(ChildProcessError):  # Where SIGCHLD is ignored nobody knows how it ended.
            status = os.waitpid(self._pid, 0)[1]
        os.close(self._read)
        if why:
            self.death = why
        elif os.WIFSIGNALED(status):
            self.signal = os.WTERMSIG(status)
            self.death = f"it was killed by {signal.Signals(self.signal).name}"
        elif os.WEXITSTATUS(status):
            self.death = f"it ended with exit code {os.WEXITSTATUS(status)}"


def each_in_turn(
    items: Sequence[Item], work: Callable[[Item], dict[str, Any]]
) -> Iterator[dict[str, Any] | Isolated]:
    """Give what `work` tells of each item, or the child that died of it. `work` raises nothing.

    The next child goes on behind that item. So the worst costs itself, and a thousand good ones cost one fork. Raises
    OSError where no process is to be had.

    >>> list(each_in_turn([1, 2, 3], lambda item: {"twice": 2 * item}))
    [{'twice': 2}, {'twice': 4}, {'twice': 6}]
    """
    left = deque(items)

    def work_off(tell: Tell) -> None:
        for item in list(left):
            tell(work(item))

    while left:
        with Isolated(work_off) as child:
            for fields in child.told():
                left.popleft()
                yield fields
        if left:
            left.popleft()
            yield child


def _live(work: Callable[[Tell], None], write: int) -> None:
    """Be the child: never returns."""
    code = 1
    try:
        faulthandler.disable()
        signal.set_wakeup_fd(-1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LMDB says there which of its assertions failed.

        def tell(fields: dict[str, Any]) -> None:
            line = memoryview(json.dumps(fields).encode() + b"\n")
            while line:
                line = line[os.write(write, line) :]

        try:
            work(tell)
        except BatchdError as error:
            tell({"error": str(error), "kind": type(error).__name__})
        except Exception as error:
            tell({"error": f"{type(error).__name__}: {error}", "kind": ""})
        code = 0
    finally:
        os._exit(code)
