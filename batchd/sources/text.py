"""Text as items: lines, NUL-separated strings and JSON lines, from files or standard input.

Nothing here knows jobs or the journal, and no file is held in memory: inputs are read one after another in raw
chunks. The one idea: what is counted and hashed are the bytes as they lie on disk, up to the end of the last item
given. To go on, the same bytes are read again and compared, and the same pass continues behind them.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Final

from batchd import settings
from batchd.errors import InputChanged, InputError, UsageError
from batchd.sources.files import STDIN, UNREADABLE, absolute, has_suffix, opened, refuse_unreadable, title, unreadable
from batchd.sources.kinds import remedy
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

JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
BYTE_ORDER_MARK: Final = "\ufeff"


class TextSource:
    """The items of text files, or of standard input, which can be read only once in a process.

    `skipped` counts the malformed lines this source has left out, not those an earlier process did.
    """

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
        self.skipped = 0
        self.skipped_places: list[str] = []
        self.separator = b"\0" if null else b"\n"
        self.skip_bad_input = skip_bad_input
        self.chunk_bytes = chunk_bytes
        self.block_items = block_items
        self.names = [absolute(name) for name in inputs]
        self.spec: dict[str, Any] = {"kind": "text", "files": self.names}
        if self.names == [STDIN]:
            self.spec = {"kind": "stdin"}
        if null:
            self.spec["null"] = True
        self._stdin_fd = stdin_fd
        self._check(null=null)

    def count(self) -> None:
        """Only reading would tell."""

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The items behind `start`; what lies before malformed input is given before the error is raised."""
        reading = _Reading(self)
        try:
            for name in self.names:
                with closing(_Stream(name, self._stdin_fd)) as stream:
                    if start is not None and reading.offset < start.offset:
                        reading.verify(stream, start)
                    yield from reading.read(stream)
        except InputError:
            yield from reading.flush()
            raise
        if start is not None and reading.offset < start.offset:
            raise InputChanged(
                f"{self.title()} ends after {reading.offset} bytes, but this batch has already read "
                f"{start.offset}. Give the whole input again, or pass --new to start a new batch."
            )
        yield from reading.flush()
        if self.skipped and not reading.items:
            raise InputError(
                f"Nothing of the input can be read: --skip-bad-input left all of it out, {self.skipped:,} in number, "
                f"{self.skipped_places[0]} first. Without that option it is told what is wrong there."
            )

    def title(self) -> str:
        """The input as a sentence names it."""
        first = title(self.names[0])
        return first if len(self.names) == 1 else f"The input {first} .. {title(self.names[-1])}"

    def _check(self, *, null: bool) -> None:
        """Refuse, before anything is read, what cannot be read."""
        for name in self.names:
            if null and _is_json(name):
                raise UsageError(f"{name} holds JSON lines, which --null cannot split: leave --null out.")
        refuse_unreadable(self.names)


class _Stream:
    """One open input: raw chunks, and the number of the line that comes next."""

    def __init__(self, name: str, stdin_fd: int) -> None:
        self.name = name
        self.line = 1
        self._ended = False
        self._file = opened(name, stdin_fd)
        self.waits = not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        """Reading may have to wait for somebody who writes."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end, and none ever after, where a terminal would ask again."""
        if self._ended:
            return b""
        try:
            chunk = self._file.read(size) or b""
        except UNREADABLE as error:
            raise unreadable(self.name, error) from None
        self._ended = not chunk
        return chunk

    def runs(self, separator: bytes, chunk_bytes: int) -> Iterator[tuple[list[bytes], bytes]]:
        """The lines that each chunk completes, and what ends the last of them: the separator or the file."""
        pieces: list[bytes] = []  # Of a line longer than a chunk: joined once, so that its cost stays linear.
        held = 0
        while chunk := self.read(chunk_bytes):
            head, found, rest = chunk.rpartition(separator)
            if found:
                yield b"".join((*pieces, head)).split(separator), separator
                pieces, held = [], 0
            pieces.append(rest)
            held += len(rest)
            if held > settings.VALUE_BYTES_MAX:
                raise InputError(
                    f"{title(self.name)}:{self.line} is longer than {settings.VALUE_BYTES_MAX} bytes, "
                    "the most one item may have. Is this text? To give the files themselves as items use --paths."
                )
        if last := b"".join(pieces):
            yield [last], b""

    def close(self) -> None:
        """Give the descriptor back; standard input is not ours to close."""
        self._file.close()


