"""A made-up job around a test of a task: what the task says about itself is recorded, what it asks is answered.

It needs no worker and no journal, and loads neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchd.formats.values import dump_checked, load
from batchd.worker.context import CurrentJob, provide


class FakeJob:
    """What the job said, in order, and whether it is to end."""

    def __init__(self, last_checkpoint: Any = None) -> None:
        self.progress: list[float] = []
        self.logs: list[str] = []
        self.checkpoints: list[Any] = []
        self.is_cancelled = False
        self._kept = None if last_checkpoint is None else dump_checked(last_checkpoint)

    def cancel(self) -> None:
        """Have the job see `cancelled`."""
        self.is_cancelled = True

    def tell_progress(self, job: CurrentJob, fraction: float) -> None:  # noqa: ARG002  (there is one job only)
        """Record it."""
        self.progress.append(fraction)

    def log(self, job: CurrentJob, text: str) -> None:  # noqa: ARG002
        """Record it."""
        self.logs.append(text)

    def keep(self, job: CurrentJob, payload: bytes) -> None:  # noqa: ARG002
        """Record what it reads back as: what the job does to the value afterwards is not in a checkpoint."""
        self._kept = payload
        self.checkpoints.append(load(payload))

    def kept(self, job: CurrentJob) -> bytes | None:  # noqa: ARG002
        """Return the last one, or what the test gave."""
        return self._kept

    def is_ending(self, job: CurrentJob) -> bool:  # noqa: ARG002
        """Return what the test said."""
        return self.is_cancelled


@contextmanager
def fake_job(batch: str = "test", index: int = 0, attempt: int = 1, last_checkpoint: Any = None) -> Iterator[FakeJob]:
    """Make `batchd.current_job()` work in here, for tests of tasks.

    >>> import batchd
    >>> def total(numbers):
    ...     job = batchd.current_job()
    ...     done, sum_ = job.last_checkpoint or (0, 0)
    ...     for at, number in enumerate(numbers[done:], done + 1):
    ...         sum_ += number
    ...         job.checkpoint((at, sum_))
    ...     return sum_
    >>> with fake_job(index=7, attempt=2, last_checkpoint=(2, 30)) as fake:
    ...     total([10, 20, 5])
    35
    >>> fake.checkpoints
    [(3, 35)]
    """
    fake = FakeJob(last_checkpoint)
    take_back = provide(lambda: CurrentJob(batch, index, attempt, fake))
    try:
        yield fake
    finally:
        take_back()
