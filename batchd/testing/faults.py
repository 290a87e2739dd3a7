"""Faults on order: at the n-th time a point is reached, something goes wrong. Off unless it is asked for.

Points of a `FaultyJournal`: `commit`, before anything is written; `committed`, when it is and nobody knows yet. Of a
`FaultyPool`: the names of its orders (`StartWorker`, `GrantLease`, `KillWorker`, ...). Of a task of yours, with
`faults.around(task)`: `job INDEX`, whose n-th time is its n-th attempt.

>>> import batchd
>>> struck = Faults().at("job 1", 1, die).around(abs)  # The first attempt of job 1 takes its worker along.
>>> list(batchd.map(struck, [-1, -2, -3], workers=1))
[1, 2, 3]
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchd.core.commands import Command
from batchd.core.entries import Entry
from batchd.edge.journal import BatchJournal, Progress
from batchd.edge.pool import Pool
from batchd.worker.context import current_job

Fault = BaseException | Callable[[], object]


class Faults:
    """What goes wrong, and when. Called with the name of a point by whoever reaches it."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()
        """How often each point was reached."""
        self._plan: dict[tuple[str, int], Fault] = {}

    def at(self, point: str, nth: int, fault: Fault) -> "Faults":
        """Raise an exception, or call a function, when `point` is reached for the n-th time. Returns itself."""
        self._plan[point, nth] = fault
        return self

    def __call__(self, point: str) -> None:
        """Say that a point is reached."""
        self.reached[point] += 1
        self.strike(point, self.reached[point])

    def strike(self, point: str, nth: int) -> None:
        """Let happen what is planned for that time."""
        fault = self._plan.get((point, nth))
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            fault()

    def around(self, task: Callable[[Any], Any]) -> "Struck":
        """Return the task with its faults before each job."""
        return Struck(self, task)


class Struck:
    """A task whose jobs go wrong as planned, in whichever worker they run."""

    def __init__(self, faults: Faults, task: Callable[[Any], Any]) -> None:
        self._faults = faults
        self._task = task

    def __call__(self, item: Any) -> Any:
        """Run a job, if nothing else is planned for it."""
        job = current_job()
        self._faults.strike(f"job {job.index}", job.attempt)
        return self._task(item)


class FaultyJournal(BatchJournal):
    """A batch, opened for writing, whose commits go wrong as planned."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        super().__init__(folder, is_writer=True)
        self._faults = faults

    def commit(self, entries: Sequence[Entry]) -> Progress:
        """Make the entries durable, unless something happens before or after."""
        self._faults("commit")
        made = super().commit(entries)
        self._faults("committed")
        return made


class FaultyPool(Pool):
    """A pool whose orders go wrong as planned."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.faults = Faults()

    def perform(self, command: Command) -> None:
        """Carry out one order, unless something happens before."""
        self.faults(type(command).__name__)
        super().perform(command)


def die() -> None:
    """Kill the process, as the kernel does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
