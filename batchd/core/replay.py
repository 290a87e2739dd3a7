"""What a dead supervisor left running: which of those jobs were begun, and what they are charged.

The flight recorder outlives the supervisor and describes each worker's leases. After a reboot there is no recorder:
then every job without an outcome may have been begun, and no attempt number may be given twice.

What is returned ends with Detached and is committed whole, so doing it again charges nobody a second time.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from batchd.core import entries as e
from batchd.core.events import JobsAcked, Position
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import Allowances, Cause, JobState, after
from batchd.core.lease import reach


class LeaseTrace(NamedTuple):
    """One lease the recorder describes, and where its worker was."""

    batch: str
    stint: int
    number: int
    first: int
    stop: int
    """No job at or beyond it was begun: lowered when a cut is certain, not when its limit is written."""
    position: Position | None
    reports: tuple[JobsAcked, ...] = ()
    """What its worker said of it, as far as that is known: much of it may be recorded."""


def interrupted(
    facts: BatchFacts, traces: Iterable[LeaseTrace], allowances: Allowances, failure: bytes = b""
) -> list[e.Entry]:
    """Apply and return the entries for the jobs that `traces` show as begun and that have no outcome.

    Those that a report says succeeded are recorded; one that failed may run again, for nobody knows its allowances.
    `failure` is what is recorded for a job that was interrupted too often. Traces of other batches do not
    matter, nor do those of another stint: that was put down in order, and may have been of a batch that is gone.
    """
    if not facts.is_attached:
        return []
    own = [trace for trace in traces if (trace.batch, trace.stint) == (facts.batch, facts.stint)]
    entries = [entry for trace in own for entry in _reported(facts, trace)]
    made_progress = facts.done.size > facts.done_at_attach
    for trace in own:
        begun, running = reach(trace.number, trace.first, trace.stop, trace.position)
        for start, stop in list(facts.done.gaps(trace.first, min(begun, facts.size))):
            entries += _charge(facts, start, stop, running, allowances, made_progress, failure)
    return [*entries, _put_down(facts)]


def _reported(facts: BatchFacts, trace: LeaseTrace) -> list[e.Entry]:
    """Record the successes that were said of a lease and are not recorded."""
    begun, _ = reach(trace.number, trace.first, trace.stop, trace.position)
    entries: list[e.Entry] = []
    for report in trace.reports:
        stop = report.first + report.count
        is_of_lease = report.lease == trace.number and trace.first <= report.first and stop <= min(begun, facts.size)
        if is_of_lease and report.state is JobState.SUCCEEDED and not facts.done.overlaps(report.first, stop):
            entry = e.Recorded(facts.batch, report.first, report.count, JobState.SUCCEEDED, report.block)
            apply(facts, entry)
            entries.append(entry)
    return entries


def all_interrupted(facts: BatchFacts) -> list[e.Entry]:
    """Apply and return the entries for a batch whose recorder is lost: each unfinished job may have begun."""
    if not facts.is_attached:
        return []
    entries: list[e.Entry] = []
    for start, stop in list(facts.done.gaps(0, facts.size)):
        entries += _charge(facts, start, stop, None, Allowances(), made_progress=False, failure=b"")
    return [*entries, _put_down(facts)]


def cancelled(facts: BatchFacts, reason: str) -> list[e.Entry]:
    """Apply and return the entries for a batch that is given up while none of its jobs runs any more."""
    order = e.CancelOrdered(facts.batch, reason)
    left = list(facts.done.gaps(0, facts.size))
    outcomes = [e.Recorded(facts.batch, start, stop - start, JobState.CANCELLED) for start, stop in left]
    for entry in (order, *outcomes):
        apply(facts, entry)
    return [order, *outcomes, _put_down(facts)]


def _put_down(facts: BatchFacts) -> e.Entry:
    entry = e.Detached(facts.batch)
    apply(facts, entry)
    return entry


def _charge(
    facts: BatchFacts,
    start: int,
    stop: int,
    running: int | None,
    allowances: Allowances,
    made_progress: bool,
    failure: bytes,
) -> list[e.Entry]:
    entries: list[e.Entry] = []
    cuts = [start, stop] if running is None else sorted({start, stop, max(start, min(running, stop))})
    for low, high in pairwise(cuts):
        for first, last, history in list(facts.histories.spans(low, high)):
            if made_progress:
                history = history._replace(interruptions=0)  # noqa: PLW2901  (the allowance is per standstill)
            cause = Cause.INTERRUPTION if first == running else Cause.REPLAY
            verdict = after(history, cause, allowances)
            entry: e.Entry = e.Charged(facts.batch, first, last - first, verdict.history)
            if verdict.state.is_final:
                entry = e.Recorded(facts.batch, first, last - first, verdict.state, failure=failure)
            apply(facts, entry)
            entries.append(entry)
    return entries
