"""Tables as items: each row of .csv and .tsv files is a dictionary, by the names in the first row of its file.

Nothing here knows jobs or the journal, and no file is held in memory. As with text, what is counted and hashed are
the bytes as they were read; to go on, they are read again and compared. All values are text: what they mean the task
knows.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from gzip import GzipFile
from io import BufferedReader
from typing import Any, Final

from batchd.errors import InputChanged, InputError
from batchd.sources.files import UNREADABLE, absolute, has_suffix, opened, refuse_unreadable, unreadable
from batchd.sources.source import (
    BLOCK_BYTES,
    BLOCK_ITEMS,
    PLACES_MAX,
    Block,
    Checkpoint,
    Place,
    block_limits,
    new_hash,
)
from batchd.sources.text import BYTE_ORDER_MARK
from batchd.units import counted, format_size

SUFFIXES: Final = (".csv", ".tsv")
_SEPARATORS: Final = ",;\t|"
_QUOTED: Final = re.compile(r'"[^"]*"')
_NOTHING: Final = b"\r\n" + BYTE_ORDER_MARK.encode()
_ROW_BYTES_MAX: Final = 64 << 20
"""A quotation mark that nothing closes would make a row of all the rest."""
csv.field_size_limit(_ROW_BYTES_MAX)


def is_table(name: str) -> bool:
    """Whether a file of this name holds rows."""
    return has_suffix(name, SUFFIXES)


class TableSource:
    """The rows of tables. `skipped` counts the malformed rows this source has left out, not an earlier process."""

    def __init__(
        self, inputs: Sequence[str], *, skip_bad_input: bool = False, block_items: Sequence[int] = BLOCK_ITEMS
    ) -> None:
        self.skipped = 0
        self.skipped_places: list[str] = []
        self.skip_bad_input = skip_bad_input
        self.block_items = block_items
        self.names = [absolute(name) for name in inputs]
        self.spec: dict[str, Any] = {"kind": "table", "files": self.names}
        refuse_unreadable(self.names)

    def count(self) -> None:
        """Only reading would tell."""

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The rows behind `start`; what lies before a malformed one is given before the error is raised."""
        reading = _Reading(self)
        try:
            for name in self.names:
                with closing(_Table(name)) as table:
                    reading.begin(table)
                    if start is not None and reading.items < start.items:
                        reading.verify(table, start)
                    yield from reading.read(table)
        except InputError:
            yield from reading.flush()
            raise
        if start is not None and reading.items < start.items:
            raise InputChanged(
                f"{self.names[0]} and what follows it end after {reading.offset} bytes, but this batch has already "
                f"read {start.offset}. Give the whole input again, or pass --new to start a new batch."
            )
        yield from reading.flush()
        if self.skipped and not reading.items:
            raise InputError(
                f"No row can be read: --skip-bad-input left all of them out, {self.skipped:,} in number, "
                f"{self.skipped_places[0]} first. Without that option it is told what is wrong there."
            )


