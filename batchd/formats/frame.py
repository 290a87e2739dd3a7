"""Frames: the messages on pipes and sockets.

    header   20 bytes, little endian: magic "bdF1", kind, meta length, body length, CRC32 of these and of meta
    meta     the structured part, small
    body     opaque bytes that carry their own checksum (blocks), or none

A torn frame (its sender was killed while writing) is one that never becomes whole; it is dropped with the stream.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, cast
from zlib import crc32

from batchd.errors import FormatError
from batchd.settings import FRAME_META_BYTES_MAX, VALUE_BYTES_MAX

MAGIC: Final = b"bdF1"
_HEADER: Final = struct.Struct("<4sIII")
_CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
BODY_BYTES_MAX: Final = VALUE_BYTES_MAX + (1 << 20)
LARGE_BYTES_MIN: Final = 1 << 18
"""A body of this size is received where it will lie; smaller ones are copied there."""


class Frame(NamedTuple):
    """One whole message."""

    kind: int
    meta: bytes
    body: bytes
    """A bytearray that nobody else has when it is large: it was received where it lies."""


def encode(kind: int, meta: bytes, body_bytes: int = 0) -> bytes:
    """Return header and meta of a frame whose body of `body_bytes` the caller sends right behind."""
    header = _HEADER.pack(MAGIC, kind, len(meta), body_bytes)
    return b"".join((header, _CRC.pack(crc32(meta, crc32(header))), meta))


class FrameReader:
    """Cuts a stream of bytes into frames.

    >>> reader = FrameReader()
    >>> wire = encode(1, b"meta", 4) + b"body"
    >>> list(reader.feed(wire[:9])), list(reader.feed(wire[9:]))
    ([], [Frame(kind=1, meta=b'meta', body=b'body')])
    """

    def __init__(self, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._body_bytes_max = body_bytes_max
        self._large: Frame | None = None
        """A frame whose body is still coming in."""
        self._room = memoryview(b"")

    @property
    def room(self) -> memoryview | None:
        """Where the rest of a large body belongs, for whoever can receive it right there; None between such."""
        return self._room if self._large is not None else None

    def filled(self, size: int) -> Iterator[Frame]:
        """Take in that `size` bytes were put into `room`."""
        self._room = self._room[size:]
        if self._large is not None and not self._room:
            whole, self._large, self._room = self._large, None, memoryview(b"")  # Or it would hold the body.
            yield whole

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in bytes and give the frames they complete. Raises FormatError on anything that is no frame."""
        if self._large is not None:
            size = min(len(data), len(self._room))
            self._room[:size] = data[:size]
            yield from self.filled(size)
            data = data[size:]
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEADER_BYTES:
                frame_bytes = self._check(at)
                _, kind, meta_bytes, body_bytes = _HEADER.unpack_from(buffer, at)
                meta_at = at + HEADER_BYTES
                is_whole = len(buffer) - at >= frame_bytes
                if not is_whole and (body_bytes < LARGE_BYTES_MIN or len(buffer) < meta_at + meta_bytes):
                    break
                meta = bytes(buffer[meta_at : meta_at + meta_bytes])
                (crc,) = _CRC.unpack_from(buffer, at + _HEADER.size)
                if crc != crc32(meta, crc32(buffer[at : at + _HEADER.size])):
                    raise FormatError(f"frame of kind {kind}: checksum does not match")
                if not is_whole:
                    self._begin_large(kind, meta, body_bytes, memoryview(buffer)[meta_at + meta_bytes :])
                    at = len(buffer)
                    break
                body = bytes(memoryview(buffer)[meta_at + meta_bytes : at + frame_bytes])
                at += frame_bytes
                yield Frame(kind, meta, body)
        finally:
            del buffer[:at]

    def _begin_large(self, kind: int, meta: bytes, body_bytes: int, begun: memoryview) -> None:
        body = bytearray(body_bytes)  # The kernel gives it as it is filled: an announcement alone costs nothing.
        self._large = Frame(kind, meta, cast("bytes", body))
        self._room = memoryview(body)
        self._room[: len(begun)] = begun
        self._room = self._room[len(begun) :]
        begun.release()  # Or the buffer it lies in could not be cut.

    def _check(self, at: int) -> int:
        magic, kind, meta_bytes, body_bytes = _HEADER.unpack_from(self._buffer, at)
        if magic != MAGIC:
            raise FormatError(f"not a frame: starts with {bytes(magic)!r}")
        if meta_bytes > FRAME_META_BYTES_MAX or body_bytes > self._body_bytes_max:
            raise FormatError(f"frame of kind {kind}: {meta_bytes} + {body_bytes} bytes is over the limit")
        return int(HEADER_BYTES + meta_bytes + body_bytes)
