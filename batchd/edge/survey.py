"""What stands in a batch's file, record by record, and what of it is not as it was written.

The one idea: everything is read once, in order, and every record is judged alone, by its checksum, its key and its
neighbours. What reads back is a `Piece`, everything else a `Finding`; a broken page or block never hides the next.
Nothing is decided here about the batch as a whole (damage.py), nothing is written (salvage.py).
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from batchd.core.facts import BatchFacts, apply
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.core.stored import entry_of, facts_of
from batchd.edge.datafile import DataFile, Flaw, Found
from batchd.errors import BatchdError, FormatError
from batchd.formats import pages, tables
from batchd.formats.segment import HEADER_BYTES, INPUT_STATE, MAGIC, Block, Encoding, header_of, unpack
from batchd.worker.calls import mark_of
from batchd.worker.valuefiles import read_value

FILE: Final = "file"
ROOT: Final = "table of tables"
FREE: Final = "list of free pages"
JOBS_MAX: Final = 1 << 63
_FINDINGS_MAX: Final = 10_000
_PAGES_UNWRITTEN: Final = 1 << 16
"""So many pages at the end may have been given back before they were ever written."""
_FIXED_KEYS: Final = {tables.CAUSES: 8, tables.FUNCTIONS: 8, tables.KEYS: tables.KEY_DIGEST_BYTES, tables.NOTES: 8}


class Finding(NamedTuple):
    """One damaged place."""

    table: str
    """The table, or what else it is part of: FILE, ROOT, FREE."""
    start: int | None
    """The jobs (of the log: the entries) that are concerned, from `start` up to `stop`; None: not known."""
    stop: int | None
    page: int | None
    what: str

    def __str__(self) -> str:
        place = f"{self.table}{self._range()}"
        return f"{place}{'' if self.page is None else f' (page {self.page})'}: {self.what}"

    def _range(self) -> str:
        if self.start is None:
            return ""
        many, one = ("entries", "entry") if self.table == tables.LOG.decode() else ("jobs", "job")
        if self.stop is None:
            return f", {many} from {self.start:,} on"
        if self.stop - self.start == 1:
            return f", {one} {self.start:,}"
        return f", {many} {self.start:,}-{self.stop - 1:,}"


class Piece(NamedTuple):
    """A block that reads back: these jobs' inputs, or outcomes of one state."""

    generation: int
    first: int
    stop: int
    state: int
    offset: int
    """Of the block in the file."""
    length: int


