"""The lead: a write that is quick keeps it, one that waits for the disk loses it, and nobody leads beside another."""

from collections.abc import Callable
from threading import Event, get_ident

import pytest

from batchd.supervisor.lead import Lead

WAIT_S = 30.0


class Loop:
    """A loop whose turns are given, each as what is done in it; returns of the thread that led are noted."""

    def __init__(self, *turns: Callable[["Loop"], None], patience_s: float = 0.001) -> None:
        self.lead = Lead(patience_s)
        self.turns = list(turns)
        self.led_by: list[int] = []
        self.later_turn = Event()

    def serve(self) -> bool:
        while self.turns:
            turn = self.turns.pop(0)
            self.led_by.append(get_ident())
            turn(self)
            if not self.lead.is_mine:
                return False
        return True

    def run(self) -> list[int]:
        """Return who led each turn, numbered from 0 in order of appearance."""
        self.lead.run(self.serve)
        seen = list(dict.fromkeys(self.led_by))
        return [seen.index(thread) for thread in self.led_by]


def quick(loop: Loop) -> None:
    """A write that is done at once."""
    assert loop.lead.write(lambda: "made") == "made"
    assert loop.lead.is_mine


def slow(loop: Loop) -> None:
    """A write that is not done before another thread has begun the next turn."""
    loop.later_turn.clear()
    assert loop.lead.write(lambda: loop.later_turn.wait(WAIT_S))
    assert not loop.lead.is_mine


def begun(turn: Callable[[Loop], None]) -> Callable[[Loop], None]:
    """A turn that lets the write before it end."""

    def do(loop: Loop) -> None:
        loop.later_turn.set()
        turn(loop)

    return do


def nothing(_: Loop) -> None:
    """A turn without a write."""


def fails(_: Loop) -> None:
    """A turn with a bug."""
    raise ValueError("a bug")


def test_quick_writes_keep_the_lead() -> None:
    assert Loop(*[quick] * 200, patience_s=3_600.0).run() == [0] * 200


def test_a_write_that_takes_long_loses_the_lead_and_the_other_goes_on() -> None:
    assert Loop(nothing, slow, begun(nothing), nothing).run() == [0, 0, 1, 1]


def test_the_lead_comes_back_when_the_other_is_held_up() -> None:
    assert Loop(slow, begun(slow), begun(slow), begun(nothing)).run() == [0, 1, 0, 1]


@pytest.mark.parametrize("turns", [(fails,), (slow, begun(fails))])
def test_a_bug_is_raised_where_the_loop_was_started_whoever_led(turns: tuple[Callable[[Loop], None], ...]) -> None:
    with pytest.raises(ValueError, match="a bug"):
        Loop(*turns).run()


def test_what_a_write_raises_ends_the_loop() -> None:
    def write(loop: Loop) -> None:
        loop.lead.write(lambda: fails(loop))

    with pytest.raises(ValueError, match="a bug"):
        Loop(write).run()
