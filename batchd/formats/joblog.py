"""A batch's log: what its jobs said while they ran, a line of JSON each, in the order in which they said it.

    {"time": "2026-01-02T03:04:05.678Z", "index": 17, "attempt": 1, "text": "half way"}

A file that is full ends with a line that says so, with null for index and attempt. A writer may be killed anywhere:
what is no such line, and a last line without its end, is nothing.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Final

from batchd.settings import LOG_BYTES_MAX, LOG_LINE_BYTES_MAX

LOG_NAME: Final = "log.jsonl"
LAST_LINE_BYTES: Final = 512
"""Kept free for the line that says that the log is full."""
_CUT: Final = " [...]"
_FULL: Final = f"the log is full ({LOG_BYTES_MAX >> 20} MiB): what jobs say from here on is not kept"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that one job said."""

    time: str
    """UTC, as ISO 8601 writes it."""
    index: int | None
    """None: no job said it."""
    attempt: int | None
    text: str

    def encode(self) -> bytes:
        r"""Return the line with its end; a text that does not fit is cut.

        >>> Line("2026-01-02T03:04:05.678Z", 17, 1, "half way").encode()
        b'{"time": "2026-01-02T03:04:05.678Z", "index": 17, "attempt": 1, "text": "half way"}\n'
        """
        line = self
        while (size := len(encoded := line._encoded())) > LOG_LINE_BYTES_MAX:
            text = line.text.removesuffix(_CUT)[:LOG_LINE_BYTES_MAX]
            over = len(_CUT) + (size - LOG_LINE_BYTES_MAX if size < 2 * LOG_LINE_BYTES_MAX else 0)
            keep = len(text) - max(1, over * len(text) // size)
            line = replace(line, text=text[:keep] + _CUT)
        return encoded

    def _encoded(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode(errors="replace") + b"\n"


def last_line(time: str, room: int) -> bytes:
    """Return the line that fills the rest of a log and says that it is full."""
    line = json.dumps(asdict(Line(time, None, None, _FULL))).encode()
    return line.ljust(room - 1) + b"\n"


def decode(data: bytes) -> Line | None:
    """Return what stands in a line, None when it was torn by a death or is damaged.

    >>> decode(b'{"time": "", "index": 3, "attempt": 1, "text": "x"}'), decode(b'{"time": "2026-01')
    (Line(time='', index=3, attempt=1, text='x'), None)
    """
    try:
        line = Line(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None
    is_whole = isinstance(line.time, str) and isinstance(line.text, str)
    return line if is_whole and {type(line.index), type(line.attempt)} <= {int, type(None)} else None