class Survey:
    """Everything that is found in one file. `read` first."""

    def __init__(self, batch: str, file: DataFile, header: pages.Header | None = None) -> None:
        self.batch = batch
        self.findings: list[Finding] = []
        self.unsaid = 0
        """Findings that are not kept, because there are too many."""
        self.meta: dict[bytes, Any] = {}
        self.facts = BatchFacts(batch)
        """As the checkpoint and the log behind it tell them: without the outcomes that came later."""
        self.checkpoint: dict[str, Any] | None = None
        """None when it is damaged; {} when none was written yet."""
        self.inputs: list[Piece] = []
        self.outcomes: list[Piece] = []
        self.others: dict[bytes, list[Found]] = {}
        """The records of the tables that have no checksums, by table."""
        self.unplaced: list[Piece] = []
        """Inputs whose place is not known: `first` is 0, and `stop` their number."""
        self.records = 0
        """Of outcomes, also of those that do not read back."""
        self.later = 0
        """How many of them came after the checkpoint, by their keys."""
        self._file = file
        self._header = header or file.newest
        self._trees: dict[bytes, pages.Tree] = {}

    def read(self) -> None:
        """Read all of it."""
        self._read_headers()
        if self._header is not None:
            self._read_trees(self._header)
        self._read_meta()
        self._read_facts()
        self._read_inputs()
        self._read_outcomes()
        for table, key_bytes in _FIXED_KEYS.items():
            self._read_others(table, key_bytes)
        if self._header is not None:
            self._read_free(self._header)
        self._bound(tables.INPUTS, self.inputs)
        self._bound(tables.OUTCOMES, self.outcomes)

    @property
    def is_known(self) -> bool:
        """Whether `facts` are what they should be: neither the checkpoint nor the log behind it is damaged."""
        return self.checkpoint is not None and not any(each.table == tables.LOG.decode() for each in self.findings)

    def report(
        self,
        table: bytes | str,
        what: str,
        start: int | None = None,
        stop: int | None = None,
        page: int | None = None,
    ) -> None:
        """Note something that is damaged."""
        if len(self.findings) >= _FINDINGS_MAX:
            self.unsaid += 1
            return
        name = table if isinstance(table, str) else table.decode()
        self.findings.append(Finding(name, start, stop, page, what))

    def _bound(self, table: bytes, pieces: list[Piece]) -> None:
        """End a damaged range whose end is not known where the next piece begins that reads back."""
        starts = sorted(piece.first for piece in pieces)
        for number, finding in enumerate(self.findings):
            if finding.table != table.decode() or finding.start is None or finding.stop is not None:
                continue
            at = bisect_right(starts, finding.start)
            stop = starts[at] if at < len(starts) and finding.start else self.facts.size
            is_known = finding.start < stop
            self.findings[number] = finding._replace(
                start=finding.start if is_known else None, stop=stop if is_known else None
            )

    # --- Structure ---------------------------------------------------------------------------------------------

    def _read_headers(self) -> None:
        for number, header in enumerate(self._file.headers):
            if isinstance(header, str):
                self.report(FILE, header, page=number)
            elif header.number != number or (header.transaction % 2 != number and header.transaction):
                what = f"the header tells of page {header.number} and transaction {header.transaction}"
                self.report(FILE, what, page=number)
        numbers = [header.transaction for header in self._file.headers if isinstance(header, pages.Header)]
        if len(numbers) == pages.HEADER_PAGES and abs(numbers[0] - numbers[1]) > 1:
            self.report(FILE, f"the headers tell of transactions {numbers[0]} and {numbers[1]}", page=0)
        count = self._file.size // self._file.page_bytes
        if self._header is not None and self._header.last_page > count + max(count, _PAGES_UNWRITTEN):
            self.report(FILE, f"the header tells of {self._header.last_page + 1:,} pages, {count:,} are there")

    def _read_trees(self, header: pages.Header) -> None:
        older = [other for other in self._file.headers if isinstance(other, pages.Header)]
        for each in sorted({header, *older}, key=lambda other: (other != header, -other.transaction)):
            for item in self._file.walk(each.main):
                if isinstance(item, Flaw):
                    self.report(ROOT, item.what, page=item.page)
                elif item.tree is None or item.key not in tables.TABLES:
                    self.report(ROOT, f"it holds {item.key!r}", page=item.page)
                else:
                    self._trees.setdefault(item.key, item.tree)
            missing = [table for table in tables.TABLES if table not in self._trees]
            if not missing:
                break  # Else those of the transaction before are better than none.
            if each == header:
                for table in missing:
                    self.report(table, "the table is missing")

    def _records(self, table: bytes) -> Iterator[tuple[Found, bytes]]:
        """Give the records of a table with their values."""
        if table not in self._trees:
            return
        for item in self._file.walk(self._trees[table]):
            if isinstance(item, Flaw):
                self.report(table, item.what, *_range_of(table, item), item.page)
                continue
            start = _number_in(table, item.key)
            try:
                value, complaint = self._file.value(item)
            except FormatError as error:
                self.report(table, str(error), start, _behind(start), item.page)
                continue
            if complaint:
                self.report(table, complaint, start, _behind(start), item.page)
            yield item, value

    def _read_free(self, header: pages.Header) -> None:
        for item in self._file.walk(header.free, is_numbered=True):
            if isinstance(item, Flaw):
                self.report(FREE, item.what, page=item.page)
                continue
            try:
                value, complaint = self._file.value(item)
                numbers = pages.free_pages_of(value)
            except FormatError as error:
                self.report(FREE, str(error), page=item.page)
                continue
            used = next((number for number in numbers if self._file.is_seen(number)), None)
            if used is not None:
                complaint = f"page {used} is listed as free and in use"
            elif any(not pages.HEADER_PAGES <= number <= header.last_page for number in numbers):
                complaint = "a page is listed as free that is none"
            if complaint:
                self.report(FREE, complaint, page=item.page)

    # --- What tables hold --------------------------------------------------------------------------------------

    def _read_meta(self) -> None:
        known = {tables.META_SPEC, tables.META_FORMAT, tables.META_CHECKPOINT, tables.META_USAGE}
        for item, value in self._records(tables.META):
            name = item.key.decode("utf-8", "backslashreplace")
            try:
                told = json.loads(value)
            except (ValueError, RecursionError) as error:
                self.report(tables.META, f"{name} is no JSON: {error}", page=item.page)
                continue
            if not isinstance(told, dict) or item.key not in known:
                self.report(tables.META, f"{name} is not what batchd writes", page=item.page)
            else:
                self.meta[item.key] = told
        for key in sorted({tables.META_SPEC, tables.META_FORMAT} - self.meta.keys()):
            self.report(tables.META, f"{key.decode()} is missing")

    def _read_facts(self) -> None:
        stored = self.meta.get(tables.META_CHECKPOINT)
        is_lost = stored is None and any(finding.table == tables.META.decode() for finding in self.findings)
        try:
            self.facts = facts_of(self.batch, stored or {})
            last = int((stored or {}).get("log", 0))
            if not all(type(each) is int and each >= 0 for each in (self.facts.size, self.facts.generation, last)):
                raise ValueError("it counts with something else than numbers")  # noqa: TRY301
            self.checkpoint = None if is_lost else stored or {}
        except Exception as error:  # Of a JSON object, anything may be missing.
            self.report(tables.META, f"the checkpoint does not read back: {type(error).__name__}: {error}")
            self.facts, last = BatchFacts(self.batch), -1
        for item, value in self._records(tables.LOG):
            sequence = _number_in(tables.LOG, item.key)
            if sequence is None:
                self.report(tables.LOG, f"an entry has the key {item.key!r}", page=item.page)
                continue
            if last == 0 < sequence - 1 and stored is None:
                if not is_lost:
                    self.report(tables.META, "the checkpoint is missing")
                self.checkpoint, last = None, sequence - 1
            if 0 <= last < sequence - 1:
                self.report(tables.LOG, "missing", last + 1, sequence)
            last = sequence
            self._apply(item, sequence, value)

    def _apply(self, item: Found, sequence: int, value: bytes) -> None:
        try:
            told = json.loads(value)
            entries = [entry_of(self.batch, dict(fields)) for fields in told]
        except (ValueError, TypeError, RecursionError, BatchdError) as error:
            self.report(tables.LOG, f"does not read back: {error}", sequence, sequence + 1, item.page)
            return
        for entry in entries:
            try:
                apply(self.facts, entry)
            except Exception as error:  # Facts that do not fit each other may fail in any way.
                what = f"{type(entry).__name__} cannot follow what was before: {error}"
                if self.checkpoint is not None:
                    self.report(tables.LOG, what, sequence, sequence + 1, item.page)

    def _read_inputs(self) -> None:
        records = self._records(tables.INPUTS)
        item, value = next(records, (None, b""))
        expected = 0
        while item is not None:
            following, next_value = next(records, (None, b""))
            told = _number_in(tables.INPUTS, item.key)
            beyond = self.facts.size if following is None else _number_in(tables.INPUTS, following.key)
            block = self._input_block(item, value, told, beyond)
            if block is not None:
                first = told
                if told != expected and expected + block.count == beyond:
                    self.report(
                        tables.INPUTS, f"its key says {item.key.hex()}", expected, expected + block.count, item.page
                    )
                    first = expected
                if first is None or first < expected:
                    self.report(tables.INPUTS, f"its key says {item.key.hex()}", told, beyond, item.page)
                    self.unplaced.append(Piece(0, 0, block.count, INPUT_STATE, item.offset, item.length))
                else:
                    self.inputs.append(Piece(0, first, first + block.count, INPUT_STATE, item.offset, item.length))
                    expected = first + block.count
            item, value = following, next_value

    def _input_block(self, item: Found, value: bytes, first: int | None, beyond: int | None) -> Block | None:
        stop = beyond if first is not None and beyond is not None and beyond > first else None
        complaint = "it is no block of inputs"
        try:
            block, *others = unpack(value)
            if not others and block.state == INPUT_STATE and block.count and _has_values(block):
                complaint = self.file_complaint(block)
                if not complaint:
                    return block
        except FormatError as error:
            complaint = _short(error)
        except ValueError:
            pass  # An empty record.
        self.report(tables.INPUTS, complaint, first, stop, item.page)
        return None

    def _read_outcomes(self) -> None:
        ends: dict[int, int] = {}
        for item, value in self._records(tables.OUTCOMES):
            self.records += 1
            if len(item.key) != tables.OUTCOME.size:
                self.report(tables.OUTCOMES, f"a record has the key {item.key!r}", page=item.page)
                generation, expected = 0, None
            else:
                generation, expected = tables.OUTCOME.unpack(item.key)
                is_open = expected < self.facts.size and expected not in self.facts.done
                self.later += is_open and generation == self.facts.generation
            for at, block in blocks_in(value):
                if isinstance(block, str):
                    self.report(tables.OUTCOMES, block, expected, _stop_at(value, at, expected), item.page)
                    expected = None
                    continue
                first, stop = block.first, block.first + block.count
                if expected not in {None, first}:
                    self.report(tables.OUTCOMES, f"its key says {item.key.hex()}", first, stop, item.page)
                if not block.count or block.state not in _FINALS or not _has_values(block):
                    self.report(tables.OUTCOMES, "it is no block of outcomes", first, stop, item.page)
                    expected = stop
                    continue
                if complaint := self.file_complaint(block):
                    self.report(tables.OUTCOMES, complaint, first, stop, item.page)
                    expected = stop
                    continue
                if first < ends.get(generation, 0):
                    self.report(tables.OUTCOMES, "recorded twice", first, stop, item.page)
                length = HEADER_BYTES + len(block.body)
                self.outcomes.append(Piece(generation, first, stop, block.state, item.offset + at, length))
                ends[generation] = max(ends.get(generation, 0), stop)
                expected = stop

    def file_complaint(self, block: Block) -> str:
        """Return what is wrong with the file of a value, '' when nothing is, or the value has none."""
        try:
            if block.encoding is Encoding.FILED:
                read_value(self._file.folder, block.reference())
        except FormatError as error:
            return str(error)
        return ""

    def _read_others(self, table: bytes, key_bytes: int) -> None:
        kept = self.others[table] = []
        for item, value in self._records(table):
            if len(item.key) != key_bytes:
                self.report(table, f"an entry has the key {item.key!r}", page=item.page)
                continue
            if table == tables.FUNCTIONS and item.key != tables.TASK_MARK and item.key != mark_of(value):
                self.report(table, f"the function {item.key.hex()} is not the one it was", page=item.page)
            if table != tables.KEYS:
                kept.append(item._replace(inline=None))


