"""A job: its states, what happened to it so far, and the one table of what may become of it.

`after` is the table "what counts as what" of ARCHITECTURE.md: nothing else decides whether a job runs again.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Final, NamedTuple

from batchd.settings import CRASHES_MAX, INTERRUPTIONS_MAX


class JobState(IntEnum):
    """Where a job stands. The numbers of the four last are stored in outcome segments and never change."""

    QUEUED = 0
    RUNNING = 1
    BACKOFF = 2
    SUCCEEDED = 3
    FAILED = 4
    QUARANTINED = 5
    CANCELLED = 6

    @property
    def is_final(self) -> bool:
        """Whether the job has an outcome."""
        return self >= JobState.SUCCEEDED


class Cause(Enum):
    """Why a job's run ended. The values are the words people read."""

    SUCCESS = "returned"
    FAILURE = "raised, timed out, or went past a limit of its own"
    CRASH = "took its worker with it"
    INTERRUPTION = "was cut off by the death of the supervisor or the machine"
    REPLAY = "was begun and left no outcome, through no fault of its own"
    CANCEL = "was cancelled"


class Trigger(Enum):
    """What moves a job along an arrow of TRANSITIONS. The values label the arrows of the diagram."""

    LEASED = "leased and begun"
    RETURNED = "returned"
    FAILED_RETRY = "failed, retries left"
    FAILED_LAST = "failed, none left"
    REPLAYED = "cut off: planned stop, first crash, interruption"
    CRASHED_AGAIN = "crashed again"
    GIVEN_UP = "crashed or interrupted too often"
    DUE = "due"
    CANCEL = "cancel"
    RETRY = "retry"


TRANSITIONS: Final[Mapping[tuple[JobState, Trigger], JobState]] = {
    (JobState.QUEUED, Trigger.LEASED): JobState.RUNNING,
    (JobState.QUEUED, Trigger.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, Trigger.RETURNED): JobState.SUCCEEDED,
    (JobState.RUNNING, Trigger.FAILED_RETRY): JobState.BACKOFF,
    (JobState.RUNNING, Trigger.FAILED_LAST): JobState.FAILED,
    (JobState.RUNNING, Trigger.REPLAYED): JobState.QUEUED,
    (JobState.RUNNING, Trigger.CRASHED_AGAIN): JobState.BACKOFF,
    (JobState.RUNNING, Trigger.GIVEN_UP): JobState.QUARANTINED,
    (JobState.RUNNING, Trigger.CANCEL): JobState.CANCELLED,
    (JobState.BACKOFF, Trigger.DUE): JobState.QUEUED,
    (JobState.BACKOFF, Trigger.CANCEL): JobState.CANCELLED,
    (JobState.FAILED, Trigger.RETRY): JobState.QUEUED,
    (JobState.QUARANTINED, Trigger.RETRY): JobState.QUEUED,
    (JobState.CANCELLED, Trigger.RETRY): JobState.QUEUED,
}


class History(NamedTuple):
    """What a job has been through and is not finished with: four counters, packed into the journal."""

    attempts: int = 0
    """Executions begun so far; the next one is numbered one more. Never given twice."""
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether the job may be what kills workers or supervisors: it is leased alone."""
        return self.crashes > 0 or self.interruptions > 0

    @property
    def is_at_last(self) -> bool:
        """Whether the next death of a supervisor at which the job runs gives it up."""
        return self.interruptions >= INTERRUPTIONS_MAX - 1


FRESH: Final = History()


class Allowances(NamedTuple):
    """How often a job may be cut off by each cause before it is given up."""

    retries: int = 0
    crashes_max: int = CRASHES_MAX
    interruptions_max: int = INTERRUPTIONS_MAX


DEFAULT_ALLOWANCES: Final = Allowances()


class Verdict(NamedTuple):
    """What becomes of a job: its next state and the history it carries there."""

    state: JobState
    history: History


def after(history: History, cause: Cause, allowed: Allowances) -> Verdict:
    """Return what becomes of a running job.

    >>> after(FRESH, Cause.CRASH, Allowances(crashes_max=1)).state.name
    'QUARANTINED'
    """
    trigger, tried = _judge(history._replace(attempts=history.attempts + 1), cause, allowed)
    return Verdict(TRANSITIONS[JobState.RUNNING, trigger], tried)


def _judge(tried: History, cause: Cause, allowed: Allowances) -> tuple[Trigger, History]:
    match cause:
        case Cause.SUCCESS:
            return Trigger.RETURNED, tried
        case Cause.CANCEL:
            return Trigger.CANCEL, tried
        case Cause.REPLAY:
            return Trigger.REPLAYED, tried
        case Cause.FAILURE:
            tried = tried._replace(failures=tried.failures + 1)
            return (Trigger.FAILED_RETRY if tried.failures <= allowed.retries else Trigger.FAILED_LAST), tried
        case Cause.CRASH:
            tried = tried._replace(crashes=tried.crashes + 1)
            if tried.crashes >= allowed.crashes_max:
                return Trigger.GIVEN_UP, tried
            return (Trigger.REPLAYED if tried.crashes == 1 else Trigger.CRASHED_AGAIN), tried
        case Cause.INTERRUPTION:  # pragma: no branch  (every cause has a case)
            tried = tried._replace(interruptions=tried.interruptions + 1)
            given_up = tried.interruptions >= allowed.interruptions_max
            return (Trigger.GIVEN_UP if given_up else Trigger.REPLAYED), tried
