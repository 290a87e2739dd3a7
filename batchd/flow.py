"""The flow of a map: input in, results out, both lazily, in the caller's own thread.

The caller's iterables are read in the caller's thread and only as far ahead of the results as the window allows. In
between the session is pumped. Each result is read from the journal when it is due, so what is held in memory is one
record and one block of input, whatever lies between them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, NamedTuple

from batchd.client.connection import checked
from batchd.client.costing import Costing
from batchd.client.reading import values_of
from batchd.client.session import Session
from batchd.client.trimming import Trimming
from batchd.core.job import JobState
from batchd.core.ranges import Range, RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes, Span
from batchd.errors import TaskError
from batchd.intake import PULL_MAX, PULL_S, InputRaised, Items, KeyedInput, PlainInput
from batchd.view import ProgressNews, View

WINDOW: Final = 131_072
"""Jobs between the last result taken and the last input read, unless the caller says otherwise."""
WINDOW_BYTES: Final = 256 << 20
"""What inputs and results of those jobs may take on disk, as far as earlier ones tell."""
_WINDOW_UNKNOWN: Final = 256
"""Jobs, as long as nobody knows how large results are."""
FAILED: Final = (JobState.FAILED, JobState.QUARANTINED)
AGAIN: Final = (*FAILED, JobState.CANCELLED)
"""What runs again when a durable map is called again."""
_PUMP_S: Final = 1.0
_REST_SHARE: Final = 0.1
"""After slow input, results are waited for by this share of the time that the input took."""
_REST_S_MAX: Final = 0.05


class Plan(NamedTuple):
    """What a call of `map` asks for, beyond the batch's options."""

    ordered: bool
    on_error: str
    key: Callable[[Any], Any] | None
    window: int | None
    progress: Any
    costing: Costing | None


