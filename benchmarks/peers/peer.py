"""What a peer is: a pool, cluster or queue that is started, given jobs, asked for results, and ended."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

Task = Callable[[Any], Any]
"""A function of one argument that workers can import."""


class Request(NamedTuple):
    """What is asked of a peer, as it travels to its process."""

    home: str
    """Where its class is: `module:Class`."""
    way: str
    """The name of a function of `ways`."""
    task: Task
    items: Sequence[Any]
    fold: Callable[[Iterable[Any]], tuple[int, Any]]
    """Takes all results; gives how many there were, and what they add up to."""
    workers: int
    folder: Path
    cap_s: float
    """Longer than this nobody waits for its results."""
    budget_s: float
    """About how long it is to run: of more items it gets the first so many."""
    gathers: bool
    """Whether jobs may travel together."""


class Peer:
    """A context: inside, its workers are up or coming."""

    has_handles = True
    """Whether jobs can be submitted one by one; otherwise there is only `map`."""
    needs_shutting_in = False
    """Whether it listens on addresses that it was not given."""

    grain = 1_024
    """How many small jobs travel together at its best, for peers that must be told."""

    def __init__(self, workers: int, folder: Path) -> None:
        self.workers = workers
        self.folder = folder
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        """Start."""
        with ExitStack() as stack:
            self.stack = stack
            self.open()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.stack.close()

    def open(self) -> None:
        """Start; what ends it again is pushed on the stack."""
        raise NotImplementedError

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """All results, in order, by the best bulk call there is; `grain` jobs together where that must be said."""
        del grain
        handles = [self.submit(task, item) for item in items]
        return (self.take(handle) for handle in handles)

    def submit(self, task: Task, item: Any) -> Any:
        """Hand over one job; return its handle."""
        raise NotImplementedError

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """Wait for a result. Raises TimeoutError, or whatever became of the job instead."""
        raise NotImplementedError

    def call(self, task: Task, item: Any) -> Any:
        """Run one job and wait for it."""
        if self.has_handles:
            return self.take(self.submit(task, item))
        return next(iter(self.map(task, [item], 1)))


class Restartable(Peer):
    """A peer whose jobs are meant to outlive its workers."""

    def kill(self) -> None:
        """SIGKILL its master and all its workers; what keeps the jobs stays."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start master and workers, as after `kill`."""
        raise NotImplementedError
