"""Lines of a batch's log: whole, bounded, and read back or taken for nothing."""

import json

import pytest

from batchd.formats.joblog import LAST_LINE_BYTES, Line, decode, last_line
from batchd.settings import LOG_LINE_BYTES_MAX

NOW = "2026-01-02T03:04:05.678Z"


@pytest.mark.parametrize("text", ["", "half way", "two\nlines", '"quoted" \\ \x00 \x1b[31m', "\u20ac \U0001f600"])
def test_a_line_is_one_line_and_reads_back(text: str) -> None:
    line = Line(NOW, 17, 2, text)
    made = line.encode()
    assert made.endswith(b"\n")
    assert made.count(b"\n") == 1
    assert decode(made) == line
    assert json.loads(made) == {"time": NOW, "index": 17, "attempt": 2, "text": text}


def test_half_a_character_is_replaced() -> None:
    found = decode(Line(NOW, 0, 1, "a\ud800b").encode())
    assert found is not None
    assert found.text == "a?b"


@pytest.mark.parametrize("char", ["x", "\u00e9", "\U0001f600", "\x00", "\n", '"'])
@pytest.mark.parametrize("length", [LOG_LINE_BYTES_MAX - 200, LOG_LINE_BYTES_MAX, 100_000, 2_000_000])
def test_a_long_text_is_cut_to_a_line_that_is_nearly_full(char: str, length: int) -> None:
    made = Line(NOW, 10**12, 99, char * length).encode()
    assert len(made) <= LOG_LINE_BYTES_MAX
    found = decode(made)
    assert found is not None
    if found.text != char * length:
        assert found.text == char * (len(found.text) - 6) + " [...]"
        assert len(made) > LOG_LINE_BYTES_MAX * 0.9


def test_a_text_that_just_fits_is_not_cut() -> None:
    room = LOG_LINE_BYTES_MAX - len(Line(NOW, 17, 1, "").encode())
    exact = Line(NOW, 17, 1, "x" * room)
    assert len(exact.encode()) == LOG_LINE_BYTES_MAX
    assert decode(exact.encode()) == exact
    cut = decode(Line(NOW, 17, 1, "x" * (room + 1)).encode())
    assert cut is not None
    assert cut.text.endswith("x [...]")


@pytest.mark.parametrize("room", [LAST_LINE_BYTES - 1, LAST_LINE_BYTES, 8_000])
def test_the_last_line_fills_the_file_and_is_no_jobs(room: int) -> None:
    made = last_line(NOW, room)
    assert (len(made), made[-1:]) == (room, b"\n")
    found = decode(made)
    assert found is not None
    assert (found.time, found.index, found.attempt) == (NOW, None, None)
    assert found.text == "the log is full (64 MiB): what jobs say from here on is not kept"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b"17",
        b'{"time": "t", "index": 1, "attempt": 1}',
        b'{"time": "t", "index": "1", "attempt": 1, "text": "x"}',
        b'{"time": "t", "index": true, "attempt": 1, "text": "x"}',
        b'{"time": 5, "index": 1, "attempt": 1, "text": "x"}',
        b'{"time": "t", "index": 1, "attempt": 1, "text": null}',
        b'{"time": "t", "index": 1, "attempt": 1, "text": "x", "more": 1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_line_is_nothing(data: bytes) -> None:
    assert decode(data) is None
