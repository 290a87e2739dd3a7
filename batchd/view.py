"""What a person sees while a batch runs: one live line on a terminal, now and then a plain line elsewhere.

Nothing is counted here and nothing is asked: the supervisor's news come in, a line goes out, to standard error only.
The one idea: the same few words are drawn everywhere, and a word that cannot be known yet is left out, never guessed.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TextIO

from batchd.core.job import JobState
from batchd.settings import PROGRESS_PLAIN_S
from batchd.units import format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

RATE_S: Final = 5.0
"""The rate is that of the last so many seconds."""
RATE_S_MIN: Final = 0.5
REMAINING_S_MIN: Final = 2.0
"""Nothing is said about the remaining time before a rate was seen for this long."""
_SAMPLE_S: Final = 0.1
_DRAW_HZ: Final = 8
_BAR_COLUMNS: Final = 24
_WIDTH_WITH_BAR_MIN: Final = 90

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ProgressNews:
    """How a batch stands, as the supervisor tells it."""

    batch: str
    size: int = 0
    is_sealed: bool = False
    done: int = 0
    prefix: int = 0
    counts: Mapping[JobState, int] = field(default_factory=dict)
    generation: int = 0
    state: str = "open"
    reason: str = ""
    workers: int = 0
    busy: int = 0
    trouble: str = ""
    """What holds the batch up, such as a full disk."""
    usage: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The news in a message; what this version does not know is left out.

        >>> ProgressNews.from_fields({"batch": "b", "counts": {"4": 2, "5": 1}, "is_new": True}).failed
        3
        """
        known = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}
        known["counts"] = {JobState(int(state)): count for state, count in fields.get("counts", {}).items()}
        return cls(**known)

    @property
    def failed(self) -> int:
        """Jobs that failed or were quarantined."""
        return self.counts.get(JobState.FAILED, 0) + self.counts.get(JobState.QUARANTINED, 0)


class View(Protocol):
    """What is shown of one run."""

    def update(self, progress: ProgressNews) -> None:
        """Take in the latest news; may be called as often as is handy, also with news that did not change."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Take away what does not stay."""


def make_view(
    *,
    quiet: bool,
    as_json: bool,
    title: str,
    total: int | None,
    stream: TextIO | None = None,
    clock: Clock = time.monotonic,
) -> View:
    """The view for this run: `total` is the number of jobs if it is known before the input has been read."""
    stream = sys.stderr if stream is None else stream
    if quiet or stream is None:
        return SilentView()
    if as_json:
        return NotesView(stream)
    caption = Caption(title, total, clock)
    if stream.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown", ""}:
        return LiveView(caption, stream)
    return PlainView(caption, stream, clock)


