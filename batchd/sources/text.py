"""Text as items: lines, NUL-separated strings and JSON lines, from files or standard input.

Only how text is cut into items lives here, and what makes one malformed; `reading` gives them in blocks. The one
idea: lines are taken in runs, all that a chunk completes at once, and one by one only where they are JSON or bad.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, Final

from batchd import settings
from batchd.errors import InputError, UsageError
from batchd.sources.files import STDIN, has_suffix, opened, refuse_unreadable, title
from batchd.sources.kinds import remedy
from batchd.sources.reading import FileSource, Reading, Words
from batchd.sources.source import BLOCK_BYTES, BLOCK_ITEMS, Block, Place

JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
BYTE_ORDER_MARK: Final = "\ufeff"


class TextSource(FileSource):
    """The items of text files, or of standard input, which can be read only once in a process."""

    words = Words(
        item="line",
        ends="{title} ends",
        changed="{title} changed within its first {size} bytes, which this batch has already read",
        nothing="Nothing of the input can be read: --skip-bad-input left all of it out",
    )

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        null: bool = False,
        skip_bad_input: bool = False,
        stdin_fd: int = 0,
        chunk_bytes: int = BLOCK_BYTES,
        block_items: Sequence[int] = BLOCK_ITEMS,
    ) -> None:
        super().__init__("text", inputs, skip_bad_input=skip_bad_input, block_items=block_items)
        self.separator = b"\0" if null else b"\n"
        self.chunk_bytes = chunk_bytes
        self.stdin_fd = stdin_fd
        if self.names == [STDIN]:
            self.spec = {"kind": "stdin"}
        if null:
            self.spec["null"] = True
        for name in self.names:
            if null and _is_json(name):
                raise UsageError(f"{name} holds JSON lines, which --null cannot split: leave --null out.")
        refuse_unreadable(self.names)

    def _opened(self, name: str) -> "_Lines":
        return _Lines(self, name)


class _Lines:
    """One open input: its lines, as raw chunks complete them."""

    def __init__(self, source: TextSource, name: str) -> None:
        self.name = title(name)
        self.line = 1
        self.separator = source.separator
        self._source = source
        self._is_json = _is_json(name)
        self._ended = False
        self._file = opened(name, source.stdin_fd)
        self._waits = not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        """Reading may have to wait for somebody who writes."""

    def begin(self) -> bytes:
        return b""

    def read(self, size: int) -> bytes:
        if self._ended:  # A terminal would ask again.
            return b""
        chunk = self._file.read(size) or b""
        self._ended = not chunk
        return chunk

    def finish(self, last: bytes) -> bytes | None:
        if last == self.separator:
            return b""
        ending = more = self.read(1)
        if more == b"\r" and last != b"\r" and self.separator == b"\n":
            more = self.read(1)
            ending += more
        return ending if more in {b"", self.separator} else None

    def fill(self, reading: Reading) -> Iterator[Block]:
        for lines, ending in self._runs():
            at = 0
            while at < len(lines):
                end = reading.fitting(lines, at)
                if end == at:
                    yield from reading.flush()
                    continue
                self._take(reading, lines[at:end], self.separator if end < len(lines) else ending)
                at = end
            if self._waits:
                yield from reading.flush()

    def close(self) -> None:
        self._file.close()

    def _runs(self) -> Iterator[tuple[list[bytes], bytes]]:
        """The lines that each chunk completes, and what ends the last of them: the separator or the file."""
        pieces: list[bytes] = []  # Of a line longer than a chunk: joined once, so that its cost stays linear.
        held = 0
        while chunk := self.read(self._source.chunk_bytes):
            head, found, rest = chunk.rpartition(self.separator)
            if found:
                yield b"".join((*pieces, head)).split(self.separator), self.separator
                pieces, held = [], 0
            pieces.append(rest)
            held += len(rest)
            if held > settings.VALUE_BYTES_MAX:
                raise InputError(
                    f"{self.name}:{self.line} is longer than {settings.VALUE_BYTES_MAX} bytes, "
                    "the most one item may have. Is this text? To give the files themselves as items use --paths."
                )
        if last := b"".join(pieces):
            yield [last], b""

    def _take(self, reading: Reading, lines: list[bytes], ending: bytes) -> None:
        """Put the items of a run into the block."""
        raw = self.separator.join(lines) + ending
        texts = self._strings(raw)
        if texts is not None and not self._is_json:
            reading.give(raw, texts, [Place(0, self.name, self.line)])
        else:
            self._take_one_by_one(reading, lines, texts, raw)
        self.line += len(lines)

    def _take_one_by_one(self, reading: Reading, lines: list[bytes], texts: list[str] | None, raw: bytes) -> None:
        """The slow way, which knows the bad line, and where the last item ends before blank or bad ones."""
        items: list[Any] = []
        places: list[Place] = []
        given = 0
        try:
            for at, line in enumerate(lines):
                if self._is_json and not line.strip():
                    continue
                try:
                    text = _text(line, self.name, self.line + at) if texts is None else texts[at]
                    items.append(_json(text, self.name, self.line + at) if self._is_json else text)
                except InputError as error:
                    self._source.leave_out(f"{self.name}:{self.line + at}", error)
                else:
                    if given != at or not places:  # Lines before it are blank, or bad.
                        places.append(Place(len(items) - 1, self.name, self.line + at))
                    given = at + 1
        finally:
            end = sum(map(len, lines[:given])) + given  # The last line of all may lack its separator.
            if items:
                reading.give(raw[:end], items, places)
        reading.pass_over(raw[end:])

    def _strings(self, raw: bytes) -> list[str] | None:
        """All lines at once, or None when one of them is not text."""
        separator = self.separator.decode()
        try:  # What NUL parts may be names of files, which are any bytes: as --paths gives them.
            text = raw.decode(errors="strict" if separator == "\n" else "surrogateescape")
        except UnicodeDecodeError:
            return None
        if separator == "\n" and "\0" in text:
            return None
        items = text.removesuffix(separator).split(separator)
        if self.line == 1:
            items[0] = items[0].removeprefix(BYTE_ORDER_MARK)
        if separator == "\n" and "\r" in text:
            items = [item.removesuffix("\r") for item in items]
        return items


def _json(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(
            f"{name}:{line} is not valid JSON: {what}. "
            "Repair the line, or leave such lines out with --skip-bad-input."
        ) from None


def _text(raw: bytes, name: str, line: int) -> str:
    rest = "To give the files themselves as items use --paths; --skip-bad-input leaves such lines out."
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}:{line} is not UTF-8 text, from byte {error.start + 1} of the line on. "
            f"{remedy(name, 'Convert the file with iconv.')} {rest}"
        ) from None
    if line == 1:
        text = text.removeprefix(BYTE_ORDER_MARK)
    if "\0" in text:
        raise InputError(
            f"{name}:{line} is not text: byte {raw.index(0) + 1} of the line is NUL. "
            f"{remedy(name, 'Strings parted by NUL need --null.')} {rest}"
        )
    return text.removesuffix("\r")


def _is_json(name: str) -> bool:
    return has_suffix(name, JSON_SUFFIXES)
