"""Reports: a failure is text for everybody, and bytes that are none are refused."""

import json
import struct

import pytest

from batchd.errors import FormatError
from batchd.formats.report import FINGERPRINT_BYTES, NO_FINGERPRINT, Failure, fingerprint
from batchd.settings import MESSAGE_CHARS_MAX

MARK = b"12345678"


def test_a_failure_comes_back_whole() -> None:
    failure = Failure("ValueError", "bad \u20ac", MARK, "last line\n", {"signal": 9, "cpu_s": 0.5}, b"\x80pickle")
    assert Failure.decode(failure.encode()) == failure
    assert Failure.decode(memoryview(failure.encode())) == failure


def test_what_is_empty_takes_no_room() -> None:
    short, long = Failure("E", "m", MARK), Failure("E", "m", MARK, "output", {"a": 1}, b"exception")
    assert len(short.encode()) == FINGERPRINT_BYTES + 4 + len(json.dumps({"type": "E", "message": "m"}))
    assert len(long.encode()) > len(short.encode())


def test_a_long_message_is_cut() -> None:
    assert Failure.decode(Failure("E", "x" * 10_000, MARK).encode()).message == "x" * MESSAGE_CHARS_MAX


def test_a_message_with_half_a_character_is_kept() -> None:
    assert Failure.decode(Failure("E", "a\ud800b", MARK).encode()).message == "a\ud800b"


def failure_of(fields: object) -> bytes:
    text = json.dumps(fields).encode()
    return MARK + struct.pack("<I", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MARK,
        MARK + struct.pack("<I", 5) + b"{",
        MARK + struct.pack("<I", 2) + b"\xff\xff",
        failure_of({"type": "E"}),
        failure_of([]),
        failure_of("text"),
        failure_of(None),
        failure_of({"type": "E", "message": "m", "details": 5}),
        failure_of({"type": "E", "message": "m", "details": [1]}),
        failure_of({"type": "E", "message": "m", "details": "ab"}),
        MARK + struct.pack("<I", 200_000) + b"[" * 200_000,
    ],
)
def test_what_is_no_failure_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="failure record"):
        Failure.decode(data)


def test_fingerprints_tell_parts_apart() -> None:
    marks = {fingerprint("a", "b"), fingerprint("ab"), fingerprint("a"), fingerprint("b", "a"), fingerprint()}
    assert len(marks) == 5
    assert {len(mark) for mark in marks} == {FINGERPRINT_BYTES}
    assert NO_FINGERPRINT not in marks
    assert fingerprint("a", "b") == fingerprint("a", "b")
    assert fingerprint("\ud800")
