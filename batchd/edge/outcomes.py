"""Reading outcomes back, in the order of the jobs, also while they are being written and after everything is dead."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Final, NamedTuple

import lmdb

from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.journal import BatchJournal
from batchd.errors import FormatError, JournalDamaged
from batchd.formats import tables
from batchd.formats.likeness import likeness
from batchd.formats.reference import Payload, Read
from batchd.formats.report import Failure
from batchd.formats.segment import Block, header_of, unpack
from batchd.formats.values import load
from batchd.worker.valuefiles import read_value

_PART: Final = 16
"""So many records are looked at in one part, within which the batch cannot be put down."""


class Span(NamedTuple):
    """Jobs [start, stop), which share an outcome block."""

    start: int
    stop: int
    block: Block

    @property
    def state(self) -> JobState:
        """The state of all of them."""
        return JobState(self.block.state)

    def values(self) -> list[Any]:
        """Decode the results. May run the user's code; raises what that raises."""
        return self.block.values()[self.start - self.block.first : self.stop - self.block.first]

    def separate(self) -> Sequence[Payload]:
        """Return the results, to be loaded one by one, of a block that has them so."""
        return self.block.separate()[self.start - self.block.first : self.stop - self.block.first]

    def payloads(self) -> list[memoryview]:
        """Return the separate pickles of an ITEMS block."""
        return self.block.payloads()[self.start - self.block.first : self.stop - self.block.first]

    def failures(self) -> Iterator[tuple[int, Failure]]:
        """Give (index, failure) of jobs that did not succeed."""
        if not self.block.body:
            for index in range(self.start, self.stop):
                yield index, Failure(self.state.name.capitalize(), self.state.name.lower(), bytes(8))
            return
        for index, payload in enumerate(self.payloads(), self.start):
            failure = Failure.decode(payload)
            if self.state is JobState.CANCELLED:  # How its worker was ended is no news of the job.
                tried = {name: value for name, value in failure.details.items() if name == "attempt"}
                failure = Failure("Cancelled", "cancelled while it ran", bytes(8), failure.output, tried)
            yield index, failure


class Gap(NamedTuple):
    """Jobs [start, stop) whose outcome is damaged: it has cost no other job's."""

    start: int
    stop: int
    error: JournalDamaged


def _sound(piece: Span | Gap) -> Span:
    """Return a span. Raises what a gap tells."""
    if isinstance(piece, Gap):
        raise piece.error
    return piece


class _Record(NamedTuple):
    """A record that was read."""

    first: int
    """By its key."""
    blocks: list[Block]
    flaw: str
    """What is wrong with it."""

    def block_of(self, index: int) -> Block | None:
        """Return the block that holds a job."""
        at = bisect_right(self.blocks, index, key=_first) - 1
        if at >= 0 and index < self.blocks[at].first + self.blocks[at].count:
            return self.blocks[at]
        return None

    def next_start(self, index: int) -> int | None:
        """Return where the next block behind a job begins."""
        at = bisect_right(self.blocks, index, key=_first)
        return self.blocks[at].first if at < len(self.blocks) else None


_first = attrgetter("first")


def _blocks_of(record: bytes, read: Read) -> tuple[list[Block], str]:
    """Return the blocks of a record that read back, and what is wrong with the first that does not."""
    try:
        return list(unpack(record, read)), ""
    except FormatError as error:
        flaw = str(error)
    blocks: list[Block] = []
    view, at = memoryview(record), 0
    with suppress(FormatError):  # Behind a damaged header nobody knows where the next block begins.
        while at < len(view):
            length = header_of(view, at)[3]
            with suppress(FormatError):
                blocks += unpack(view[at : at + length], read)
            at += length
    return blocks, flaw


def jobs_in(journal: BatchJournal, facts: BatchFacts, states: set[JobState]) -> dict[JobState, RangeSet] | None:
    """Return which finished jobs are in these states; None when the batch is closed meanwhile. Raises JournalError.

    For whoever is not to be in the way of the thread that writes: it looks at the heads of records alone, a few at a
    time, for a batch may hold more than memory does.
    """
    found = {state: RangeSet() for state in states}
    left = RangeSet(facts.done)
    for generation in range(facts.generation, -1, -1):
        start = 0
        while start >= 0:
            with journal.held() as txn:
                if txn is None:
                    return None
                try:
                    cursor = txn.cursor(db=journal.table(tables.OUTCOMES))
                    heads, start = _next_heads(cursor, generation, start)
                except (FormatError, ValueError, lmdb.Error) as error:
                    where = f"batch {facts.batch}: an outcome record from job {start} on"
                    raise JournalDamaged(f"{where}: {error}") from None
            for first, count, state in heads:
                for part in left.overlap(first, first + count) if state in states else ():
                    found[state].add(*part)
                if generation:  # What is older of these jobs counts no more.
                    left.remove(first, first + count)
    return found


def _next_heads(
    cursor: "lmdb.Cursor[memoryview]", generation: int, start: int
) -> tuple[list[tuple[int, int, JobState]], int]:
    """Return (first, count, state) of the next blocks from job `start` on, and where to go on, -1 behind the last."""
    heads: list[tuple[int, int, JobState]] = []
    if not cursor.set_range(tables.OUTCOME.pack(generation, start)):
        return heads, -1
    for key, record in islice(cursor.iternext(), _PART):
        of, index = tables.OUTCOME.unpack(key)
        if of != generation:
            return heads, -1
        at, start = 0, index + 1
        while at < len(record):
            first, count, state, length = header_of(record, at)
            heads.append((first, count, JobState(state)))
            at += length
    return heads, start if cursor.key() else -1


