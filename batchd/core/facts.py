"""What is durably true about one batch, and the one function that changes it.

`apply` is used live, after each step, and in replay, at each start: memory == replay(journal) is a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from batchd.core import entries as e
from batchd.core.costs import Costs
from batchd.core.job import FRESH, History, JobState
from batchd.core.ranges import RangeMap, RangeSet
from batchd.errors import IllegalTransition


class BatchState(Enum):
    """Where a batch stands, as people read it."""

    OPEN = "open"
    SEALED = "sealed"
    STOPPED = "stopped"
    FINISHED = "finished"
    CANCELLED = "cancelled"


BATCH_TRANSITIONS: Final[Mapping[tuple[BatchState, str], BatchState]] = {
    (BatchState.OPEN, "seal, jobs left"): BatchState.SEALED,
    (BatchState.OPEN, "seal, none left"): BatchState.FINISHED,
    (BatchState.SEALED, "last outcome"): BatchState.FINISHED,
    (BatchState.OPEN, "stop rule"): BatchState.STOPPED,
    (BatchState.SEALED, "stop rule"): BatchState.STOPPED,
    (BatchState.STOPPED, "last outcome"): BatchState.FINISHED,
    (BatchState.STOPPED, "run again"): BatchState.SEALED,
    (BatchState.STOPPED, "run again, input open"): BatchState.OPEN,
    (BatchState.STOPPED, "retry"): BatchState.SEALED,
    (BatchState.STOPPED, "retry, input open"): BatchState.OPEN,
    (BatchState.OPEN, "cancel"): BatchState.CANCELLED,
    (BatchState.SEALED, "cancel"): BatchState.CANCELLED,
    (BatchState.STOPPED, "cancel"): BatchState.CANCELLED,
    (BatchState.SEALED, "input grew"): BatchState.OPEN,
    (BatchState.FINISHED, "input grew"): BatchState.OPEN,
    (BatchState.FINISHED, "input grew, stopped before"): BatchState.STOPPED,
    (BatchState.FINISHED, "retry"): BatchState.SEALED,
    (BatchState.CANCELLED, "retry"): BatchState.SEALED,
}
"""The arrows of `BatchFacts.state`, which is derived, never stored: tests hold one against the other."""


@dataclass(slots=True)
class BatchFacts:
    """The durable truth about a batch. Everything else the supervisor knows is volatile."""

    batch: str
    size: int = 0
    """Jobs given so far."""
    is_sealed: bool = False
    generation: int = 0
    """Raised by each retry of finished jobs."""
    stint: int = 0
    """Of the last time that the batch was taken up: what was said of leases with another is not about this."""
    is_attached: bool = False
    done_at_attach: int = 0
    """How many jobs were done when the batch was last taken up: what came since is progress."""
    stopped: str = ""
    cancelled: str = ""
    done: RangeSet = field(default_factory=RangeSet)
    counts: dict[JobState, int] = field(default_factory=dict)
    """Jobs by final state."""
    histories: RangeMap[History] = field(default_factory=lambda: RangeMap(FRESH))
    """Of jobs without an outcome that were begun before."""
    attempts_max: int = 0
    """The highest number of attempts in any history so far; none was ever numbered more than one above."""
    noted: RangeSet = field(default_factory=RangeSet)
    """Jobs without an outcome that left a checkpoint."""
    costs: Costs = field(default_factory=Costs)
    """Of jobs that have not succeeded and were said to be costly."""
    sequences: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The last submission of each client that may yet ask for it again: its number, and the first job it made."""
    checkpoint: str = ""
    """The last reader checkpoint."""

    @property
    def is_finished(self) -> bool:
        """Whether every job the batch will ever have has an outcome."""
        return self.is_sealed and self.done.size == self.size

    @property
    def state(self) -> BatchState:
        """The state people read, derived from the facts."""
        if self.cancelled:
            return BatchState.CANCELLED
        if self.is_finished:
            return BatchState.FINISHED
        if self.stopped:
            return BatchState.STOPPED
        return BatchState.SEALED if self.is_sealed else BatchState.OPEN

    def count(self, state: JobState) -> int:
        """How many jobs have this final state."""
        return self.counts.get(state, 0)


