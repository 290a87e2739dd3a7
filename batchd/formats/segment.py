"""Blocks: many consecutive jobs' inputs, or outcomes of one state, in one piece of bytes.

    header   24 bytes, little endian: magic "bd", encoding, state, count, first, body length, CRC32
    body     VECTOR: one pickle of a list of plain values
             ITEMS: `count` end offsets (u32), then the values' own pickles one after another
             EMPTY: nothing; each value is None
             RANGE: 16 bytes, first number and step; the values are integers in equal steps

A journal record is one input block, or several outcome blocks that follow each other. The CRC covers header and
body, because the LMDB format in use has no checksums and gives a flipped byte back silently.
"""

import pickle
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Any, Final
from zlib import crc32

from batchd.errors import FormatError
from batchd.formats.values import are_plain, dump
from batchd.settings import LEASE_JOBS_MAX, RECORD_BYTES_MAX

MAGIC: Final = b"bd"
_HEADER: Final = struct.Struct("<2sBBIQI")
_CRC: Final = struct.Struct("<I")
_RANGE: Final = struct.Struct("<qq")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
INPUT_STATE: Final = 0
_VECTOR_JOBS_MAX: Final = 16_384


class Encoding(IntEnum):
    """How a block's values are stored."""

    VECTOR = 1
    ITEMS = 2
    EMPTY = 3
    RANGE = 4


@dataclass(frozen=True, slots=True)
class Block:
    """A block whose CRC was right."""

    first: int
    count: int
    state: int
    encoding: Encoding
    body: memoryview

    def values(self) -> list[Any]:
        """Decode all values. May run the user's code (ITEMS); raises what that raises."""
        if self.encoding is Encoding.ITEMS:
            return [pickle.loads(payload) for payload in self.payloads()]
        return list(self.plain())

    def plain(self) -> Sequence[Any]:
        """Decode a block of another encoding than ITEMS: runs no code."""
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


def _packed(numbers: range) -> bytes:
    try:
        return _RANGE.pack(numbers.start, numbers.step)
    except struct.error:
        return b""


def pack_items(first: int, state: int, payloads: Sequence[bytes]) -> bytes:
    """Return a block of values that were pickled one by one."""
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


def unpack(data: bytes | memoryview) -> Iterator[Block]:
    """Give the blocks of a record, each one checked. Raises FormatError at the first that is not as written.

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
        yield Block(first, count, state, _ENCODINGS[encoding], body)
        at += length


_ENCODINGS: Final = {int(encoding): encoding for encoding in Encoding}


def input_blocks(items: Sequence[Any]) -> Iterator[tuple[int, bytes]]:
    """Encode items as input blocks that fill LMDB pages; give (count, block). A larger item has its own.

    >>> [(count, len(block)) for count, block in input_blocks(range(100_000))]
    [(65536, 40), (34464, 40)]
    """
    if are_plain(items):
        yield from _vectors(items)
    else:
        yield from pickled_blocks(map(dump, items))


def pickled_blocks(pickles: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Give (count, block) of items that are pickled already."""
    payloads: list[bytes] = []
    room = RECORD_BYTES_MAX - HEADER_BYTES
    for payload in pickles:
        room -= len(payload) + 4
        if payloads and room < 0:
            yield len(payloads), pack_items(0, INPUT_STATE, payloads)
            payloads = []
            room = RECORD_BYTES_MAX - HEADER_BYTES - len(payload) - 4
        payloads.append(payload)
    if payloads:
        yield len(payloads), pack_items(0, INPUT_STATE, payloads)


def _vectors(items: Sequence[Any]) -> Iterator[tuple[int, bytes]]:
    at, most = 0, LEASE_JOBS_MAX if isinstance(items, range) else _VECTOR_JOBS_MAX
    count = most
    while at < len(items):
        values = items[at : at + count]
        block = pack_vector(0, INPUT_STATE, values)
        if len(block) > RECORD_BYTES_MAX and len(values) > 1:
            count = max(1, min(len(values) // 2, int(len(values) * 0.95 * RECORD_BYTES_MAX / len(block))))
            continue
        yield len(values), block
        at += len(values)
        count = max(1, min(most, int(len(values) * 0.95 * RECORD_BYTES_MAX / len(block))))
