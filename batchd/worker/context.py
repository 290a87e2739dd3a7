"""What a job may know about itself, and what it may say while it runs.

It costs a job nothing that does not ask: everything is read from the worker's own state, or the journal, when asked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchd.errors import ResultUnreadable
from batchd.formats.values import dump_checked, load
from batchd.settings import CHECKPOINT_BYTES_MAX

_SLACK = 1e-6
"""Sums of fractions may be so far beside 0 and 1."""

_provider: list["Callable[[], CurrentJob]"] = []


class Host(Protocol):
    """What stands behind a running job: its worker, or a test. Each raises RuntimeError for a job it does not run."""

    def tell_progress(self, job: "CurrentJob", fraction: float) -> None:
        """Show how much of the job is done."""

    def log(self, job: "CurrentJob", text: str) -> None:
        """Write something down for people."""

    def keep(self, job: "CurrentJob", payload: bytes) -> None:
        """Record a checkpoint, pickled, in place of the one before."""

    def kept(self, job: "CurrentJob") -> bytes | None:
        """Return the last checkpoint, None when there is none."""

    def is_ending(self, job: "CurrentJob") -> bool:
        """Whether the job is to end; from now on it is given a moment to do so by itself."""


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """The job that is running: the batch's id, its index in the batch, and which attempt this is, from 1.

    What it says is said in the job itself, from any of its threads: not after its end, and not by a process that the
    job started. Both are a RuntimeError.

    >>> from batchd.testing import fake_job
    >>> def charge(customer):
    ...     job = current_job()
    ...     return f"charged {customer} under the key {job.batch}:{job.index}, in attempt {job.attempt}"
    >>> with fake_job(batch="bills", index=7, attempt=2):
    ...     charge("Ann")
    'charged Ann under the key bills:7, in attempt 2'
    """

    batch: str
    index: int
    attempt: int
    _host: Host | None = field(default=None, repr=False, compare=False)

    def progress(self, fraction: float) -> None:
        """Say how much of the job is done, from 0 to 1. `batchd status` shows it; it is kept nowhere.

        >>> from batchd.testing import fake_job
        >>> with fake_job() as fake:
        ...     for done in (1, 2, 3):
        ...         current_job().progress(done / 4)
        >>> fake.progress
        [0.25, 0.5, 0.75]
        """
        if not -_SLACK <= fraction <= 1 + _SLACK:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
        self._at_work().tell_progress(self, min(max(float(fraction), 0.0), 1.0))

    def log(self, text: str) -> None:
        """Add a line to the batch's log, which `batchd logs` shows. A line of more than 8 KiB is cut.

        >>> from batchd.testing import fake_job
        >>> with fake_job() as fake:
        ...     current_job().log("3 rows were empty")
        >>> fake.logs
        ['3 rows were empty']
        """
        self._at_work().log(self, str(text))

    def checkpoint(self, value: Any) -> None:
        """Leave something for the next attempt, should this one be cut off. Only the last one counts.

        It is pickled and sent at once, so it outlives this worker, whatever kills it; some milliseconds later it is
        durable and outlives the machine. The job's outcome removes it. What does not read back, or takes over 64 MiB,
        is refused with ValueError: write such things to a file and leave its path.

        >>> from batchd.testing import fake_job
        >>> with fake_job() as fake:
        ...     current_job().checkpoint({"row": 1000})
        >>> fake.checkpoints
        [{'row': 1000}]
        """
        try:
            payload = dump_checked(value)
        except ResultUnreadable as error:
            cause = error.__cause__
            raise ValueError(f"the checkpoint cannot be read back: {type(cause).__name__}: {cause}") from cause
        if len(payload) > CHECKPOINT_BYTES_MAX:
            raise ValueError(
                f"the checkpoint takes {len(payload):,} bytes; at most {CHECKPOINT_BYTES_MAX:,} are kept: "
                "write it to a file and leave its path"
            )
        self._at_work().keep(self, payload)

    @property
    def last_checkpoint(self) -> Any:
        """The last checkpoint that this attempt, or else an earlier one, left; None when there is none.

        It is read and unpickled each time it is asked for.

        >>> from batchd.testing import fake_job
        >>> with fake_job(attempt=2, last_checkpoint={"row": 1000}):
        ...     current_job().last_checkpoint
        {'row': 1000}
        """
        payload = self._at_work().kept(self)
        return None if payload is None else load(payload)

    @property
    def cancelled(self) -> bool:
        """Whether this job is to end: its batch was cancelled, or stops in order, or it is one worker too many.

        Where the worker would be killed at once, a job that has looked here may end by itself within 2 s. What it
        returns or raises is its outcome, as always; so where the batch is to go on later (after Ctrl-C, or with fewer
        workers) a job rather leaves a checkpoint and works on: being killed then counts for nothing.

        >>> from batchd.testing import fake_job
        >>> with fake_job() as fake:
        ...     before = current_job().cancelled
        ...     fake.cancel()
        ...     before, current_job().cancelled
        (False, True)
        """
        return self._at_work().is_ending(self)

    def _at_work(self) -> Host:
        if self._host is None:
            raise RuntimeError(f"job {self.batch}:{self.index} does not run here")
        return self._host

    def __reduce__(self) -> tuple[Any, ...]:
        """What is kept or sent elsewhere is who the job is, not its worker."""
        return CurrentJob, (self.batch, self.index, self.attempt)


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


def provide(provider: Callable[[], CurrentJob]) -> Callable[[], None]:
    """Tell `current_job` where to look; return what takes that back. Called once by a worker."""
    before = _provider[:]
    _provider[:] = [provider]

    def take_back() -> None:
        _provider[:] = before

    return take_back