class Outcomes:
    """The outcomes of one batch. A job that was retried has its latest."""

    def __init__(self, journal: BatchJournal) -> None:
        self._journal = journal
        self._read_value = partial(read_value, journal.folder)
        self._records: dict[int, _Record] = {}
        """By generation: the record read last."""

    def spans(self, done: RangeSet, generation: int, start: int = 0, stop: int | None = None) -> Iterator[Span]:
        """Give the finished jobs of [start, stop) in order, as spans. Raises JournalDamaged."""
        return map(_sound, self.pieces(done, generation, start, stop))

    def pieces(
        self, done: RangeSet, generation: int, start: int = 0, stop: int | None = None
    ) -> Iterator[Span | Gap]:
        """Give spans, and gaps for outcomes that do not read back. Raises JournalDamaged where LMDB cannot go on."""
        last = (1 << 63) if stop is None else stop
        for low, high in list(done.overlap(start, last)):
            index = low
            while index < high:
                found = [self._piece(index, high, generation)]
                index = found[0].stop
                yield found.pop()  # Nobody here holds on to what may be large.

    def _piece(self, index: int, stop: int, generation: int) -> Span | Gap:
        """Return what is known from job `index` on.

        How far a damaged record reached is not known. What succeeded before it was not retried, so it was not in it.
        """
        flaw = what = ""
        for number in range(generation, -1, -1):
            block, wrong = self._block(index, number)
            flaw = flaw or wrong
            if block is not None:
                stop = min(block.first + block.count, stop)
                if flaw and block.state != JobState.SUCCEEDED:
                    what = f"whether job {index} was retried is not known, for an outcome record is damaged: {flaw}"
                    break
                self._let_go(number, stop)
                return Span(index, stop, block)
            stop = min(stop, self._next_start(index, number))
        if not what:
            what = f"outcome record near job {index}: {flaw}" if flaw else f"the outcome of job {index} is missing"
        return Gap(index, stop, JournalDamaged(f"batch {self._journal.folder.name}: {what}"))

    def _let_go(self, generation: int, stop: int) -> None:
        """Drop the record read last when the jobs before `stop` were the rest of it."""
        last = self._records[generation].blocks[-1]
        if stop >= last.first + last.count:
            del self._records[generation]

    def _block(self, index: int, generation: int) -> tuple[Block | None, str]:
        """Return the block of that generation that holds a job, or what is wrong with the record that may hold it."""
        record = self._records.get(generation)
        if record is not None and (block := record.block_of(index)) is not None:
            return block, ""
        record = self._record(index, generation, record)
        if record is None:
            self._records.pop(generation, None)
            return None, ""
        self._records[generation] = record
        block = record.block_of(index)
        return block, "" if block is not None else record.flaw

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        """Read the batch for a moment. Raises JournalDamaged where LMDB finds that it cannot."""
        try:
            with self._journal.begin() as txn:
                yield txn
        except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            name = self._journal.folder.name
            raise JournalDamaged(
                f"batch {name} is damaged ({error}): `batchd journal check {name}` tells what of it, "
                f"`batchd journal salvage {name} --to DIR` brings out what can be read"
            ) from None

    def _record(self, index: int, generation: int, known: _Record | None) -> _Record | None:
        """Return the record that holds a job if any of that generation does; `known` is not read again."""
        with self._reading() as txn:
            cursor = txn.cursor(db=self._journal.table(tables.OUTCOMES))
            key = tables.OUTCOME.pack(generation, index)
            if (not cursor.set_range(key) or cursor.key() != key) and not cursor.prev():
                return None
            found, first = tables.OUTCOME.unpack(cursor.key())
            if found != generation:
                return None
            if known is not None and known.first == first:
                return known
            data = bytes(cursor.value())
        return _Record(first, *_blocks_of(data, self._read_value))

    def _next_start(self, index: int, generation: int) -> int:
        """Return where the next block behind a job begins in that generation, and far away when there is none."""
        record = self._records.get(generation)
        if record is not None and (found := record.next_start(index)) is not None:
            return found
        with self._reading() as txn:
            cursor = txn.cursor(db=self._journal.table(tables.OUTCOMES))
            if cursor.set_range(tables.OUTCOME.pack(generation, index + 1)):
                found, first = tables.OUTCOME.unpack(cursor.key())
                if found == generation:
                    return int(first)
        return 1 << 63

    def explain(self, fingerprint: bytes) -> str:
        """Return the traceback text of a cause, '' when none was told."""
        with self._reading() as txn:
            text = txn.get(fingerprint, db=self._journal.table(tables.CAUSES))
        return bytes(text).decode("utf-8", "replace") if text else ""

    def input_value(self, index: int, *, harmless: bool = False) -> Any:
        """Decode one job's input, for people to look at.

        That may run the user's code, which may do anything; with `harmless` objects are likenesses of themselves.
        Raises what unpickling raises, FormatError for what has no likeness.
        """
        first, block = self.input_block(index)
        if not block.is_separate:
            return block.values()[index - first]
        payload = block.separate()[index - first]
        return likeness(payload) if harmless else load(payload)

    def input_block(self, index: int) -> tuple[int, Block]:
        """Return the block that holds a job's input, and the block's first job. Raises JournalDamaged."""
        with self._reading() as txn:
            cursor = txn.cursor(db=self._journal.table(tables.INPUTS))
            key = tables.INDEX.pack(index)
            if (not cursor.set_range(key) or cursor.key() != key) and not cursor.prev():
                raise JournalDamaged(f"batch {self._journal.folder.name}: no input for job {index}")
            first, record = tables.INDEX.unpack(cursor.key())[0], bytes(cursor.value())
        return first, next(unpack(record, self._read_value))