class _Table:
    """One open file: its rows, and the bytes and the line of each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = 1
        """Of the row that comes next."""
        self.columns: list[str] = []
        raw = opened(name)
        self._file = raw if isinstance(raw, GzipFile) else BufferedReader(raw)
        self._taken: list[bytes] = []
        """The lines of the row that is being read."""
        self._rows: Iterator[list[str]] = iter(())

    def begin(self) -> bytes:
        """Read the names of the columns; return their bytes, none of an empty file. Raises InputError."""
        blank, first = b"", self._read(self._file.readline, _ROW_BYTES_MAX)
        while first and not first.strip(_NOTHING):
            blank, first = blank + first, self._read(self._file.readline, _ROW_BYTES_MAX)
        self.line = line = 1 + blank.count(b"\n")
        separators = "\t" if has_suffix(self.name, (".tsv",)) else _SEPARATORS
        head = _QUOTED.sub("", first.decode(errors="replace"))
        self._rows = csv.reader(self._lines(first), delimiter=max(separators, key=head.count), strict=True)
        raw, self.columns, trouble = self.row() or (b"", [], "")
        twice = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if twice is not None:
            trouble = f"names the column {twice!r} twice"
        if trouble:
            raise InputError(f"{self.name}:{line} {trouble}. Repair the row: it names the columns.")
        return blank + raw

    def row(self) -> tuple[bytes, list[str], str] | None:
        """Return the next row's bytes and fields, and what is wrong with it, '' when nothing is; None at the end."""
        trouble, fields = "", []
        try:
            fields = next(self._rows)
        except StopIteration:
            return None
        except csv.Error as error:
            trouble = f"is no row of a table: {error}"
        raw = b"".join(self._taken)
        self._taken.clear()
        self.line += raw.count(b"\n")
        if trouble or not fields:
            pass
        elif not _is_text(raw):
            trouble = "is not UTF-8 text"
        elif self.columns and len(fields) != len(self.columns):
            trouble = f"has {counted(len(fields), 'field')}, and the first row {len(self.columns)}"
        return raw, fields, trouble

    def skip(self, size: int) -> bytes:
        """Return at most `size` bytes of the rows that come next, without reading them as rows."""
        data = self._read(self._file.read, size)
        self.line += data.count(b"\n")
        return data

    def grows(self, last: bytes) -> bool:
        """Whether the row behind which the file stands was unfinished and has become longer."""
        following = self._read(self._file.peek, 1)[:1]
        return last not in {b"\n", b"\r"} and following not in {b"", b"\n", b"\r"}

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def _lines(self, line: bytes) -> Iterator[str]:
        held = 0
        while line:
            held = held + len(line) if self._taken else len(line)
            if held >= _ROW_BYTES_MAX:
                raise InputError(
                    f"{self.name}:{self.line} is longer than {format_size(_ROW_BYTES_MAX)}: a quotation mark that "
                    "nothing closes makes a row of all that follows. Close it."
                )
            self._taken.append(line)
            yield line.decode(errors="surrogateescape").removeprefix("" if self.columns else BYTE_ORDER_MARK)
            line = self._read(self._file.readline, _ROW_BYTES_MAX)

    def _read(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except UNREADABLE as error:
            raise unreadable(self.name, error) from None


class _Reading:
    """One pass over all tables: how much was consumed, and the block that is being filled."""

    def __init__(self, source: TableSource) -> None:
        self.offset = 0
        self._source = source
        self._hash = new_hash()
        self._given = Checkpoint(items=0, offset=0, digest="")
        self._items: list[dict[str, str]] = []
        self._places: list[Place] = []
        self._next_line = 0
        """Where the next item lies if it has the same place as the one before."""
        self._end: tuple[int, str] | None = None
        """Where the last item ends, and the digest up to there, when more was consumed since."""
        self._held_bytes = 0
        self._limits = block_limits(source.block_items)
        self._limit = next(self._limits)

    @property
    def items(self) -> int:
        """How many were given, those of earlier passes too."""
        return self._given.items

    def begin(self, table: _Table) -> None:
        """Consume the names of a table's columns."""
        self._consume_none(table.begin())
        self._next_line = 0

    def verify(self, table: _Table, start: Checkpoint) -> None:
        """Consume what was consumed before, as far as it lies in this table, and compare it at its end."""
        last = b""
        while self.offset < start.offset and (data := table.skip(min(BLOCK_BYTES, start.offset - self.offset))):
            self._consume(data)
            last = data[-1:]
        if self.offset < start.offset:
            return
        if self.offset > start.offset or self._hash.hexdigest() != start.digest:
            raise InputChanged(
                f"{table.name}, or a table before it, changed within what this batch has already read "
                f"({start.offset} bytes). Restore it, or pass --new to start a new batch."
            )
        if table.grows(last):
            raise InputChanged(
                f"{table.name}:{table.line} was the unfinished last row when this batch read it, and has grown "
                "since. Pass --new to start a new batch; end the last row before a batch reads it."
            )
        self._given = start

    def read(self, table: _Table) -> Iterator[Block]:
        """Blocks of what the table still holds; the last one stays open for the next table."""
        line = table.line
        while (told := table.row()) is not None:
            raw, fields, trouble = told
            if trouble:
                self._leave_out(table, line, trouble)
            if trouble or not fields:
                self._consume_none(raw)
            else:
                self._consume(raw)
                self._give(raw, dict(zip(table.columns, fields, strict=True)), Place(0, table.name, line))
                self._next_line = line + 1
                if len(self._items) >= self._limit or self._held_bytes >= BLOCK_BYTES:
                    yield from self.flush()
            line = table.line

    def flush(self) -> Iterator[Block]:
        """The block filled so far, if there is anything in it."""
        if self._items:
            offset, digest = self._end or (self.offset, self._hash.hexdigest())
            self._given = Checkpoint(self._given.items + len(self._items), offset, digest)
            yield Block(self._items, self._given, places=self._places)
            self._items, self._places = [], []
            self._next_line = self._held_bytes = 0
            self._limit = next(self._limits)

    def _give(self, raw: bytes, item: dict[str, str], place: Place) -> None:
        if place.line != self._next_line:  # A row before it has more lines than one, or was left out.
            self._places.append(place._replace(first=len(self._items)))
        self._items.append(item)
        self._end = None
        self._held_bytes += len(raw)

    def _leave_out(self, table: _Table, line: int, trouble: str) -> None:
        """Count a malformed row, and say where it is. Raises InputError unless such rows are to be left out."""
        place = f"{table.name}:{line}" + (f"-{table.line - 1}" if table.line - 1 > line else "")
        if not self._source.skip_bad_input:
            raise InputError(f"{place} {trouble}. Repair it, or leave such rows out with --skip-bad-input.")
        self._source.skipped += 1
        if len(self._source.skipped_places) < PLACES_MAX:
            self._source.skipped_places.append(place)

    def _consume_none(self, raw: bytes) -> None:
        """Consume what is no item. A checkpoint ends before it: the last row may yet become one."""
        if self._items and self._end is None:
            self._end = self.offset, self._hash.hexdigest()
        self._consume(raw)

    def _consume(self, raw: bytes) -> None:
        self._hash.update(raw)
        self.offset += len(raw)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