def blocks_in(value: bytes) -> Iterator[tuple[int, Block | str]]:
    """Give (offset, block) of a record, and (offset, what is wrong) for every stretch of it that is not one."""
    at = 0
    try:
        whole = list(unpack(value))
    except FormatError:
        pass  # Then it is looked through for what is whole.
    else:
        for each in whole:
            yield at, each
            at += HEADER_BYTES + len(each.body)
    while at < len(value):
        block, complaint = _block_at(value, at)
        if block is not None:
            yield at, block
            at += HEADER_BYTES + len(block.body)
            continue
        yield at, complaint
        at = value.find(MAGIC, at + 1)
        while at >= 0 and _block_at(value, at)[0] is None:
            at = value.find(MAGIC, at + 1)
        if at < 0:
            return


def _block_at(value: bytes, at: int) -> tuple[Block | None, str]:
    try:
        length = header_of(value, at)[3]
        if at + length > len(value):
            return None, f"{at + length - len(value)} bytes of a block are missing"
        return next(unpack(memoryview(value)[at : at + length])), ""
    except FormatError as error:
        return None, _short(error)


def _stop_at(value: bytes, at: int, first: int | None) -> int | None:
    """Return where the jobs of a damaged block end, if its header may be believed."""
    try:
        told, count, _, length = header_of(value, at)
    except FormatError:
        return None
    return first + count if told == first and count and at + length <= len(value) else None


