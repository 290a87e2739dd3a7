"""How a batch stands, as an application sees it, and which of its results it may be given next. Pure."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from batchd.core.job import JobState
from batchd.core.ranges import RangeSet

NOTHING_YET: Final = object()
"""Stands between results that have not come."""


class Standing(NamedTuple):
    """How a batch stands, in jobs: how many were given and are done, and what became of those.

    >>> batch = client.submit_batch(int, ["1", "many"], keep_going=True)
    >>> batch.wait()
    Standing(size=2, done=2, succeeded=1, failed=1, cancelled=0, state='finished', reason='')
    """

    size: int
    done: int
    succeeded: int
    failed: int
    """With the quarantined."""
    cancelled: int
    state: str
    """open, sealed, stopped, finished or cancelled."""
    reason: str
    """Why it stopped or was cancelled."""


def standing_of(size: int, done: int, counts: dict[JobState, int], state: str, reason: str) -> Standing:
    """Return how a batch stands, of what is told of it."""
    return Standing(
        size=size,
        done=done,
        succeeded=counts.get(JobState.SUCCEEDED, 0),
        failed=counts.get(JobState.FAILED, 0) + counts.get(JobState.QUARANTINED, 0),
        cancelled=counts.get(JobState.CANCELLED, 0),
        state=state,
        reason=reason,
    )


def due(done: RangeSet, given: RangeSet, size: int, *, ordered: bool) -> Iterator[tuple[int, int]]:
    """Give the jobs that are done and not given: those before the first gap, or all."""
    for start, stop in list(given.gaps(0, size)):
        at = start
        for low, high in done.overlap(start, stop):
            if ordered and low > at:
                return
            yield low, high
            at = high
        if ordered and at < stop:
            return


def only_results(steps: Iterator[Any]) -> Iterator[Any]:
    """Give what has come."""
    for value in steps:
        if value is not NOTHING_YET:
            yield value
        del value  # Its taker may let go of it before the next is asked for.
