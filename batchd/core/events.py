"""Events: everything the world can tell the scheduler. Things and past participles; volatile."""

from dataclasses import dataclass
from enum import Enum

from batchd.core.costs import Cost
from batchd.core.facts import BatchFacts
from batchd.core.job import DEFAULT_ALLOWANCES, Allowances, JobState
from batchd.core.ranges import Range


@dataclass(frozen=True, slots=True)
class Options:
    """What a batch asks of the scheduler. These may differ from one run of the batch to the next."""

    workers: int = 1
    """At most so many workers hold leases of the batch at once."""
    brings_workers: bool = False
    """The pool grows by them, instead of being as large as the largest batch: nobody waits for anybody else."""
    allowances: Allowances = DEFAULT_ALLOWANCES
    timeout_s: float | None = None
    memory_bytes_max: int | None = None
    failures_max: int | None = None
    failures_share_max: float | None = None
    keep_going: bool = False


class Phase(Enum):
    """What a worker was doing with the job at its position."""

    IDLE = 0
    """Nothing: every job up to and including the position has been reported."""
    RUNNING = 1
    """Reading its input, calling the task, or encoding its result: the job's own code may be at fault."""
    REPORTING = 2
    """The job ended; its outcome was being sent."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a worker is, read from the flight recorder."""

    lease: int
    index: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class BatchAttached:
    """A client brought a batch; its facts were read from the journal."""

    facts: BatchFacts
    options: Options
    key: str
    """Workers serve one key: the same task, source, import path, folder and environment."""
    stint: int
    """A number that was never given before: leases of the batch have it until the batch is put down."""


@dataclass(frozen=True, slots=True)
class SegmentsReceived:
    """A client sent the next jobs of a batch."""

    batch: str
    count: int
    segments: tuple[bytes, ...]
    client: str
    sequence: int
    checkpoint: str
    keys: bytes = b""
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionReceived:
    """A client sent a callable that its next jobs name."""

    batch: str
    mark: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class WithdrawRequested:
    """A client wants these jobs no more. Those that began go on; the others are cancelled."""

    batch: str
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class TrimRequested:
    """A client has read these jobs' outcomes and nobody else will, nor name these callables without sending them."""

    batch: str
    ranges: tuple[Range, ...]
    marks: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class SealRequested:
    """The client has no more jobs."""

    batch: str


@dataclass(frozen=True, slots=True)
class UnsealRequested:
    """The client found more input behind the end of a complete one."""

    batch: str


@dataclass(frozen=True, slots=True)
class DetachRequested:
    """The batch's client leaves. Running jobs may finish, unless `at_once`."""

    batch: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """A client leaves with everything answered, or is dead."""

    batch: str
    client: str


@dataclass(frozen=True, slots=True)
class JournalLost:
    """Somebody took the batch's files away: nothing of it can be recorded where others find it."""

    batch: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody gives the batch up."""

    batch: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReopenRequested:
    """Somebody wants these finished, unsuccessful jobs to run again."""

    batch: str
    ranges: tuple[tuple[JobState, tuple[Range, ...]], ...]
    generation: int | None = None
    """Of the facts they were read from: when another reopening came between, they are stale and nothing happens."""
    is_replaced: bool = False
    """Others were given in their place: they count as cancelled from now on, and do not run."""


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """The worker count is to be this, or (None) what the batches ask for."""

    workers: int | None


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has imported its task and waits for leases."""

    worker: int


@dataclass(frozen=True, slots=True)
class JobsAcked:
    """A worker reports jobs [first, first + count) of a lease, all in the same state."""

    worker: int
    lease: int
    first: int
    count: int
    state: JobState
    block: bytes
    busy_s: float
    fingerprint: bytes = b""
    """Of a failure: what makes two failures the same."""


@dataclass(frozen=True, slots=True)
class CauseExplained:
    """A worker met a new kind of failure and tells it once."""

    worker: int
    lease: int
    fingerprint: bytes
    text: bytes


@dataclass(frozen=True, slots=True)
class CheckpointReceived:
    """A running job left a checkpoint."""

    worker: int
    lease: int
    index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """A worker is through with a lease; it ran no job at or beyond `stop`."""

    worker: int
    lease: int
    stop: int


@dataclass(frozen=True, slots=True)
class LeaseCut:
    """A lease's limit was written and the position read again: no job at or beyond `stop` will run."""

    worker: int
    lease: int
    stop: int


@dataclass(frozen=True, slots=True)
class WorkerObserved:
    """A sample of a worker whose batch has limits per job."""

    worker: int
    position: Position
    running_s: float
    """How long the job at the position has been running, 0 when not known."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker's exit was observed and its last reports were read."""

    worker: int
    position: Position | None
    cause: str
    """In words: `killed by SIGSEGV`, `exited with code 0 before finishing`. Empty: it never was a process."""
    failure: bytes = b""
    """The same for the record, with its last output, encoded."""
    is_short: bool = False
    """The system refused another process: whoever is there goes on without it."""
    is_terminated: bool = False
    """Somebody sent it SIGTERM."""


@dataclass(frozen=True, slots=True)
class KeyFailed:
    """No worker can be started for a key: the task does not import, or the template process died."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """All entries up to and including this turn are durable."""

    turn: int


@dataclass(frozen=True, slots=True)
class DiskFilled:
    """What is to be durable has no room; once it has, `Committed` tells."""


Event = (
    BatchAttached
    | SegmentsReceived
    | FunctionReceived
    | WithdrawRequested
    | TrimRequested
    | SealRequested
    | UnsealRequested
    | DetachRequested
    | ClientLeft
    | JournalLost
    | CancelRequested
    | ReopenRequested
    | ScaleRequested
    | WorkerReady
    | JobsAcked
    | CauseExplained
    | CheckpointReceived
    | LeaseEnded
    | LeaseCut
    | WorkerObserved
    | WorkerGone
    | KeyFailed
    | Committed
    | DiskFilled
)
