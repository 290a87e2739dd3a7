"""Units: what people write is read, what is written is read again, and nonsense gets a helpful sentence."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchd.errors import UsageError
from batchd.units import format_duration, format_size, parse_duration, parse_share, parse_size, seconds_of


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("900B", 900),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("2GB", 2 << 30),
        ("2GiB", 2 << 30),
        (" 1.5 K ", 1536),
        ("3M", 3 << 20),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_binary(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "0.977K"),
        (1024, "1K"),
        (100 << 20, "100M"),
        ((1 << 30) - 1, "1G"),
        (2000 << 40, "2000T"),
    ],
)
def test_sizes_are_written_with_three_digits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        ("90s", 90.0),
        ("200ms", 0.2),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("2D", 172_800.0),
        ("4m12s", 252.0),
    ],
)
def test_durations_are_seconds(text: str, duration_s: float) -> None:
    assert parse_duration(text) == pytest.approx(duration_s)


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (-3.0, "0 s"),
        (0.0, "0 s"),
        (0.04, "40 ms"),
        (0.0996, "0.1 s"),
        (9.96, "10 s"),
        (59.7, "1m"),
        (65.0, "1m05s"),
        (3599.7, "1h"),
        (3660.0, "1h01m"),
        (86_399.0, "1d"),
        (100_000.0, "1d04h"),
    ],
)
def test_durations_never_show_a_full_unit_as_sixty(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("5", (5, None)),
        ("0", (0, None)),
        ("5%", (None, 0.05)),
        ("12.5 %", (None, 0.125)),
        ("100%", (None, 1.0)),
    ],
)
def test_a_share_is_a_count_or_a_ratio(text: str, share: tuple[int | None, float | None]) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize(
    ("parse", "text", "example"),
    [
        *[
            (parse_size, text, "such as 512M")
            for text in ("", "G", "2X", "-1", "1e9", "inf", "2 G B", "9" * 400, "٣")
        ],
        *[(parse_duration, text, "such as 90s") for text in ("", "h", "1y", "-1s", "nan", "1h30", "9" * 400)],
        *[(parse_share, text, "such as 5 or 5%") for text in ("", "%", "-5", "101%", "1.5", "5%%", "nan%")],
    ],
)
def test_bad_text_is_answered_with_an_example(parse: Callable[[str], object], text: str, example: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert example in str(caught.value)


@given(st.integers(min_value=0, max_value=1 << 55))
def test_a_written_size_reads_back_within_its_three_digits(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.006)


@given(st.floats(min_value=0.001, max_value=1e9))
def test_a_written_duration_reads_back_within_its_last_unit(duration_s: float) -> None:
    # The worst case is 1.5 ms, written as 2 ms.
    assert parse_duration(format_duration(duration_s)) == pytest.approx(duration_s, rel=0.34)


@pytest.mark.parametrize("value", [[1], "soon", 0, -1.0, float("nan"), "0s"])
def test_what_is_no_limit_of_time_is_refused_in_words(value: Any) -> None:
    with pytest.raises(UsageError, match=r"1h30m|timeout must be more"):
        seconds_of("timeout", value)
