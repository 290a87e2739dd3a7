"""Commands: everything the scheduler can order. Imperatives; volatile."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a worker for a key."""

    worker: int
    key: str


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Send a worker the right to run jobs [first, stop), described in lane `lane` of its recorder slot."""

    worker: int
    lease: int
    lane: int
    batch: str
    stint: int
    first: int
    stop: int
    attempt: int
    is_timed: bool
    reports_each: bool = False
    """One of its jobs may kill its worker: each is reported by itself, so that it is known which."""


@dataclass(frozen=True, slots=True)
class CutLease:
    """Write a lease's limit, wait, read the position again, and report what is certain (LeaseCut)."""

    worker: int
    lease: int
    lane: int
    stop: int
    is_ending: bool = False
    """Tell the job that runs under the lease that it is to end."""


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Close the worker's lease pipe: it ends when it has nothing left."""

    worker: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """Kill the worker and all it started, now."""

    worker: int
    why: str
    """In words, or empty when the worker is not to blame."""
    with_stack: bool = False
    """Let it print its Python stack first."""
    has_grace: bool = False
    """A job that watches for its end may end by itself first."""


@dataclass(frozen=True, slots=True)
class ForgetWorker:
    """Everything the worker did is durable: its recorder slot may be used again."""

    worker: int


@dataclass(frozen=True, slots=True)
class PutDown:
    """The batch is durably detached: close it and tell its client."""

    batch: str


Command = StartWorker | GrantLease | CutLease | StopWorker | KillWorker | ForgetWorker | PutDown