class Caption:
    """The words of a progress line, and what they are computed from."""

    def __init__(self, title: str, total: int | None, clock: Clock) -> None:
        self.title = title
        self.news: ProgressNews | None = None
        self._total = total
        self._clock = clock
        self._start = clock()
        self._samples: deque[tuple[float, int]] = deque()
        """(time, jobs done): the oldest is the last one before RATE_S ago."""

    def update(self, news: ProgressNews) -> None:
        """Take in news."""
        now = self._clock()
        if self.news is not None and news.done < self.news.done:
            self._samples.clear()  # Finished jobs were taken up again by a retry.
        self.news = news
        if len(self._samples) > 1 and now - self._samples[-2][0] < _SAMPLE_S:
            self._samples.pop()
        self._samples.append((now, news.done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_S:
            self._samples.popleft()

    @property
    def total(self) -> int | None:
        """How many jobs there will be, when that is known."""
        if self.news is not None and self.news.is_sealed:
            return self.news.size
        # An input that grew past what was counted is not known any more.
        return self._total if self.news is None or (self._total or 0) >= self.news.size else None

    def words(self) -> list[str]:
        """The parts of the line behind the title and the bar."""
        now, news = self._clock(), self.news
        elapsed = format_duration(now - self._start)
        if news is None:
            return ["starting", elapsed]
        words = [self._done_word(news)]
        if news.failed:
            words.append(f"{news.failed:,} failed")
        rate = self._rate(now, RATE_S_MIN)
        if news.trouble:
            words.append("paused")
        elif rate is not None:
            words.append(f"{format_rate(rate)}/s")
        if news.workers:
            words.append(f"{news.busy}/{news.workers} busy")
        words.append(elapsed)
        remaining_s = self._remaining_s(now)
        if remaining_s is not None:
            words.append(f"~{format_duration(remaining_s)} left")
        return words

    def _done_word(self, news: ProgressNews) -> str:
        total = self.total
        if total is None:
            return f"{news.done:,} of {news.size:,}+ done"
        percent = f" ({100 * news.done // total}%)" if total else ""
        return f"{news.done:,} of {total:,} done{percent}"

    def _rate(self, now: float, span_s_min: float) -> float | None:
        if not self._samples or now - self._samples[0][0] < span_s_min:
            return None
        start, done = self._samples[0]
        return (self._samples[-1][1] - done) / (now - start)

    def _remaining_s(self, now: float) -> float | None:
        rate = self._rate(now, REMAINING_S_MIN)
        if self.news is None or self.total is None or not rate or self.news.trouble:
            return None
        left = self.total - self.news.done
        return left / rate if left > 0 else None


def format_rate(rate: float) -> str:
    """A number of jobs with as many digits as mean something.

    >>> format_rate(0.123), format_rate(4.56), format_rate(1203.4)
    ('0.12', '4.6', '1,203')
    """
    if rate < 1:
        return f"{rate:.2f}" if rate else "0"
    return f"{rate:.1f}" if rate < 9.95 else f"{rate:,.0f}"


class SilentView:
    """Nothing at all."""

    def update(self, progress: ProgressNews) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class NotesView:
    """Notes, and no progress."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None where standard error is closed, as under some daemons."""
        self._stream = stream

    def update(self, progress: ProgressNews) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(f"batchd: {text}\n")

    def close(self) -> None:
        """Nothing is left to take away."""

    def _write(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()


class PlainView(NotesView):
    """A line every PROGRESS_PLAIN_S, for logs; none for a run that is over before that."""

    def __init__(self, caption: Caption, stream: TextIO, clock: Clock) -> None:
        super().__init__(stream)
        self._caption, self._clock = caption, clock
        self._due = clock() + PROGRESS_PLAIN_S

    def update(self, progress: ProgressNews) -> None:
        """Take in news, and write a line when it is time for one."""
        self._caption.update(progress)
        if (now := self._clock()) >= self._due:
            self._due = now + PROGRESS_PLAIN_S
            self._write(f"{self._caption.title}: {' · '.join(self._caption.words())}\n")


class LiveView(NotesView):
    """One line that is drawn again and again, and gone at the end."""

    def __init__(self, caption: Caption, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415  (only who draws pays for it)
        from rich.live import Live  # noqa: PLC0415

        super().__init__(stream)
        self._caption = caption
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=_DRAW_HZ,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        self._console.show_cursor(show=True)  # Whoever kills this process must not be left without a cursor.

    def update(self, progress: ProgressNews) -> None:
        """Take in news; the next drawing shows it."""
        self._caption.update(progress)

    def note(self, text: str) -> None:
        """Write a line above the one that lives."""
        if self._live.is_started:
            self._console.print(f"batchd: {text}", soft_wrap=True)
        else:
            super().note(text)

    def close(self) -> None:
        """Take the line away."""
        self._live.stop()

    def _draw(self) -> "RenderableType":
        from rich.console import Group  # noqa: PLC0415
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        caption, news = self._caption, self._caption.news
        failed = f"{news.failed:,} failed" if news is not None and news.failed else None
        words = Text(no_wrap=True, overflow="ellipsis")
        for word in caption.words():
            words.append(" · " if words else "", style="dim")
            words.append(word, style="red" if word == failed else "")
        cells: list[RenderableType] = [Text(caption.title, style="bold", no_wrap=True, overflow="ellipsis")]
        if caption.total and news is not None and self._console.width >= _WIDTH_WITH_BAR_MIN:
            cells.append(ProgressBar(total=caption.total, completed=news.done, width=_BAR_COLUMNS))
        line = Table.grid(*[""] * (len(cells) + 1), padding=(0, 1))
        line.add_row(*cells, words)
        if news is None or not news.trouble:
            return line
        return Group(line, Text(news.trouble, style="bold yellow", overflow="fold"))
