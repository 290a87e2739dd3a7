"""A journal in memory: what was committed, in order. It holds facts and decides nothing."""

from collections.abc import Iterable

from batchd.core import entries as e
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import JobState
from batchd.core.ranges import Range, RangeSet


class MemoryJournal:
    """The committed entries of every batch.

    >>> journal = MemoryJournal()
    >>> journal.commit([e.Sealed("b")])
    >>> journal.replay("b").is_finished
    True
    """

    def __init__(self) -> None:
        self._entries: dict[str, list[e.Entry]] = {}

    def commit(self, entries: Iterable[e.Entry]) -> None:
        """Make entries durable."""
        for entry in entries:
            self._entries.setdefault(entry.batch, []).append(entry)

    def remove(self, batch: str) -> None:
        """Forget a batch."""
        self._entries.pop(batch, None)

    def entries(self, batch: str) -> tuple[e.Entry, ...]:
        """Return what was committed for a batch, oldest first."""
        return tuple(self._entries.get(batch, ()))

    def replay(self, batch: str) -> BatchFacts:
        """Return the facts that follow from the committed entries."""
        facts = BatchFacts(batch)
        for entry in self._entries.get(batch, ()):
            apply(facts, entry)
        return facts

    def unsuccessful(self, batch: str) -> tuple[tuple[JobState, tuple[Range, ...]], ...]:
        """Return the finished jobs that did not succeed, by state: what may be reopened."""
        found = {state: RangeSet() for state in (JobState.FAILED, JobState.QUARANTINED, JobState.CANCELLED)}
        for entry in self._entries.get(batch, ()):
            match entry:
                case e.Recorded(first=first, count=count, state=state) if state in found:
                    found[state].add(first, first + count)
                case e.Reopened(ranges=ranges, state=state):
                    for start, stop in ranges:
                        found[state].remove(start, stop)
                case _:
                    pass
        return tuple((state, tuple(ranges)) for state, ranges in found.items() if ranges)
