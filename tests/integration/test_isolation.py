"""Work in a child that may die, get stuck or raise: each is a sentence, and the child is gone."""

import os
import signal

import pytest

from batchd.edge.isolation import Isolated, Tell
from batchd.errors import JournalError


def test_a_child_that_dies_is_a_sentence() -> None:
    def die(tell: Tell) -> None:
        tell({"said": 1})
        os.kill(os.getpid(), signal.SIGBUS)

    with Isolated(die) as child:
        assert list(child.told()) == [{"said": 1}]
        assert child.death == "it was killed by SIGBUS"


def test_a_child_that_is_stuck_is_ended() -> None:
    with Isolated(lambda _: signal.pause()) as child:
        assert list(child.told(silence_s=0.05)) == []
        assert child.death == "it was stuck for 0 s"


def test_a_child_that_raises_says_what() -> None:
    def fail(_: Tell) -> None:
        raise JournalError("not today")

    with Isolated(fail) as child:
        assert list(child.told()) == [{"error": "not today", "kind": "JournalError"}]
        assert child.death == ""
    with Isolated(lambda tell: tell({"bad": object()})) as child:
        assert next(child.told())["kind"] == ""


def test_a_child_that_is_not_waited_for_does_not_stay() -> None:
    with Isolated(lambda _: signal.pause()) as child:
        pid = child._pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_how_a_child_ended_is_not_known_where_children_are_ignored() -> None:
    """As under a shell's `trap '' CHLD`, which every program started from there inherits."""

    def die(tell: Tell) -> None:
        tell({"said": 1})
        os.kill(os.getpid(), signal.SIGBUS)

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Isolated(die) as child:
            assert list(child.told()) == [{"said": 1}]
            assert (child.death, child.is_deadly) == ("", False)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("number", "is_deadly"), [(signal.SIGABRT, True), (signal.SIGSEGV, True), (signal.SIGKILL, False)]
)
def test_what_others_do_to_a_child_is_no_damage(number: int, is_deadly: bool) -> None:
    with Isolated(lambda _: os.kill(os.getpid(), number)) as child:
        assert list(child.told()) == []
        assert child.is_deadly == is_deadly
