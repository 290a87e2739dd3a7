"""Blocks: many consecutive jobs' inputs, or outcomes of one state, in one piece of bytes.

    header   24 bytes, little endian: magic "bd", encoding, state, count, first, body length, CRC32
    body     VECTOR: one pickle of a list of plain values
             ITEMS: `count` end offsets (u32), then the values' own pickles one after another
             EMPTY: nothing; each value is None
             RANGE: 16 bytes, first number and step; the values are integers in equal steps
             FILED: a reference to the file that holds the one large value of this block (reference.py)

A journal record is one input block, or several outcome blocks that follow each other. The CRC covers header and
body, because the LMDB format in use has no checksums and gives a flipped byte back silently.
"""

import pickle
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Any, Final, cast
from zlib import crc32

from batchd.errors import FormatError
from batchd.formats.reference import Filed, Keep, Payload, Read, Reference, keep_nothing
from batchd.formats.values import are_plain, dump_kept, load, may_be_large
from batchd.settings import LEASE_JOBS_MAX, RECORD_BYTES_MAX

MAGIC: Final = b"bd"
_HEADER: Final = struct.Struct("<2sBBIQI")
_CRC: Final = struct.Struct("<I")
_RANGE: Final = struct.Struct("<qq")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
INPUT_STATE: Final = 0
_VECTOR_JOBS_MAX: Final = 16_384
_LOOKED_AT_MAX: Final = 32
_NUMBERS: Final = frozenset({int, float, bool, type(None)})


class Encoding(IntEnum):
    """How a block's values are stored."""

    VECTOR = 1
    ITEMS = 2
    EMPTY = 3
    RANGE = 4
    FILED = 5


@dataclass(frozen=True, slots=True)
class Block:
    """A block whose CRC was right."""

    first: int
    count: int
    state: int
    encoding: Encoding
    body: memoryview
    read: Read | None = None
    """Reads the file of a value, for whoever may."""

    @property
    def is_separate(self) -> bool:
        """Whether its values are loaded one by one, which may run the user's code."""
        return self.encoding in {Encoding.ITEMS, Encoding.FILED}

    @property
    def nbytes(self) -> int:
        """What its values take, wherever they lie."""
        return self.reference().nbytes if self.encoding is Encoding.FILED else len(self.body)

    def values(self) -> list[Any]:
        """Decode all values. May run the user's code (ITEMS, FILED); raises what that raises."""
        return [load(payload) for payload in self.separate()] if self.is_separate else list(self.plain())

    def plain(self) -> Sequence[Any]:
        """Decode a block whose values are not separate: runs no code."""
        match self.encoding:
            case Encoding.EMPTY:
                return [None] * self.count
            case Encoding.RANGE:
                return self._range()
            case _:
                return self._vector()

    def _range(self) -> range:
        try:
            start, step = _RANGE.unpack(self.body)
            return range(start, start + self.count * step, step)
        except (struct.error, ValueError) as error:  # Of another length, or with a step of 0.
            raise FormatError(f"block of jobs {self.first}..: {error}") from None

    def _vector(self) -> list[Any]:
        try:
            values = pickle.loads(self.body)
        except Exception as error:  # Of bytes that are no pickle: any.
            raise FormatError(f"block of jobs {self.first}..: {type(error).__name__}: {error}") from None
        if not isinstance(values, list) or len(values) != self.count:
            raise FormatError(f"block of jobs {self.first}..: holds another number of values than {self.count}")
        return values

    def separate(self) -> Sequence[Payload]:
        """Return the values of an ITEMS or FILED block, to be loaded one by one. Files are not read yet."""
        if self.encoding is not Encoding.FILED:
            return self.payloads()
        if self.read is None:
            raise FormatError(f"block of job {self.first}: its value lies in a file, which is not read here")
        return [Filed(self.reference(), self.read)]

    def payloads(self) -> list[memoryview]:
        """Return the separate pickles of an ITEMS block."""
        start = 4 * self.count
        if start > len(self.body):
            raise FormatError(f"block of jobs {self.first}..: offset table cut off")
        ends = struct.unpack_from(f"<{self.count}I", self.body)
        data = self.body[start:]
        if ends and (ends[-1] != len(data) or any(a > b for a, b in pairwise(ends))):
            raise FormatError(f"block of jobs {self.first}..: offset table does not fit its values")
        return [data[a:b] for a, b in zip((0, *ends), ends, strict=False)]

    def reference(self) -> Reference:
        """Return what a FILED block holds. Raises FormatError."""
        if self.count != 1:
            raise FormatError(f"block of jobs {self.first}..: one reference, and {self.count} jobs")
        return Reference.decode(self.body)


