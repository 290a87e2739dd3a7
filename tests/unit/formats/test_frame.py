"""Frames: a stream of bytes becomes messages, however it is cut; what is no frame is refused before it is kept."""

import struct
from typing import cast
from zlib import crc32

import pytest

from batchd.errors import FormatError
from batchd.formats.frame import BODY_BYTES_MAX, HEADER_BYTES, LARGE_BYTES_MIN, Frame, FrameReader, encode
from batchd.settings import FRAME_META_BYTES_MAX


def test_a_frame_comes_out_as_it_went_in() -> None:
    assert list(FrameReader().feed(encode(2, b"meta", 4) + b"body")) == [Frame(2, b"meta", b"body")]


def test_many_frames_in_one_read_keep_their_order() -> None:
    wire = b"".join(encode(kind, b"m" * kind, kind) + b"b" * kind for kind in range(20))
    assert list(FrameReader().feed(wire)) == [Frame(kind, b"m" * kind, b"b" * kind) for kind in range(20)]


def test_a_torn_frame_never_becomes_a_message() -> None:
    wire = encode(1, b"meta", 100) + b"only the beginning"
    assert list(FrameReader().feed(encode(3, b"") + wire)) == [Frame(3, b"", b"")]


def test_whole_frames_before_garbage_are_given() -> None:
    reader = FrameReader()
    frames = reader.feed(encode(1, b"good") + b"\0" * HEADER_BYTES)
    assert next(frames) == Frame(1, b"good", b"")
    with pytest.raises(FormatError, match="not a frame"):
        next(frames)


def header(magic: bytes, meta_bytes: int, body_bytes: int) -> bytes:
    fields = struct.pack("<4sIII", magic, 1, meta_bytes, body_bytes)
    return fields + struct.pack("<I", crc32(fields))


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (header(b"bdF2", 0, 0), "not a frame: starts with b'bdF2'"),
        (header(b"bdF1", FRAME_META_BYTES_MAX + 1, 0), "over the limit"),
        (header(b"bdF1", 0, BODY_BYTES_MAX + 1), "over the limit"),
        (encode(1, b"meta")[:-1] + b"A", "frame of kind 1: checksum does not match"),
    ],
)
def test_what_is_no_frame_is_refused_by_its_header(wire: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(FrameReader().feed(wire))


def test_the_limit_of_a_body_can_be_lowered() -> None:
    wire = encode(1, b"", 11)
    assert list(FrameReader(body_bytes_max=11).feed(wire)) == []
    with pytest.raises(FormatError, match="0 \\+ 11 bytes is over the limit"):
        list(FrameReader(body_bytes_max=10).feed(wire))


def test_a_refused_stream_stays_refused() -> None:
    reader = FrameReader()
    for data in (b"garbage, more than a header of it", encode(1, b"")):
        with pytest.raises(FormatError, match="not a frame"):
            list(reader.feed(data))


@pytest.mark.parametrize("cut", [HEADER_BYTES + 2, HEADER_BYTES + 4, HEADER_BYTES + 5, LARGE_BYTES_MIN])
def test_a_large_body_is_received_where_it_lies(cut: int) -> None:
    body = bytes(range(256)) * (LARGE_BYTES_MIN // 256 + 1)
    wire = encode(2, b"meta", len(body)) + body
    reader = FrameReader()
    assert list(reader.feed(wire[:cut])) == []
    left = memoryview(wire)[cut:]
    if reader.room is None:  # Not before its head is whole.
        assert cut < HEADER_BYTES + 4
        assert list(reader.feed(bytes(left[:8]))) == []
        left = left[8:]
    while len(left) > 1:
        assert reader.room is not None
        size = min(len(left) - 1, 100_000)
        reader.room[:size] = left[:size]
        assert list(reader.filled(size)) == []
        left = left[size:]
    # The last byte comes with what follows it, to a reader that does not look at `room`.
    assert list(reader.feed(bytes(left) + encode(3, b""))) == [Frame(2, b"meta", body), Frame(3, b"", b"")]
    assert reader.room is None


def test_a_large_body_is_not_held_by_whoever_received_it() -> None:
    body = bytearray(LARGE_BYTES_MIN)
    reader = FrameReader()
    (whole,) = [*reader.feed(encode(2, b"", len(body))), *reader.feed(bytes(body))]
    cast("bytearray", whole.body).clear()  # Which is refused as long as there is a view of it.


def test_a_large_body_behind_a_wrong_head_is_refused() -> None:
    wire = encode(1, b"meta", LARGE_BYTES_MIN)
    with pytest.raises(FormatError, match="checksum does not match"):
        list(FrameReader().feed(wire[:-1] + b"A"))
