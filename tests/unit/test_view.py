"""What a person sees during a run, on a terminal and elsewhere, with a clock that the test moves."""

import io
import re
import subprocess
import sys

import pytest

from batchd.core.job import JobState
from batchd.settings import PROGRESS_PLAIN_S
from batchd.view import Caption, LiveView, NotesView, PlainView, ProgressNews, SilentView, View, make_view
from tests.commands import Terminal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def news(done: int, *, size: int = 100, is_sealed: bool = True, failed: int = 0, trouble: str = "") -> ProgressNews:
    counts = {JobState.FAILED: failed, JobState.SUCCEEDED: done - failed}
    return ProgressNews(
        "b", size=size, is_sealed=is_sealed, done=done, counts=counts, workers=2, busy=1, trouble=trouble
    )


def view(stream: io.StringIO, clock: Clock, *, quiet: bool = False, as_json: bool = False) -> View:
    return make_view(quiet=quiet, as_json=as_json, title="nightly", total=None, stream=stream, clock=clock)


# --- News ------------------------------------------------------------------------------------------------------


def test_news_are_built_from_what_the_supervisor_sends() -> None:
    found = ProgressNews.from_fields(
        {
            "batch": "abc",
            "size": 10,
            "is_sealed": True,
            "done": 9,
            "prefix": 4,
            "counts": {"3": 4, 4: 3, "5": 2},
            "generation": 1,
            "state": "sealed",
            "reason": "",
            "workers": 2,
            "busy": 1,
            "trouble": "disk full",
            "usage": {"busy_s": 1.5},
            "checkpoint": "of a later version",
        }
    )
    assert found.counts == {JobState.SUCCEEDED: 4, JobState.FAILED: 3, JobState.QUARANTINED: 2}
    assert (found.failed, found.done, found.trouble, found.usage) == (5, 9, "disk full", {"busy_s": 1.5})


# --- The words -------------------------------------------------------------------------------------------------


def test_nothing_is_claimed_before_the_first_news() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    clock.now += 3
    assert caption.words() == ["starting", "3.0 s"]