def pack(first: int, count: int, state: int, encoding: Encoding, *body: bytes) -> bytes:
    """Return a block of an encoded body, which may come in parts: a large one is copied once."""
    header = _HEADER.pack(MAGIC, encoding, state, count, first, sum(map(len, body)))
    crc = crc32(header)
    for part in body:
        crc = crc32(part, crc)
    return b"".join((header, _CRC.pack(crc), *body))


def pack_vector(first: int, state: int, values: Sequence[Any]) -> bytes:
    """Return a block of plain values. A range stays one, unless it passes 64 bits."""
    if isinstance(values, range) and (body := _packed(values)):
        return pack(first, len(values), state, Encoding.RANGE, body)
    if (not values or values[0] is None) and values.count(None) == len(values):
        return pack(first, len(values), state, Encoding.EMPTY)
    values = values if isinstance(values, list) else list(values)
    return pack(first, len(values), state, Encoding.VECTOR, pickle.dumps(values, 5))


def pack_plain(first: int, state: int, values: Sequence[Any], keep: Keep) -> bytes:
    """Return a block of plain values; `keep` may write one that is large, and stands alone, to a file."""
    if len(values) == 1 and keep is not keep_nothing and may_be_large(values[0]):
        reference = keep([pickle.dumps(values[0], 5)])
        if reference is not None:
            return pack_pickled(first, state, [reference])
    return pack_vector(first, state, values)


