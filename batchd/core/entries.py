"""Entries: durable facts about a batch, in past participles. What is not an entry is forgotten at a restart.

`facts.apply` is the only place that says what an entry means; the journal only says how it is stored.
"""

from dataclasses import dataclass

from batchd.core.costs import Cost
from batchd.core.job import History, JobState
from batchd.core.ranges import Range


@dataclass(frozen=True, slots=True)
class Entry:
    """A fact about one batch."""

    batch: str


@dataclass(frozen=True, slots=True)
class Attached(Entry):
    """The batch was taken up; until Detached, jobs of it may be running."""

    stint: int
    """The number of this time that the batch is up, which no other time of any batch has."""


@dataclass(frozen=True, slots=True)
class Detached(Entry):
    """The batch was put down in order: no job of it is running."""


@dataclass(frozen=True, slots=True)
class Submitted(Entry):
    """Jobs [first, first + count) were given. `sequence` makes a resubmission of the same input harmless."""

    first: int
    count: int
    segments: tuple[bytes, ...]
    client: str
    sequence: int
    checkpoint: str
    """How far the reader of the input was, as the source wrote it."""
    keys: bytes = b""
    """KEY_BYTES a job: a digest of its key, and one of its input. Empty when jobs have no key."""
    costs: tuple[Cost, ...] = ()
    """Of those that were said to be costly."""


@dataclass(frozen=True, slots=True)
class Left(Entry):
    """A client left with everything answered, or died: it never asks again for what it submitted."""

    client: str


@dataclass(frozen=True, slots=True)
class Defined(Entry):
    """A callable that jobs name by its mark. It comes before the first job that names it."""

    mark: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Trimmed(Entry):
    """The client has all it wants of these finished jobs: their inputs and outcomes are forgotten, the facts stay."""

    ranges: tuple[Range, ...]
    marks: tuple[bytes, ...] = ()
    """Callables that no unfinished job names: they go as well, and are defined again before one does."""


@dataclass(frozen=True, slots=True)
class Noted(Entry):
    """A running job left a checkpoint: its next attempt finds it, its outcome removes it."""

    index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Sealed(Entry):
    """The input is complete."""


@dataclass(frozen=True, slots=True)
class Unsealed(Entry):
    """The input grew at its end: more jobs will come."""


@dataclass(frozen=True, slots=True)
class Recorded(Entry):
    """Jobs [first, first + count) have an outcome: the one terminal fact."""

    first: int
    count: int
    state: JobState
    block: bytes = b""
    """The outcome block as the worker encoded it; empty when there was none to encode it."""
    failure: bytes = b""
    """Without a block: the encoded failure of the one job, or nothing at all."""


@dataclass(frozen=True, slots=True)
class Explained(Entry):
    """A cause of failure, told once per fingerprint."""

    fingerprint: bytes
    text: bytes


@dataclass(frozen=True, slots=True)
class Charged(Entry):
    """Jobs [first, first + count) were begun, have no outcome, and carry this history from now on."""

    first: int
    count: int
    history: History


@dataclass(frozen=True, slots=True)
class Reopened(Entry):
    """These finished, unsuccessful jobs are to run again; their new outcomes are of the next generation."""

    generation: int
    ranges: tuple[Range, ...]
    state: JobState
    """What they were."""


@dataclass(frozen=True, slots=True)
class Stopped(Entry):
    """The batch stopped leasing by a rule of its own, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class CancelOrdered(Entry):
    """Somebody cancelled the batch; every job without an outcome becomes cancelled."""

    reason: str