def test_a_sealed_batch_has_a_share_a_rate_and_an_end() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    for done in (0, 10, 20, 30, 40):
        caption.update(news(done, failed=done // 10))
        clock.now += 1
    assert caption.words() == ["40 of 100 done (40%)", "4 failed", "8.0/s", "1/2 busy", "5.0 s", "~7.5 s left"]


def test_an_open_batch_has_no_end_unless_its_input_was_counted() -> None:
    clock = Clock()
    uncounted, counted = Caption("a", None, clock), Caption("b", 1000, clock)
    for done in (0, 10, 20, 30):
        for caption in (uncounted, counted):
            caption.update(news(done, is_sealed=False))
        clock.now += 1
    assert uncounted.words() == ["30 of 100+ done", "7.5/s", "1/2 busy", "4.0 s"]
    assert counted.words() == ["30 of 1,000 done (3%)", "7.5/s", "1/2 busy", "4.0 s", "~2m09s left"]
    counted.update(news(30, size=1001, is_sealed=False))
    assert counted.total is None


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    for second in range(60):
        caption.update(news(done=min(10 * second, 300), size=1000))
        clock.now += 1
    assert "0/s" in caption.words()
    assert not any("left" in word for word in caption.words())


def test_jobs_done_by_an_earlier_run_are_not_speed() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    caption.update(news(50))
    clock.now += 4
    caption.update(news(54))
    assert "1.0/s" in caption.words()


def test_a_retry_starts_the_rate_again() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    caption.update(news(100))
    clock.now += 1
    caption.update(news(90))
    assert not any("/s" in word for word in caption.words())


def test_updates_by_the_thousand_keep_few_samples() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    for step in range(50_000):
        clock.now += 0.001
        caption.update(news(done=step, size=50_000))
    assert len(caption._samples) < 60
    assert "1,000/s" in caption.words()


def test_nothing_is_said_to_remain_while_the_batch_is_held_up() -> None:
    clock = Clock()
    caption = Caption("nightly", None, clock)
    for done in (0, 10, 20, 30):
        clock.now += 1
        caption.update(news(done, trouble="the disk is full"))
    assert not any("left" in word for word in caption.words())
    assert "paused" in caption.words()


# --- Which view ------------------------------------------------------------------------------------------------


def test_the_view_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    assert isinstance(view(Terminal(), clock, quiet=True), SilentView)
    assert type(view(Terminal(), clock, as_json=True)) is NotesView
    assert isinstance(view(io.StringIO(), clock), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view(Terminal(), clock), PlainView)
    monkeypatch.delenv("TERM")
    assert isinstance(view(Terminal(), clock), PlainView)


def test_quiet_says_nothing_and_json_says_notes_only() -> None:
    quiet, noted = Terminal(), Terminal()
    clock = Clock()
    for stream, shown in ((quiet, view(quiet, clock, quiet=True)), (noted, view(noted, clock, as_json=True))):
        shown.update(news(1))
        clock.now += 2 * PROGRESS_PLAIN_S
        shown.update(news(2))
        shown.note("the supervisor died")
        shown.close()
        assert stream.getvalue() == ("" if stream is quiet else "batchd: the supervisor died\n")


# --- Plain lines -----------------------------------------------------------------------------------------------


def test_a_short_run_has_no_plain_line() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = view(stream, clock)
    shown.update(news(1))
    clock.now += PROGRESS_PLAIN_S - 0.1
    shown.update(news(100))
    shown.close()
    assert stream.getvalue() == ""


def test_a_plain_line_comes_once_an_interval() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = view(stream, clock)
    for _ in range(50):
        clock.now += 0.5
        shown.update(news(10))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "nightly: 10 of 100 done (10%) · 0/s · 1/2 busy · 10 s"


# --- The live line ---------------------------------------------------------------------------------------------


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def drawn(told: ProgressNews) -> tuple[LiveView, Terminal]:
    """Return a view that has drawn the news, and where."""
    stream = Terminal()
    shown = view(stream, Clock())
    assert isinstance(shown, LiveView)
    shown.update(told)
    shown._live.refresh()
    return shown, stream


@pytest.mark.usefixtures("wide")
def test_trouble_is_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    trouble = f"disk full: paused until {'/a-long-path' * 6} has 33M free"
    shown, stream = drawn(news(40, trouble=trouble))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    shown.close()
    assert "".join(trouble.split()) in "".join(text.split())


@pytest.mark.usefixtures("wide")
def test_the_live_line_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown, stream = drawn(news(40, failed=3, trouble="the disk is full"))
    text = stream.getvalue()
    shown.note("the supervisor died; started another (pid 17)")
    shown.close()
    shown.close()
    assert "nightly" in text
    assert "40 of 100 done (40%)" in text
    assert "3 failed" in text
    assert "the disk is full" in text
    assert "━" in text
    assert "\x1b[31m" not in text
    assert "batchd: the supervisor died; started another (pid 17)\n" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # The line is erased.


@pytest.mark.usefixtures("wide")
def test_a_note_behind_the_end_is_a_plain_line() -> None:
    stream = Terminal()
    shown = view(stream, Clock())
    shown.close()
    shown.note("results so far are in x.partial")
    assert stream.getvalue().endswith("batchd: results so far are in x.partial\n")


@pytest.mark.usefixtures("wide")
def test_a_title_is_never_markup() -> None:
    stream = Terminal()
    shown = make_view(quiet=False, as_json=False, title="[bold]x[/nonsense]", total=3, stream=stream)
    shown.update(news(1))
    shown.note("[red]a note[/red]")
    shown.close()
    assert "[bold]x[/nonsense]" in stream.getvalue()
    assert "batchd: [red]a note[/red]" in stream.getvalue()


@pytest.mark.usefixtures("wide")
def test_a_narrow_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    shown = view(stream, Clock())
    shown.update(news(40))
    shown.close()
    assert "40 of 100 done" in stream.getvalue()
    assert "━" not in stream.getvalue()


def test_rich_is_loaded_only_to_draw() -> None:
    program = (
        "import sys; from batchd.view import make_view\n"
        "make_view(quiet=False, as_json=False, title='x', total=None)\n"
        "print('rich' in sys.modules, 'lmdb' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