def runs_of_plain(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut plain values into runs, in which a large one stands alone.

    Many are looked at one by one only when the first, the middle or the last of them is large: results that are made
    in a moment and reported together are mostly of a kind.
    """
    at = 0
    if len(values) > _LOOKED_AT_MAX:
        is_looked_at = any(map(may_be_large, (values[0], values[len(values) // 2], values[-1])))
    else:
        is_looked_at = len(values) > 1 and not _NUMBERS.issuperset(map(type, values))
    if is_looked_at:
        for place, value in enumerate(values):
            if may_be_large(value):
                if at < place:
                    yield values[at:place]
                yield values[place : place + 1]
                at = place + 1
    if at < len(values):
        yield values[at:] if at else values


def _packed(numbers: range) -> bytes:
    try:
        return _RANGE.pack(numbers.start, numbers.step)
    except struct.error:
        return b""


def pack_pickled(first: int, state: int, payloads: Sequence[bytes | Reference]) -> bytes:
    """Return a block of values that were pickled one by one. What has a reference stands alone."""
    if isinstance(payloads[0], Reference):
        return pack(first, len(payloads), state, Encoding.FILED, payloads[0].encode())
    return pack_items(first, state, cast("Sequence[bytes]", payloads))


def pack_items(first: int, state: int, payloads: Sequence[bytes]) -> bytes:
    """Return a block of pickles."""
    ends = struct.pack(f"<{len(payloads)}I", *accumulate(map(len, payloads)))
    if len(payloads) == 1:  # A large value stands alone.
        return pack(first, 1, state, Encoding.ITEMS, ends, payloads[0])
    return pack(first, len(payloads), state, Encoding.ITEMS, b"".join((ends, *payloads)))


def header_of(data: bytes | memoryview, offset: int = 0) -> tuple[int, int, int, int]:
    """Return (first, count, state, block length) of the block at `offset`, without reading its body."""
    if len(data) - offset < HEADER_BYTES:
        raise FormatError(f"block at byte {offset}: header cut off after {len(data) - offset} bytes")
    magic, _, state, count, first, length = _HEADER.unpack_from(data, offset)
    if magic != MAGIC:
        raise FormatError(f"block at byte {offset}: starts with {bytes(magic)!r} instead of {MAGIC!r}")
    return first, count, state, HEADER_BYTES + length


def references_in(record: bytes | memoryview) -> Iterator[Reference]:
    """Give the references of a record, without looking at anything else in it. Raises FormatError."""
    if isinstance(record, bytes) and record.find(_FILED_HEAD) < 0:
        return  # Most records: walking over a million blocks takes 0.3 s.
    at = 0
    while at < len(record):
        length = header_of(record, at)[3]
        if record[at + len(MAGIC)] == Encoding.FILED:
            yield Reference.decode(record[at + HEADER_BYTES : at + length])
        at += length


def nbytes_of(block: bytes) -> int:
    """Return what the values of a block take, with the file of one that is large."""
    return len(block) + sum(reference.nbytes for reference in references_in(block))


def unpack(data: bytes | memoryview, read: Read | None = None) -> Iterator[Block]:
    """Give the blocks of a record, each one checked. Raises FormatError at the first that is not as written.

    `read` is for those who want values that lie in files.

    >>> [(block.first, block.values()) for block in unpack(pack_vector(7, 3, [1, "a"]))]
    [(7, [1, 'a'])]
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        first, count, state, length = header_of(view, at)
        if at + length > len(view):
            raise FormatError(f"block of jobs {first}..: {at + length - len(view)} bytes missing")
        body = view[at + HEADER_BYTES : at + length]
        (crc,) = _CRC.unpack_from(view, at + _HEADER.size)
        if crc != crc32(body, crc32(view[at : at + _HEADER.size])):
            raise FormatError(f"block of jobs {first}..: checksum does not match, the bytes were changed")
        encoding = view[at + len(MAGIC)]
        if encoding not in _ENCODINGS:
            raise FormatError(f"block of jobs {first}..: unknown encoding {encoding}")
        yield Block(first, count, state, _ENCODINGS[encoding], body, read)
        at += length


_FILED_HEAD: Final = MAGIC + bytes([Encoding.FILED])
_ENCODINGS: Final = {int(encoding): encoding for encoding in Encoding}


def input_blocks(items: Sequence[Any], keep: Keep = keep_nothing) -> Iterator[tuple[int, bytes]]:
    """Encode items as input blocks that fill LMDB pages; give (count, block). A larger item has its own.

    `keep` may write large items to files.

    >>> [(count, len(block)) for count, block in input_blocks(range(100_000))]
    [(65536, 40), (34464, 40)]
    """
    if are_plain(items):
        yield from _vectors(items, keep)
    else:
        yield from pickled_blocks(dump_kept(item, keep) for item in items)


def pickled_blocks(pickles: Iterable[bytes | Reference]) -> Iterator[tuple[int, bytes]]:
    """Give (count, block) of items that are pickled already."""
    for part in runs(pickles):
        yield len(part), pack_pickled(0, INPUT_STATE, part)


def runs(payloads: Iterable[bytes | Reference]) -> Iterator[list[bytes | Reference]]:
    """Cut payloads into runs that fit a record each; a larger one stands alone, and so does a reference."""
    run: list[bytes | Reference] = []
    room = 0
    for payload in payloads:
        nbytes = RECORD_BYTES_MAX if isinstance(payload, Reference) else len(payload) + 4
        room -= nbytes
        if run and room < 0:
            yield run
            run = []
        if not run:
            room = RECORD_BYTES_MAX - HEADER_BYTES - nbytes
        run.append(payload)
    if run:
        yield run


def _vectors(items: Sequence[Any], keep: Keep) -> Iterator[tuple[int, bytes]]:
    at, most = 0, LEASE_JOBS_MAX if isinstance(items, range) else _VECTOR_JOBS_MAX
    count = most
    while at < len(items):
        values = _not_too_many(items[at : at + count])
        block = pack_plain(0, INPUT_STATE, values, keep)
        if len(block) > RECORD_BYTES_MAX and len(values) > 1:
            count = max(1, min(len(values) - 1, int(len(values) * 0.95 * RECORD_BYTES_MAX / len(block))))
            continue
        yield len(values), block
        at += len(values)
        count = max(1, min(most, int(len(values) * 0.95 * RECORD_BYTES_MAX / nbytes_of(block))))


def _not_too_many(values: Sequence[Any]) -> Sequence[Any]:
    """Return as many of the values as a record may hold, as far as text and bytes among them tell without a look."""
    if not any(type(value) in {str, bytes} for value in (values[0], values[len(values) // 2], values[-1])):
        return values  # Numbers all take about the same.
    room = RECORD_BYTES_MAX
    for place, value in enumerate(values):
        room -= len(value) if type(value) in {str, bytes} else 0
        if room < 0:
            return values[: max(1, place)]
    return values
