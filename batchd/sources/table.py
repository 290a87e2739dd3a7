"""Tables as items: each row of .csv and .tsv files is a dictionary, by the names in the first row of its file.

Only how a table is cut into rows lives here, and what makes one malformed; `reading` gives them in blocks. The one
idea: Python's own reader decides what a row is, and the lines it took are kept beside it, for their bytes are the
row's. All values are text: what they mean the task knows.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from gzip import GzipFile
from io import BufferedReader
from typing import Final, NamedTuple

from batchd.errors import InputError
from batchd.sources.files import has_suffix, opened, refuse_unreadable
from batchd.sources.reading import FileSource, Reading, Words
from batchd.sources.source import BLOCK_ITEMS, Block, Place
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


class TableSource(FileSource):
    """The rows of tables."""

    words = Words(
        item="row",
        ends="{first} and what follows it end",
        changed="{name}, or a table before it, changed within what this batch has already read ({size} bytes)",
        nothing="No row can be read: --skip-bad-input left all of them out",
    )

    def __init__(
        self, inputs: Sequence[str], *, skip_bad_input: bool = False, block_items: Sequence[int] = BLOCK_ITEMS
    ) -> None:
        super().__init__("table", inputs, skip_bad_input=skip_bad_input, block_items=block_items)
        refuse_unreadable(self.names)

    def _opened(self, name: str) -> "_Table":
        return _Table(self, name)


class _Trouble(NamedTuple):
    """What is wrong with a row."""

    what: str
    remedy: str = ""
    """When there is a better one than to repair the row."""


_MEANT: Final = {
    "new-line character": (
        "it holds a carriage return (CR) outside quotation marks, and a row ends in LF or CR LF",
        r"Convert a file whose lines all end in CR, as on old Macs, with tr '\r' '\n'",
    ),
    "unexpected end": ("a quotation mark that nothing closes makes a row of all that follows", "Close it"),
}
"""What Python's reader says, by how it begins, in words that name a remedy."""


class _Table:
    """One open file: its rows, and the bytes and the line of each."""

    separator = b"\n"

    def __init__(self, source: TableSource, name: str) -> None:
        self.name = name
        self.line = 1
        self._source = source
        self._columns: list[str] = []
        raw = opened(name)
        self._file = raw if isinstance(raw, GzipFile) else BufferedReader(raw)
        self._taken: list[bytes] = []
        """The lines of the row that is being read."""
        self._rows: Iterator[list[str]] = iter(())

    def begin(self) -> bytes:
        """Read the names of the columns. Raises InputError."""
        blank, first = b"", self._file.readline(_ROW_BYTES_MAX)
        while first and not first.strip(_NOTHING):
            blank, first = blank + first, self._file.readline(_ROW_BYTES_MAX)
        self.line = line = 1 + blank.count(b"\n")
        separators = "\t" if has_suffix(self.name, (".tsv",)) else _SEPARATORS
        head = _QUOTED.sub("", first.decode(errors="replace"))
        # Strict: a mark that is closed within a field is an error, not a field that goes on into the rows behind it.
        self._rows = csv.reader(self._lines(first), delimiter=max(separators, key=head.count), strict=True)
        raw, self._columns, trouble = self._row() or (b"", [], None)
        twice = next((name for name in self._columns if self._columns.count(name) > 1), None)
        if twice is not None:
            trouble = _Trouble(f"names the column {twice!r} twice")
        if trouble:
            rest = trouble.remedy or "Repair the row: it names the columns"
            raise InputError(f"{self.name}:{line} {trouble.what}. {rest}.")
        return blank + raw

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def finish(self, last: bytes) -> bytes | None:
        """Read nothing: behind a row its end is a blank row."""
        following = self._file.peek(1)[:1]
        return None if last not in {b"\n", b"\r"} and following not in {b"", b"\n", b"\r"} else b""

    def fill(self, reading: Reading) -> Iterator[Block]:
        line, next_line = self.line, 0
        while (row := self._row()) is not None:
            raw, fields, trouble = row
            if trouble:
                place = f"{self.name}:{line}" + (f"-{self.line - 1}" if self.line - 1 > line else "")
                rest = f"{trouble.remedy or 'Repair it'}, or leave such rows out with --skip-bad-input."
                self._source.leave_out(place, InputError(f"{place} {trouble.what}. {rest}"))
            if trouble or not fields:
                reading.pass_over(raw)
            else:
                item = dict(zip(self._columns, fields, strict=True))
                # Of rows that follow line by line the first place is enough.
                reading.give(raw, [item], [Place(0, self.name, line)] if line != next_line else [])
                next_line = line + 1
                if reading.is_full:
                    yield from reading.flush()
                    next_line = 0
            line = self.line

    def close(self) -> None:
        self._file.close()

    def _row(self) -> tuple[bytes, list[str], _Trouble | None] | None:
        """Return the next row's bytes and fields, and what is wrong with it if anything is; None at the end."""
        trouble: _Trouble | None = None
        fields: list[str] = []
        try:
            fields = next(self._rows)
        except StopIteration:
            return None
        except csv.Error as error:
            meant = (_MEANT[said] for said in _MEANT if str(error).startswith(said))
            what, rest = next(meant, (str(error), ""))
            trouble = _Trouble(f"is no row of a table: {what}", rest)
        raw = b"".join(self._taken)
        self._taken.clear()
        self.line += raw.count(b"\n")
        if trouble or not fields:
            pass
        elif not _is_text(raw):
            trouble = _Trouble("is not UTF-8 text", "Convert the file with iconv")
        elif self._columns and len(fields) != len(self._columns):
            trouble = _Trouble(f"has {counted(len(fields), 'field')}, and the first row {len(self._columns)}")
        return raw, fields, trouble

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
            yield line.decode(errors="surrogateescape").removeprefix("" if self._columns else BYTE_ORDER_MARK)
            line = self._file.readline(_ROW_BYTES_MAX)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
