"""The two executors that are held side by side, made alike."""

from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Final, Protocol

import batchd


class Make(Protocol):
    """Makes an executor."""

    def __call__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> Executor: ...


def standard(max_workers: int | None = None, **options: Any) -> Executor:
    """Make the standard library's. Not by fork, whose copies of a process with threads may hang."""
    return ProcessPoolExecutor(max_workers, mp_context=get_context("forkserver"), **options)


def ours(max_workers: int | None = None, **options: Any) -> Executor:
    """Make batchd's."""
    made: Executor = batchd.Executor(max_workers, **options)
    return made


KINDS: Final[dict[str, Make]] = {"standard": standard, "batchd": ours}
