"""A pass over files: what is consumed of them, compared with what an earlier pass consumed, and given in blocks.

What an item is, and what makes one malformed, the kinds of input know: `text` and `table`. Nothing here knows jobs or
the journal, and no file is held in memory. The one idea: what is counted and hashed are the bytes as they were read,
up to the end of the last item given. To go on, the same bytes are read again and compared, and the same pass
continues behind them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar, NamedTuple, Protocol

from batchd.errors import InputChanged, InputError
from batchd.sources.files import UNREADABLE, absolute, title, unreadable
from batchd.sources.source import BLOCK_BYTES, PLACES_MAX, Block, Checkpoint, Place, block_limits, new_hash


class Reading:
    """One pass over all inputs: how much was consumed, and the block that is being filled."""

    def __init__(self, block_items: Sequence[int]) -> None:
        self.offset = 0
        self.lines = 0
        """Of those consumed before, so many were seen to end: none has more items than lines."""
        self._hash = new_hash()
        self._given = Checkpoint(items=0, offset=0, digest="")
        self._items: list[Any] = []
        self._places: list[Place] = []
        self._end: tuple[int, str] | None = None
        """Where the last item ends, and the digest up to there, when more was consumed since."""
        self._held_bytes = 0
        self._limits = block_limits(block_items)
        self._limit = next(self._limits)

    @property
    def items(self) -> int:
        """How many were given, those of earlier passes too."""
        return self._given.items

    @property
    def is_full(self) -> bool:
        """Whether the block has come to one of its limits."""
        return len(self._items) >= self._limit or self._held_bytes >= BLOCK_BYTES

    def fitting(self, lines: Sequence[bytes], at: int) -> int:
        """Where to cut so that the block keeps its limits; an empty block takes at least one line."""
        end = min(len(lines), at + self._limit - len(self._items))
        size = sum(map(len, lines[at:end])) + end - at
        least = at if self._items else at + 1
        while end > least and self._held_bytes + size > BLOCK_BYTES:
            end -= 1
            size -= len(lines[end]) + 1
        return max(end, least)

    def give(self, raw: bytes, items: Sequence[Any], places: Sequence[Place]) -> None:
        """Consume the bytes that end with the last of these items, whose places count from the first of them."""
        self.consume(raw)
        for place in places:
            self._places.append(place._replace(first=place.first + len(self._items)))
        self._items += items
        self._held_bytes += len(raw)
        self._end = None

    def pass_over(self, raw: bytes) -> None:
        """Consume what is no item. A checkpoint ends before it: what is unfinished may yet become one."""
        if self._items and self._end is None:
            self._end = self.offset, self._hash.hexdigest()
        self.consume(raw)

    def flush(self) -> Iterator[Block]:
        """The block filled so far, if there is anything in it."""
        if self._items:
            offset, digest = self._end or (self.offset, self._hash.hexdigest())
            self._given = Checkpoint(self._given.items + len(self._items), offset, digest)
            yield Block(self._items, self._given, places=self._places)
            self._items, self._places = [], []
            self._held_bytes = 0
            self._limit = next(self._limits)

    def consume(self, raw: bytes) -> None:
        """Count and hash what was read."""
        self._hash.update(raw)
        self.offset += len(raw)

    def goes_on(self, start: Checkpoint) -> bool:
        """Go on behind `start`, unless other bytes were consumed, or the same with lines joined across files."""
        if self._hash.hexdigest() != start.digest or self.lines < start.items:
            return False
        self._given = start
        return True


class Stream(Protocol):
    """One open input, cut into items by its kind."""

    name: str
    line: int
    """Of what comes next."""
    separator: bytes
    """What ends a line; the last one may lack it."""

    def begin(self) -> bytes:
        """Read what stands before the first item, and return its bytes."""

    def read(self, size: int) -> bytes:
        """Return at most `size` of the bytes that come next, whatever they hold; none at the end."""

    def finish(self, last: bytes) -> bytes | None:
        """Read what now ends the item whose last byte was `last`; None when it was unfinished and has grown."""

    def fill(self, reading: Reading) -> Iterator[Block]:
        """Blocks of what the stream still holds; the last one stays open for the next stream."""

    def close(self) -> None:
        """Give the descriptor back."""


class Words(NamedTuple):
    """How a kind of input is spoken of: its `title`, its `first` file, the `name` of one, and a `size` in bytes."""

    item: str
    ends: str
    changed: str
    nothing: str


class FileSource(ABC):
    """The items of files, one file after the other.

    `skipped` counts the malformed items this source has left out, not those an earlier process did.
    """

    words: ClassVar[Words]
    chunk_bytes: int = BLOCK_BYTES
    """The most that is read at once."""

    def __init__(self, kind: str, inputs: Sequence[str], *, skip_bad_input: bool, block_items: Sequence[int]) -> None:
        self.skipped = 0
        self.skipped_places: list[str] = []
        self.names = [absolute(name) for name in inputs]
        self.spec: dict[str, Any] = {"kind": kind, "files": self.names}
        self._skip_bad_input = skip_bad_input
        self._block_items = block_items

    def count(self) -> None:  # noqa: B027 (None is the answer)
        """Only reading would tell."""

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The items behind `start`; what lies before malformed input is given before the error is raised."""
        reading = Reading(self._block_items)
        try:
            for name in self.names:
                try:
                    with closing(self._opened(name)) as stream:
                        reading.pass_over(stream.begin())
                        if start is not None and reading.items < start.items:
                            self._verify(reading, stream, start)
                        yield from stream.fill(reading)
                except UNREADABLE as error:
                    raise unreadable(name, error) from None
        except InputError:
            yield from reading.flush()
            raise
        if start is not None and reading.items < start.items:
            ends = self.words.ends.format(title=self.title(), first=self.names[0])
            raise InputChanged(
                f"{ends} after {reading.offset} bytes, but this batch has already read "
                f"{start.offset}. Give the whole input again, or pass --new to start a new batch."
            )
        yield from reading.flush()
        if self.skipped and not reading.items:
            raise InputError(
                f"{self.words.nothing}, {self.skipped:,} in number, "
                f"{self.skipped_places[0]} first. Without that option it is told what is wrong there."
            )

    def leave_out(self, place: str, error: InputError) -> None:
        """Count a malformed item, and note its place. Raises the error unless such items are to be left out."""
        if not self._skip_bad_input:
            raise error
        self.skipped += 1
        if len(self.skipped_places) < PLACES_MAX:
            self.skipped_places.append(place)

    def title(self) -> str:
        """The input as a sentence names it."""
        first = title(self.names[0])
        return first if len(self.names) == 1 else f"The input {first} .. {title(self.names[-1])}"

    @abstractmethod
    def _opened(self, name: str) -> Stream:
        """Open one of the files. Raises InputError."""

    def _verify(self, reading: Reading, stream: Stream, start: Checkpoint) -> None:
        """Consume what was consumed before, as far as it lies in this stream, and compare it at its end."""
        last = b""
        while (left := start.offset - reading.offset) > 0 and (data := stream.read(min(left, self.chunk_bytes))):
            reading.consume(data)
            stream.line += data.count(stream.separator)
            last = data[-1:]
        reading.lines += stream.line - 1 + (last not in {b"", stream.separator})
        if reading.offset < start.offset:
            return
        if not reading.goes_on(start):
            changed = self.words.changed.format(title=self.title(), name=stream.name, size=start.offset)
            raise InputChanged(f"{changed}. Restore it, or pass --new to start a new batch.")
        if (ending := stream.finish(last)) is None:
            item = self.words.item
            raise InputChanged(
                f"{stream.name}:{stream.line} was the unfinished last {item} when this batch read it, and has grown "
                f"since. Pass --new to start a new batch; end the last {item} before a batch reads it."
            )
        reading.consume(ending)
        stream.line += ending.count(stream.separator)