class Flow:
    """One map on its way."""

    def __init__(self, session: Session, items: Items, plan: Plan, view: View, *, is_throwaway: bool) -> None:
        self._session = session
        self._plan = plan
        self._view = view
        self._trimming = Trimming() if is_throwaway else None
        self._read_jobs = self._read_bytes = 0
        self._due: deque[Range] = deque()
        """Jobs whose results are to be given, in the order of the input."""
        self._ahead = 0
        """How many those are."""
        self._resting_until = 0.0
        self._reopening = RangeSet()
        """Jobs whose outcomes count no more: they are to run again, and that was not answered yet."""
        self._is_asked = False
        self._raised: Exception | None = None
        """What reading the input raised."""
        self._input = KeyedInput(session, plan.key, reruns=True) if plan.key else PlainInput(session)
        self._input.items, self._input.costing = items, plan.costing

    def results(self) -> Iterator[Any]:
        """Open the session and give the results. Raises what the jobs raised, and BatchdError."""
        session = self._session
        session.open()
        journal = BatchJournal(session.folder / "batches" / session.batch)
        try:
            self._input.begin(journal)
            outcomes = Outcomes(journal)
            while True:
                self._pull()
                ready = self._ready()
                if not ready or self._input.is_over:
                    self._reopen()
                if self._input.is_over and not self._reopening:
                    self._put_away()
                if not ready and not self._due and self._input.is_over:
                    break
                for start, stop in ready:
                    generation = session.progress["generation"]
                    for span in outcomes.spans(RangeSet([(start, stop)]), generation):
                        yield from values_of(span, journal, outcomes, self._plan.on_error)
                        self._forget(span)
                rest_s = self._resting_until - perf_counter() if self._may_pull else _PUMP_S
                self._pump(0.0 if ready else max(0.0, rest_s))
            if self._raised is not None:
                raise self._raised
            self._finish()
        finally:
            journal.close()

    # --- In ----------------------------------------------------------------------------------------------------

    @property
    def _window(self) -> int:
        """How many jobs may lie between the last result taken and the last input read."""
        if self._plan.window is not None:
            return self._plan.window
        if not self._read_jobs:
            return _WINDOW_UNKNOWN
        each = (self._read_bytes // self._read_jobs) + self._input.bytes_per_item
        return max(_WINDOW_UNKNOWN // 4, min(WINDOW, WINDOW_BYTES // max(1, each)))

    @property
    def _may_pull(self) -> bool:
        return not self._input.is_over and self._ahead < self._window and self._session.has_room

    def _pull(self) -> None:
        """Read some input, as far as the window allows."""
        since = perf_counter()
        if self._due and since < self._resting_until:
            return
        while self._may_pull and perf_counter() - since < PULL_S:
            for start, stop in self._taken_in(min(PULL_MAX, self._window - self._ahead)):
                self._ahead += stop - start
                follows = bool(self._due) and self._due[-1][1] == start
                self._due.append((self._due.pop()[0] if follows else start, stop))
        if (took_s := perf_counter() - since) > 2 * PULL_S:  # Results may be ready long before slow input comes.
            self._resting_until = since + took_s + min(_REST_S_MAX, took_s * _REST_SHARE)

    def _taken_in(self, count: int) -> list[Range]:
        """Read input; when that raises, the results of what came before are given first, as the built-in map does."""
        try:
            jobs = self._input.pull(count)
        except InputRaised as raised:
            self._raised, self._input.is_over = raised.error, True
            return []
        if isinstance(self._input, KeyedInput):
            for part in self._input.again:
                self._reopening.add(*part)
            if unwanted := self._input.take_unwanted():
                self._session.post("withdraw", b"", None, ranges=unwanted)
        if self._trimming is not None:
            taken = sum(stop - start for start, stop in jobs)
            self._trimming.sent(taken, taken * self._input.bytes_per_item)
        return jobs

    def _reopen(self) -> None:
        """Have jobs run again, many at once: each reopening is one more generation of outcomes to look through."""
        if not isinstance(self._input, KeyedInput) or not self._input.again or self._is_asked:
            return
        asked, self._input.again = self._input.again, RangeSet()

        def then(reply: dict[str, Any]) -> None:
            self._is_asked = False
            undone = RangeSet((start, stop) for start, stop in checked(reply)["undone"])
            for start, stop in asked:
                self._reopening.remove(start, stop)
                for part in undone.gaps(start, stop):  # It was asked for before a supervisor died.
                    self._session.recorded.add(*part)

        self._is_asked = True  # One after the other: what is read of the journal must hold the last one.
        self._session.post("reopen", b"", then, states=list(map(int, AGAIN)), ranges=list(asked))

    def _put_away(self) -> None:
        """Have jobs that were replaced count as failed no more."""
        if isinstance(self._input, KeyedInput) and (failed := self._input.take_failed()):
            self._session.post("reopen", b"", None, states=list(map(int, FAILED)), ranges=failed, is_replaced=True)

    def _pump(self, timeout_s: float) -> None:
        session = self._session
        session.pump(timeout_s)
        self._trim()
        progress = session.progress
        self._view.update(ProgressNews.from_fields(progress))
        if progress["state"] in {"stopped", "cancelled"} and self._due and not self._is_any_ready():
            raise TaskError(f"the batch was {progress['state']}: {progress['reason']}")

    def _finish(self) -> None:
        session = self._session
        if self._plan.key and self._input.skipped:
            self._view.note(f"{self._input.skipped:,} items have not changed since an earlier call, and did not run")
        if isinstance(self._input, KeyedInput) and self._input.replaced:
            self._view.note(f"{self._input.replaced:,} jobs had not succeeded and were replaced: their items changed")
        if not session.progress["is_sealed"]:
            session.post("seal", b"", None)
        session.leave(at_once=False)
        while not session.is_put_down:
            self._pump(_PUMP_S)

    # --- Out ---------------------------------------------------------------------------------------------------

    def _is_any_ready(self) -> bool:
        return any(self._session.recorded.overlaps(*part) for part in self._due)

    def _ready(self) -> list[Range]:
        """Take what can be given now out of what is due."""
        recorded = self._session.recorded
        for part in self._reopening:
            recorded.remove(*part)
        found: list[Range] = []
        if self._plan.ordered:
            while self._due and self._due[0][0] in recorded:
                start, stop = self._due.popleft()
                end = min(stop, recorded.around(start)[1])
                found.append((start, end))
                if end < stop:
                    self._due.appendleft((end, stop))
                    break
        else:
            found = [part for each in self._due for part in recorded.overlap(*each)]
            if found:
                self._due = deque(part for each in self._due for part in recorded.gaps(*each))
        self._ahead -= sum(stop - start for start, stop in found)
        return found

    def _forget(self, span: Span) -> None:
        self._read_jobs += span.stop - span.start
        self._read_bytes += span.block.nbytes * (span.stop - span.start) // span.block.count
        if self._trimming is None:
            return
        self._trimming.add(span.start, span.stop, span.block.nbytes)
        self._session.recorded.remove(span.start, span.stop)
        self._trim()

    def _trim(self) -> None:
        """Have the journal forget what was read, when it is thrown away anyway."""
        if self._trimming is not None and (ranges := self._trimming.due(is_full=self._session.is_paused)):
            self._session.trim(ranges)
