"""An author of journals: random entries that may follow each other, and what must be true after them."""

import pickle
from dataclasses import replace
from random import Random
from typing import Any

from batchd.core import entries as e
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import History, JobState
from batchd.core.ranges import RangeSet
from batchd.formats.report import Failure
from batchd.formats.segment import input_blocks, pack_items, pack_vector

UNSUCCESSFUL = (JobState.FAILED, JobState.QUARANTINED, JobState.CANCELLED)


def submission(facts: BatchFacts, items: list[Any], client: str = "c", sequence: int = 1) -> e.Submitted:
    """Return the entry that adds items to a batch."""
    segments = tuple(block for _, block in input_blocks(items))
    checkpoint = f"{facts.size + len(items)} items"
    return e.Submitted(facts.batch, facts.size, len(items), segments, client, sequence, checkpoint)


def success(batch: str, first: int, values: list[Any]) -> e.Recorded:
    """Return the entry of jobs that returned plain values."""
    block = pack_vector(first, JobState.SUCCEEDED, values)
    return e.Recorded(batch, first, len(values), JobState.SUCCEEDED, block)


class Author:
    """Writes entries about one batch and keeps the books of what they say."""

    def __init__(self, batch: str, seed: int) -> None:
        self.facts = BatchFacts(batch)
        self.outcomes: dict[int, tuple[JobState, Any]] = {}
        """By index: the state, and the value of a success or the message of a failure."""
        self.notes: dict[int, bytes] = {}
        """By index: the last checkpoint of a job that has no outcome."""
        self._random = Random(seed)
        self._sequence = 0

    def commit(self) -> list[e.Entry]:
        """Return the entries of one commit."""
        return [entry for _ in range(self._random.randint(1, 5)) for entry in self._next()]

    def _next(self) -> list[e.Entry]:
        facts, random = self.facts, self._random
        if not facts.is_attached:
            return [self._apply(e.Attached(facts.batch, facts.stint + 1))]
        acts = [self._record] * 8 + [self._submit] * 3
        acts += [self._charge, self._charge, self._toggle_seal, self._detach, self._stop, self._reopen]
        acts += [self._note] * 4
        if random.random() < 0.03:
            acts = [self._cancel]
        return [self._apply(entry) for entry in random.choice(acts)()]

    def _apply(self, entry: e.Entry) -> e.Entry:
        apply(self.facts, entry)
        if isinstance(entry, e.Noted):
            self.notes[entry.index] = entry.payload
        elif isinstance(entry, e.Recorded):
            gone = range(entry.first, entry.first + entry.count)
            self.notes = {index: payload for index, payload in self.notes.items() if index not in gone}
        return entry

    def _submit(self) -> list[e.Entry]:
        if self.facts.is_sealed:
            return []
        self._sequence += 1
        items = [self._random.randrange(10**6) for _ in range(self._random.randint(1, 40))]
        made = submission(self.facts, items, f"client {self._sequence % 3}", self._sequence)
        costs = [
            (place, self._random.paretovariate(0.5)) for place in range(0, len(items), self._random.randint(1, 9))
        ]
        return [replace(made, costs=tuple(costs))]

    def _gap(self) -> tuple[int, int] | None:
        gaps = list(self.facts.done.gaps(0, self.facts.size))
        if not gaps:
            return None
        start, stop = self._random.choice(gaps)
        first = self._random.randrange(start, stop)
        return first, self._random.randint(first + 1, min(stop, first + 9))

    def _record(self) -> list[e.Entry]:
        gap = self._gap()
        if gap is None:
            return []
        first, stop = gap
        count, batch = stop - first, self.facts.batch
        kind = self._random.randrange(5)
        if kind < 3:
            values = [self._random.random() for _ in range(count)]
            self.outcomes |= {first + at: (JobState.SUCCEEDED, value) for at, value in enumerate(values)}
            if kind == 2:
                block = pack_items(first, JobState.SUCCEEDED, [pickle.dumps(value) for value in values])
                return [e.Recorded(batch, first, count, JobState.SUCCEEDED, block)]
            return [success(batch, first, values)]
        message = str(self._random.random())
        failure = Failure("Bad", message, message.encode()[-8:].rjust(8, b"0"))
        state = JobState.QUARANTINED if kind == 3 else JobState.FAILED
        self.outcomes |= dict.fromkeys(range(first, stop), (state, message))
        return [
            e.Explained(batch, failure.fingerprint, f"traceback of {message}".encode()),
            e.Recorded(batch, first, count, state, failure=failure.encode()),
        ]

    def _charge(self) -> list[e.Entry]:
        gap = self._gap()
        if gap is None:
            return []
        history = History(*(self._random.randrange(4) for _ in range(4)))
        return [e.Charged(self.facts.batch, gap[0], gap[1] - gap[0], history)]

    def _note(self) -> list[e.Entry]:
        gap = self._gap()
        return [e.Noted(self.facts.batch, gap[0], self._random.randbytes(20))] if gap else []

    def _toggle_seal(self) -> list[e.Entry]:
        if self.facts.cancelled:
            return []
        return [e.Unsealed(self.facts.batch) if self.facts.is_sealed else e.Sealed(self.facts.batch)]

    def _detach(self) -> list[e.Entry]:
        left = [e.Left(self.facts.batch, client) for client in list(self.facts.sequences)[:1]]
        return [*left, e.Detached(self.facts.batch)]

    def _stop(self) -> list[e.Entry]:
        return [e.Stopped(self.facts.batch, "too many \u20ac")]

    def _cancel(self) -> list[e.Entry]:
        entries: list[e.Entry] = [e.CancelOrdered(self.facts.batch, "why not")]
        for start, stop in self.facts.done.gaps(0, self.facts.size):
            entries.append(e.Recorded(self.facts.batch, start, stop - start, JobState.CANCELLED))
            self.outcomes |= dict.fromkeys(range(start, stop), (JobState.CANCELLED, "cancelled"))
        return entries

    def _reopen(self) -> list[e.Entry]:
        chosen: dict[JobState, RangeSet] = {}
        for index, (state, _) in self.outcomes.items():
            if state in UNSUCCESSFUL and self._random.random() < 0.7:
                chosen.setdefault(state, RangeSet()).add(index, index + 1)
        generation = self.facts.generation + 1
        for ranges in chosen.values():
            for start, stop in ranges:
                for index in range(start, stop):
                    del self.outcomes[index]
        return [e.Reopened(self.facts.batch, generation, tuple(each), state) for state, each in chosen.items()]
