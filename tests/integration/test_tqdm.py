"""Progress of a map through the real tqdm, and through a function."""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.core.job import JobState
from batchd.errors import UsageError
from batchd.meter import make_meter
from batchd.view import ProgressNews
from tests.contract.calls import Door, reciprocal, square

tqdm = pytest.importorskip("tqdm", reason="tqdm is not installed: pip install tqdm")


class Screen(io.StringIO):
    """What a terminal shows of what is written to it: lines, where a carriage return begins the line again."""

    def lines(self) -> list[str]:
        shown = [line.rpartition("\r")[2].rstrip() for line in self.getvalue().split("\n")]
        return [line for line in shown if line]

    def drawn(self) -> list[str]:
        """Return all that was drawn, also what was drawn over."""
        return [each for each in self.getvalue().replace("\n", "\r").split("\r") if each.strip()]


@pytest.fixture
def screen() -> Screen:
    return Screen()


def bar_into(screen: Screen, **options: Any) -> Callable[..., Any]:
    return partial(tqdm.tqdm, file=screen, mininterval=0, **options)


def news(done: int, size: int = 10, **fields: Any) -> ProgressNews:
    return ProgressNews("b", size=size, done=done, **fields)


# --- A map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [tqdm.tqdm, "tqdm"], ids=["tqdm.tqdm", "by name"])
def test_a_bar_goes_from_nothing_to_all(progress: Any, screen: Screen) -> None:
    with redirect_stderr(screen):
        assert list(batchd.map(square, range(300), workers=2, progress=progress)) == [x * x for x in range(300)]
    assert "square: 0job" in screen.drawn()[0]
    assert "square: 100%" in screen.drawn()[-1]
    assert "300/300" in screen.drawn()[-1]


def test_the_total_is_shown_once_the_input_has_ended(screen: Screen) -> None:
    seen: list[str] = []

    def items() -> Iterator[int]:
        for x in range(6_000):
            if x == 5_999:
                seen.append(screen.drawn()[-1])
            yield x

    results = batchd.map(square, items(), workers=1, buffersize=100, progress=bar_into(screen))
    assert sum(1 for _ in results) == 6_000
    assert "%" not in seen[0]
    assert "/6000" not in seen[0]
    assert "100%" in screen.drawn()[-1]
    assert "6000/6000" in screen.drawn()[-1]


def test_failures_stand_behind_the_bar(screen: Screen) -> None:
    found = list(batchd.map(reciprocal, [1, 0, 2, 0], workers=1, on_error="skip", progress=bar_into(screen)))
    assert found == [1.0, 0.5]
    assert "failed=2" in screen.drawn()[-1]


def test_a_bar_of_ones_own_is_moved_and_left_open(screen: Screen) -> None:
    with tqdm.tqdm(total=20, file=screen, mininterval=0, desc="all of it") as bar:
        for part in (range(10), range(10, 20)):
            assert len(list(batchd.map(square, part, workers=1, progress=bar))) == 10
            assert not bar.disable
        assert (bar.n, bar.total) == (20, 20)
    assert "all of it: 100%" in screen.lines()[-1]


def test_what_was_done_before_does_not_count_as_speed(screen: Screen, tmp_path: Path) -> None:
    bars: list[Any] = []

    def make(self: Any, **options: Any) -> None:
        tqdm.tqdm.__init__(self, file=screen, mininterval=0, **options)
        bars.append(self)

    watched = type("watched", (tqdm.tqdm,), {"__init__": make})

    for size in (50, 60):
        made = batchd.map(square, range(size), workers=1, journal=tmp_path / "journal", name="n", progress=watched)
        assert len(list(made)) == size
    assert [bar.n for bar in bars] == [50, 60]
    assert bars[1].initial >= 50
    lines = screen.lines()
    assert lines.index("batchd: continuing n: 50 of 50 jobs were already done") < len(lines) - 1
    assert "60/60" in lines[-1]


# --- The parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_own_file", [False, True])
def test_notes_stand_above_the_bar(is_own_file: bool, screen: Screen) -> None:
    options = {"file": screen} if is_own_file else {}
    with redirect_stderr(Screen() if is_own_file else screen):
        view = make_meter(partial(tqdm.tqdm, mininterval=0, **options), "work")
        view.update(news(3))
        view.note("the supervisor died; started another")
        view.update(news(10, is_sealed=True))
        view.close()
    *above, last = screen.lines()
    assert above == ["batchd: the supervisor died; started another"]
    assert "10/10" in last


def test_a_bar_that_is_switched_off_says_nothing_but_notes(screen: Screen) -> None:
    with redirect_stderr(screen):
        view = make_meter(partial(tqdm.tqdm, disable=True), "work")
        view.update(news(3, counts={JobState.FAILED: 1}))
        view.note("still here")
        view.update(news(10, is_sealed=True))
        view.close()
    assert screen.getvalue() == "batchd: still here\n"


def test_what_the_user_says_of_the_bar_holds(screen: Screen) -> None:
    view = make_meter(bar_into(screen, desc="mine", unit="file"), "work")
    view.update(news(3))
    view.close()
    assert "mine: 3file" in screen.lines()[-1]


def test_a_batch_that_goes_back_takes_the_bar_with_it(screen: Screen) -> None:
    view = make_meter(bar_into(screen), "work")
    for done in (4, 9, 2):
        view.update(news(done, is_sealed=True))
    view.close()
    assert "2/10" in screen.lines()[-1]


def test_a_function_is_told_each_change_once(tmp_path: Path) -> None:
    """The first job waits until something was told."""
    told: list[dict[str, Any]] = []
    door = Door(tmp_path)

    def tell(news: dict[str, Any]) -> None:
        told.append(news)
        door.open()

    found = batchd.map(door.enter_or_fail, [1, 0, 2], workers=1, on_error="skip", progress=tell)
    assert list(found) == [1, 2]
    assert all(before != after for before, after in pairwise(told))
    assert told[0]["done"] == 0
    assert told[-1] == {"done": 3, "size": 3, "failed": 1, "state": "finished"}


@pytest.mark.parametrize("progress", [False, None, 0, ""])
def test_nothing_is_shown_when_nothing_is_asked_for(progress: Any, screen: Screen) -> None:
    with redirect_stderr(screen):
        assert list(batchd.map(square, range(3), workers=1, progress=progress)) == [0, 1, 4]
    assert screen.getvalue() == ""


@pytest.mark.parametrize("progress", ["bar", 3.5, [1]])
def test_what_is_none_of_these_is_refused(progress: Any) -> None:
    with pytest.raises(UsageError, match=r'it is "auto", True, False, "tqdm", tqdm.tqdm or a function'):
        make_meter(progress, "work")
