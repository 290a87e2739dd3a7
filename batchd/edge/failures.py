"""Failures of one batch, gathered by what they have in common.

Nothing is printed or decided here. The one idea: a failure record starts with its fingerprint, so a million failures
are counted by eight bytes each, and only the first of a cause is decoded. What is kept is bounded however many fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from batchd.core.job import JobState
from batchd.core.ranges import Range
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes, Span
from batchd.errors import FormatError
from batchd.formats.report import FINGERPRINT_BYTES, NO_FINGERPRINT, Failure

GROUPS_MAX: Final = 100
RANGES_MAX: Final = 12
OTHER: Final = "other causes"
_MARKS_MAX: Final = 10_000
_WITH_FIGURES: Final = frozenset({"JobTimeout", "JobOverMemory"})
"""Their fingerprints differ by what was measured; for people each is one cause."""


@dataclass(slots=True)
class FailureGroup:
    """Jobs that failed in the same way. What tells more than the number is that of the first of them.

    >>> batch = client.submit_batch(int, ["1", "many", "none"], keep_going=True)
    >>> standing = batch.wait()
    >>> (group,) = batch.failures()
    >>> group.count, group.type, group.message
    (2, 'ValueError', "invalid literal for int() with base 10: 'many'")
    """

    fingerprint: str
    """In hexadecimal; '' when there is none."""
    type: str
    """Of the exception, or JobCrashed and the like."""
    message: str
    state: JobState
    """FAILED or QUARANTINED."""
    output: str = ""
    """The last lines it printed."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is known: attempt, pid, signal, ..."""
    traceback: str = ""
    """The worker's, '' when there is none."""
    count: int = 0
    """How many jobs."""
    ranges: list[Range] = field(default_factory=list)
    """The first of them, in order, as [start, stop)."""
    more: int = 0
    """How many are not in `ranges`."""

    def add(self, start: int, stop: int, ranges_max: int) -> None:
        """Count the jobs [start, stop), which come after all before them."""
        self.count += stop - start
        if self.more or (len(self.ranges) == ranges_max and self.ranges[-1][1] != start):
            self.more += stop - start
        elif self.ranges and self.ranges[-1][1] == start:
            self.ranges[-1] = (self.ranges[-1][0], stop)
        else:
            self.ranges.append((start, stop))

    @property
    def example(self) -> int:
        """The first job's index.

        >>> FailureGroup("", "ValueError", "no", JobState.FAILED, ranges=[(8, 11), (77, 78)]).example
        8
        """
        return self.ranges[0][0]

    @property
    def indices(self) -> str:
        """The jobs as people write them.

        >>> FailureGroup("", "ValueError", "no", JobState.FAILED, ranges=[(8, 11), (77, 78)], more=1204).indices
        '8-10, 77 and 1,204 more'
        """
        text = ", ".join(f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in self.ranges)
        return f"{text} and {self.more:,} more" if self.more else text


def group_failures(
    journal: BatchJournal, outcomes: Outcomes, *, groups_max: int = GROUPS_MAX, ranges_max: int = RANGES_MAX
) -> list[FailureGroup]:
    """Return the causes of the jobs that failed or were quarantined, the most frequent first, the rest as one."""
    gathering = _Gathering(groups_max, ranges_max)
    facts = journal.facts
    left = facts.count(JobState.FAILED) + facts.count(JobState.QUARANTINED)
    if left:
        for span in outcomes.spans(facts.done, facts.generation):
            if span.state in {JobState.FAILED, JobState.QUARANTINED}:
                gathering.take(span)
                left -= span.stop - span.start
                if not left:
                    break
    found = sorted(gathering.groups.values(), key=lambda group: (-group.count, group.example))
    for group in found:
        group.traceback = outcomes.explain(bytes.fromhex(group.fingerprint)) if group.fingerprint else ""
    return [*found, gathering.rest] if gathering.rest.count else found


class _Gathering:
    """The causes seen so far, at most so many."""

    def __init__(self, groups_max: int, ranges_max: int) -> None:
        self.groups: dict[tuple[JobState, str], FailureGroup] = {}
        self.rest = FailureGroup("", OTHER, "", JobState.FAILED)
        self._groups_max, self._ranges_max = groups_max, ranges_max
        self._by_mark: dict[tuple[JobState, bytes], FailureGroup] = {}

    def take(self, span: Span) -> None:
        """Count the failures of a span."""
        for start, stop, mark, payload in _marked(span):
            group = self._by_mark.get((span.state, mark)) if mark != NO_FINGERPRINT else None
            if group is None:
                group = self._group_of(span, mark, payload)
            group.add(start, stop, self._ranges_max)

    def _group_of(self, span: Span, mark: bytes, payload: memoryview | None) -> FailureGroup:
        failure = _decoded(span, payload)
        is_alike = mark == NO_FINGERPRINT or failure.type in _WITH_FIGURES
        key = (span.state, failure.type if is_alike else mark.hex())
        group = self.groups.get(key)
        if group is None and len(self.groups) < self._groups_max:
            group = self.groups[key] = FailureGroup(
                fingerprint=mark.hex() if mark != NO_FINGERPRINT else "",
                type=failure.type,
                message=failure.message,
                state=span.state,
                output=failure.output,
                details=failure.details,
            )
        group = group or self.rest
        if mark != NO_FINGERPRINT and len(self._by_mark) < _MARKS_MAX:
            self._by_mark[span.state, mark] = group
        return group


def _marked(span: Span) -> Iterator[tuple[int, int, bytes, memoryview | None]]:
    """Give (start, stop, fingerprint, record) of the span's failures."""
    if not span.block.body:
        yield span.start, span.stop, NO_FINGERPRINT, None
        return
    for index, payload in enumerate(span.payloads(), span.start):
        yield index, index + 1, bytes(payload[:FINGERPRINT_BYTES]), payload


def _decoded(span: Span, payload: memoryview | None) -> Failure:
    if payload is None:
        return next(span.failures())[1]
    try:
        return Failure.decode(payload)
    except FormatError as error:
        return Failure("FormatError", str(error), NO_FINGERPRINT)
