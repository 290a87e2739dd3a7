"""Sizes, durations and shares as people write them, and back.

Pure text: nothing here knows which option the text came from. The one idea: what `format_*` writes, `parse_*`
reads, and a text that cannot be read is answered with a sentence that shows one that can. Sizes are binary,
because the things they are compared with are pages: 2G, 2GB and 2GiB are the same 2,147,483,648 bytes.
"""

import operator
import re
from typing import Final

from batchd.errors import UsageError
from batchd.settings import MEMORY_PER_JOB_BYTES_MIN

_NUMBER: Final = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"  # Bounded, so that no text becomes infinity.
_SIZE: Final = re.compile(rf"({_NUMBER})\s*(?:([KMGT])(?:I?B)?|B)?")
_SIZE_FACTORS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATION_PART: Final = re.compile(rf"({_NUMBER})\s*(ms|s|m|h|d)\s*")
_DURATION: Final = re.compile(rf"{_NUMBER}|(?:{_DURATION_PART.pattern})+")
_DURATION_FACTORS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_COUNT: Final = re.compile(r"[0-9]{1,15}")
_PERCENT: Final = re.compile(rf"({_NUMBER})\s*%")


def parse_size(text: str) -> int:
    """Return the bytes that `text` names.

    >>> parse_size("2G"), parse_size("1.5 KiB"), parse_size("300")
    (2147483648, 1536, 300)
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise UsageError(f"{text!r} is not a size; write a number of bytes, or one with K, M, G or T, such as 512M.")
    number, unit = match.groups()
    return int(float(number) * _SIZE_FACTORS[unit]) if unit else int(float(number))


def job_memory(option: str, value: int | str | None) -> int | None:
    """Return what a caller gives as a limit of memory per job: bytes, or what `parse_size` reads.

    >>> job_memory("memory_per_job", "2G"), job_memory("memory_per_job", None)
    (2147483648, None)
    """
    if value is None:
        return None
    try:
        found = parse_size(value) if isinstance(value, str) else operator.index(value)
    except TypeError:
        raise UsageError(f'{option}={value!r:.80}: give bytes, or a text such as "2G"') from None
    if found < MEMORY_PER_JOB_BYTES_MIN:
        least = format_size(MEMORY_PER_JOB_BYTES_MIN)
        raise UsageError(f"{option} must be {least} or more: a worker takes most of that by itself")
    return found


def format_size(size_bytes: float) -> str:
    """Return `size_bytes` in the unit that needs the fewest digits, three of them at most.

    >>> format_size(2 << 30), format_size(1_600_000), format_size(900)
    ('2G', '1.53M', '900B')
    """
    value, unit = float(size_bytes), "B"
    for larger in _SIZE_FACTORS:
        if value < 999.5:  # From here on three digits would round to 1000.
            break
        value, unit = value / 1024, larger
    return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"


def parse_duration(text: str) -> float:
    """Return the seconds that `text` names; a bare number means seconds.

    >>> parse_duration("1h30m"), parse_duration("200ms"), parse_duration("1.5")
    (5400.0, 0.2, 1.5)
    """
    cleaned = text.strip().lower()
    if _DURATION.fullmatch(cleaned) is None:
        raise UsageError(
            f"{text!r} is not a duration; write seconds, or numbers with ms, s, m, h, d, such as 90s or 1h30m."
        )
    parts = _DURATION_PART.findall(cleaned) or [(cleaned, "s")]
    return float(sum(float(number) * _DURATION_FACTORS[unit] for number, unit in parts))


def seconds_of(option: str, value: float | str | None) -> float | None:
    """Return what a caller from Python gives as a limit of time: seconds, or what `parse_duration` reads.

    >>> seconds_of("timeout", 90), seconds_of("timeout", "1m30s"), seconds_of("timeout", None)
    (90.0, 90.0, None)
    """
    if value is None:
        return None
    try:
        found = parse_duration(value) if isinstance(value, str) else float(value)
    except TypeError:
        raise UsageError(f'{option}={value!r:.80}: give seconds, or a text such as "90s" or "1h30m"') from None
    if not found > 0:
        raise UsageError(f"{option} must be more than 0")
    return found


def format_duration(duration_s: float) -> str:
    """Return `duration_s` short enough for a progress line: two units at most, nothing below zero.

    >>> [format_duration(s) for s in (0.012, 0.4, 12, 252, 5400, 187_200)]
    ['12 ms', '0.4 s', '12 s', '4m12s', '1h30m', '2d04h']
    """
    if duration_s < 0.0005:
        return "0 s"
    if duration_s < 0.0995:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 9.95:
        return f"{duration_s:.1f} s"
    # Each limit is compared after rounding, so that 59.7 seconds become a minute and never "60 s".
    if (seconds := round(duration_s)) < 60:
        return f"{seconds} s"
    if seconds < 3_600:
        return _in_two_units(seconds, 60, "m", "s")
    if (minutes := round(duration_s / 60)) < 1_440:
        return _in_two_units(minutes, 60, "h", "m")
    return _in_two_units(round(duration_s / 3_600), 24, "d", "h")


def parse_share(text: str) -> tuple[int | None, float | None]:
    """Return `text` as (count, None), or as (None, ratio) when it is a percentage.

    >>> parse_share("5"), parse_share("5%")
    ((5, None), (None, 0.05))
    """
    cleaned = text.strip()
    if _COUNT.fullmatch(cleaned):
        return int(cleaned), None
    percent = _PERCENT.fullmatch(cleaned)
    if percent is not None and float(percent[1]) <= 100:
        return None, float(percent[1]) / 100
    raise UsageError(f"{text!r} is neither a count nor a share; write a whole number or 0% to 100%, such as 5 or 5%.")


def _in_two_units(amount: int, per_large: int, large_unit: str, small_unit: str) -> str:
    large, small = divmod(amount, per_large)
    return f"{large}{large_unit}{small:02d}{small_unit}" if small else f"{large}{large_unit}"


def counted(count: int, noun: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "job"), counted(1_200, "failed job"), counted(0, "batch")
    ('1 job', '1,200 failed jobs', '0 batches')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("ch") else "s")


def continuing(name: str, done: int, size: int) -> str:
    """Return what is said of a batch that goes on.

    >>> continuing("nightly", 0, 1), continuing("nightly", 3, 1_200)
    ('continuing nightly: 0 of 1 job was already done', 'continuing nightly: 3 of 1,200 jobs were already done')
    """
    return f"continuing {name}: {done:,} of {counted(size, 'job')} {'was' if size == 1 else 'were'} already done"


def visible(text: str) -> str:
    r"""Return text from elsewhere with its control characters shown, so that it cannot steer a terminal.

    >>> visible("a\tb \x1b[31mred")
    'a\tb \\x1b[31mred'
    """
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def visible_line(text: str) -> str:
    r"""Return text from elsewhere as one line, however many it has.

    >>> visible_line("two\nlines")
    'two\\nlines'
    """
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")