def apply(facts: BatchFacts, entry: e.Entry) -> None:
    """Change `facts` by `entry`. Nothing else may. Raise IllegalTransition for a fact that cannot follow."""
    match entry:
        case e.Recorded():
            _record(facts, entry)
        case e.Submitted():
            if entry.first != facts.size or facts.is_sealed:
                raise IllegalTransition(f"{entry.first} jobs submitted at {facts.size} of {facts.batch}")
            facts.size += entry.count
            if entry.costs:
                facts.costs.add(entry.first, entry.costs)
            facts.sequences[entry.client] = entry.sequence, entry.first
            facts.checkpoint = entry.checkpoint
        case e.Left(client=client):
            facts.sequences.pop(client, None)
        case e.Charged():
            stop = entry.first + entry.count
            if stop > facts.size or facts.done.overlaps(entry.first, stop):
                raise IllegalTransition(f"charged finished jobs {entry.first}..{stop} of {facts.batch}")
            facts.histories.put(entry.first, stop, entry.history)
            facts.attempts_max = max(facts.attempts_max, entry.history.attempts)
        case e.Attached(stint=stint):
            facts.stint, facts.is_attached, facts.stopped = stint, True, ""
            facts.done_at_attach = facts.done.size
        case e.Detached():
            facts.is_attached = False
        case e.Sealed():
            facts.is_sealed = True
        case e.Unsealed():
            facts.is_sealed = False
        case e.Stopped(reason=reason):
            facts.stopped = reason
        case e.CancelOrdered(reason=reason):
            facts.cancelled, facts.is_sealed = reason, True
        case e.Reopened():
            _reopen(facts, entry)
        case e.Noted(index=index):
            facts.noted.add(index, index + 1)
        case e.Explained() | e.Defined() | e.Trimmed():
            pass  # For people, for workers, for the disk: nothing is decided by them.
        case _:
            raise IllegalTransition(f"unknown entry {entry!r}")


def _record(facts: BatchFacts, entry: e.Recorded) -> None:
    stop = entry.first + entry.count
    if not entry.state.is_final or stop > facts.size or facts.done.overlaps(entry.first, stop):
        raise IllegalTransition(f"{entry.state.name} {entry.first}..{stop} of {facts.batch} recorded twice")
    facts.done.add(entry.first, stop)
    facts.counts[entry.state] = facts.counts.get(entry.state, 0) + entry.count
    if facts.histories:
        facts.histories.clear(entry.first, stop)
    if facts.noted:
        facts.noted.remove(entry.first, stop)
    if facts.costs and entry.state is JobState.SUCCEEDED:  # Any other job may be retried, and is as long then.
        facts.costs.drop(entry.first, stop)


def _reopen(facts: BatchFacts, entry: e.Reopened) -> None:
    if entry.generation not in {facts.generation, facts.generation + 1} or entry.state is JobState.SUCCEEDED:
        raise IllegalTransition(f"generation {entry.generation} after {facts.generation} of {facts.batch}")
    if entry.generation > facts.generation:
        facts.attempts_max += 1  # Outcomes forget their histories: go on above every number that may have been given.
    tried = History(attempts=facts.attempts_max)
    for start, stop in entry.ranges:
        if any(True for _ in facts.done.gaps(start, stop)):
            raise IllegalTransition(f"reopened unfinished jobs {start}..{stop} of {facts.batch}")
        facts.done.remove(start, stop)
        facts.counts[entry.state] -= stop - start
        facts.histories.put(start, stop, tried)
    facts.generation = entry.generation
    facts.cancelled = facts.stopped = ""