class _Reading:
    """One pass over all inputs: how much was consumed, and the block that is being filled."""

    def __init__(self, source: TextSource) -> None:
        self.offset = 0
        self._source = source
        self._separator = source.separator
        self._hash = new_hash()
        self._given = Checkpoint(items=0, offset=0, digest="")
        self._items: list[Any] = []
        self._places: list[Place] = []
        self._held_bytes = 0
        self._limits = block_limits(source.block_items)
        self._limit = next(self._limits)
        self._lines_verified = 0

    @property
    def items(self) -> int:
        """How many were given, those of earlier passes too."""
        return self._given.items

    def verify(self, stream: _Stream, start: Checkpoint) -> None:
        """Consume what was consumed before, as far as it lies in this stream, and compare it at its end."""
        last = b""
        while self.offset < start.offset:
            chunk = stream.read(min(self._source.chunk_bytes, start.offset - self.offset))
            if not chunk:
                break
            self._consume(chunk)
            lines = chunk.count(self._separator)
            stream.line += lines
            self._lines_verified += lines
            last = chunk[-1:]
        self._lines_verified += last not in {b"", self._separator}
        if self.offset == start.offset:
            self._compare(start)
            self._finish_line(stream, last)
            self._given = start

    def read(self, stream: _Stream) -> Iterator[Block]:
        """Blocks of what the stream still holds; the last one stays open for the next stream."""
        for lines, ending in stream.runs(self._separator, self._source.chunk_bytes):
            at = 0
            while at < len(lines):
                end = self._fitting(lines, at)
                if end == at:
                    yield from self.flush()
                    continue
                self._take(stream, lines[at:end], self._separator if end < len(lines) else ending)
                at = end
            if stream.waits:
                yield from self.flush()

    def flush(self) -> Iterator[Block]:
        """The block filled so far, if there is anything in it."""
        if self._items:
            yield Block(self._items, self._given, places=self._places)
            self._items, self._places = [], []
            self._held_bytes = 0
            self._limit = next(self._limits)

    def _fitting(self, lines: list[bytes], at: int) -> int:
        """Where to cut so that the block keeps its limits; an empty block takes at least one line."""
        end = min(len(lines), at + self._limit - len(self._items))
        size = sum(map(len, lines[at:end])) + end - at
        least = at if self._items else at + 1
        while end > least and self._held_bytes + size > BLOCK_BYTES:
            end -= 1
            size -= len(lines[end]) + 1
        return max(end, least)

    def _take(self, stream: _Stream, lines: list[bytes], ending: bytes) -> None:
        """Consume the lines and put their items into the block."""
        raw = self._separator.join(lines) + ending
        texts = self._strings(raw, first=stream.line == 1)
        if texts is not None and not _is_json(stream.name):
            self._give(raw, texts, [Place(0, title(stream.name), stream.line)])
        else:
            self._take_one_by_one(stream, lines, texts, raw)
        stream.line += len(lines)

    def _take_one_by_one(self, stream: _Stream, lines: list[bytes], texts: list[str] | None, raw: bytes) -> None:
        """The slow way, which knows the bad line, and where the last item ends before blank or bad ones."""
        is_json = _is_json(stream.name)
        items: list[Any] = []
        places: list[Place] = []
        given = 0
        try:
            for at, line in enumerate(lines):
                if is_json and not line.strip():
                    continue
                try:
                    text = _text(line, stream.name, stream.line + at) if texts is None else texts[at]
                    items.append(_json(text, stream.name, stream.line + at) if is_json else text)
                except InputError:
                    if not self._source.skip_bad_input:
                        raise
                    self._skip(stream, stream.line + at)
                else:
                    if given != at or not places:  # Lines before it are blank, or bad.
                        places.append(Place(len(items) - 1, title(stream.name), stream.line + at))
                    given = at + 1
        finally:
            end = sum(map(len, lines[:given])) + given  # The last line of all may lack its separator.
            if items:
                self._give(raw[:end], items, places)
        self._consume(raw[end:])

    def _skip(self, stream: _Stream, line: int) -> None:
        self._source.skipped += 1
        if len(self._source.skipped_places) < PLACES_MAX:
            self._source.skipped_places.append(f"{title(stream.name)}:{line}")

    def _strings(self, raw: bytes, *, first: bool) -> list[str] | None:
        """All lines at once, or None when one of them is not text."""
        separator = self._separator.decode()
        try:  # What NUL parts may be names of files, which are any bytes: as --paths gives them.
            text = raw.decode(errors="strict" if separator == "\n" else "surrogateescape")
        except UnicodeDecodeError:
            return None
        if separator == "\n" and "\0" in text:
            return None
        items = text.removesuffix(separator).split(separator)
        if first:
            items[0] = items[0].removeprefix(BYTE_ORDER_MARK)
        if separator == "\n" and "\r" in text:
            items = [item.removesuffix("\r") for item in items]
        return items

    def _give(self, raw: bytes, items: list[Any], places: list[Place]) -> None:
        """Consume the bytes that end with the last of these items."""
        self._consume(raw)
        self._places += [place._replace(first=place.first + len(self._items)) for place in places]
        self._held_bytes += len(raw)
        self._items += items
        self._given = Checkpoint(self._given.items + len(items), self.offset, self._hash.hexdigest())

    def _consume(self, raw: bytes) -> None:
        self._hash.update(raw)
        self.offset += len(raw)

    def _compare(self, start: Checkpoint) -> None:
        """Refuse other bytes, and the same bytes when what ended a file between two lines now joins them."""
        if self._hash.hexdigest() != start.digest or self._lines_verified < start.items:
            raise InputChanged(
                f"{self._source.title()} changed within its first {start.offset} bytes, which this batch has "
                "already read. Restore it, or pass --new to start a new batch."
            )

    def _finish_line(self, stream: _Stream, last: bytes) -> None:
        """Refuse when the last line read was unfinished and has grown by more than its end."""
        if last == self._separator:
            return
        more = stream.read(1)
        if more == b"\r" and last != b"\r" and self._separator == b"\n":
            self._consume(more)
            more = stream.read(1)
        if more not in {b"", self._separator}:
            raise InputChanged(
                f"{title(stream.name)}:{stream.line} was the unfinished last line when this batch read it, and "
                "has grown since. Pass --new to start a new batch; end the last line before a batch reads it."
            )
        self._consume(more)
        stream.line += len(more)


def _json(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(
            f"{title(name)}:{line} is not valid JSON: {what}. "
            "Repair the line, or leave such lines out with --skip-bad-input."
        ) from None


def _text(raw: bytes, name: str, line: int) -> str:
    place = f"{title(name)}:{line}"
    rest = "To give the files themselves as items use --paths; --skip-bad-input leaves such lines out."
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} is not UTF-8 text, from byte {error.start + 1} of the line on. "
            f"{remedy(name, 'Convert the file with iconv.')} {rest}"
        ) from None
    if line == 1:
        text = text.removeprefix(BYTE_ORDER_MARK)
    if "\0" in text:
        raise InputError(
            f"{place} is not text: byte {raw.index(0) + 1} of the line is NUL. "
            f"{remedy(name, 'Strings parted by NUL need --null.')} {rest}"
        )
    return text.removesuffix("\r")


def _is_json(name: str) -> bool:
    return has_suffix(name, JSON_SUFFIXES)