def _has_values(block: Block) -> bool:
    """Whether its values can be told from each other."""
    try:
        if block.encoding is Encoding.FILED:
            return block.state in {INPUT_STATE, JobState.SUCCEEDED} and block.reference().nbytes > 0
        return block.encoding is not Encoding.ITEMS or len(block.payloads()) == block.count
    except FormatError:
        return False


_FINALS: Final = frozenset(int(state) for state in JobState if state.is_final)


def _short(error: FormatError) -> str:
    """What is wrong, without the place, which the finding names."""
    return str(error).partition(": ")[2] or str(error)


def _number_in(table: bytes, key: bytes) -> int | None:
    """Return the job (of the log: the entry) that a key names."""
    if table in {tables.INPUTS, tables.LOG, tables.NOTES}:
        return int(tables.INDEX.unpack(key)[0]) if len(key) == tables.INDEX.size else 0 if key == b"" else None
    if table == tables.OUTCOMES:
        return int(tables.OUTCOME.unpack(key)[1]) if len(key) == tables.OUTCOME.size else 0 if key == b"" else None
    return None


def _range_of(table: bytes, flaw: Flaw) -> tuple[int | None, int | None]:
    """Return the jobs that a flaw concerns, as far as they are known."""
    start = _number_in(table, flaw.low)
    if table == tables.OUTCOMES and flaw.low and flaw.high is not None and flaw.low[:4] != flaw.high[:4]:
        return 0, None  # The end of one generation and the start of another.
    stop = None if flaw.high is None else _number_in(table, flaw.high)
    return start, stop if stop is not None and start is not None and stop > start else None


def _behind(start: int | None) -> int | None:
    return None if start is None else start + 1


def covered(pieces: list[Piece]) -> RangeSet:
    """Return the jobs that pieces are about."""
    return RangeSet((piece.first, piece.stop) for piece in pieces)
