"""What a job may know about itself.

It costs a job nothing: everything is read from the worker's own state when asked.
"""

from collections.abc import Callable
from dataclasses import dataclass

_provider: list["Callable[[], CurrentJob]"] = []


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """The job that is running: the batch's id, its index in the batch, and which attempt this is, from 1."""

    batch: str
    index: int
    attempt: int


def current_job() -> CurrentJob:
    """Return the job this code runs in. Raises RuntimeError outside of a job.

    An attempt number is never given twice for the same job, so (batch, index, attempt) names one execution and
    (batch, index) is a good idempotency key for side effects.

    >>> current_job()
    Traceback (most recent call last):
    RuntimeError: current_job() was called outside of a batchd job
    """
    if not _provider:
        raise RuntimeError("current_job() was called outside of a batchd job")
    return _provider[0]()


def provide(provider: Callable[[], CurrentJob]) -> None:
    """Tell `current_job` where to look. Called once by the worker."""
    _provider[:] = [provider]
