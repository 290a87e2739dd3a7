"""What is done aside comes back to the loop in order, whatever it raises, and harms nobody else."""

import weakref
from collections.abc import Iterator
from functools import partial
from selectors import DefaultSelector
from threading import Event, Thread

import pytest

from batchd.supervisor.aside import Aside


def until(selector: DefaultSelector, told: list[object], count: int) -> None:
    while len(told) < count:
        for key, _ in selector.select(10):
            key.data()


def test_work_comes_back_in_order_and_an_error_of_one_call_harms_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []

    def fail(raised: Exception | None) -> None:
        told.append(type(raised))
        raise KeyError("a bug")

    with DefaultSelector() as selector:
        aside = Aside(selector)
        aside.do(lambda: 1 // 0, fail)
        aside.do(lambda: told.append("done"), told.append)
        until(selector, told, 3)
    assert sorted(map(str, told)) == ["<class 'ZeroDivisionError'>", "None", "done"]
    assert "KeyError: 'a bug'" in capsys.readouterr().err


def test_what_waits_alone_holds_up_nothing_else() -> None:
    told: list[object] = []
    with DefaultSelector() as selector:
        aside, is_over = Aside(selector), Event()
        aside.do_alone(lambda: is_over.wait(10), told.append)
        aside.do_alone(lambda: 1 // 0, lambda made: told.append(type(made)))
        until(selector, told, 1)
        aside.do(lambda: None, told.append)
        until(selector, told, 2)
        is_over.set()
        until(selector, told, 3)
    assert told == [ZeroDivisionError, None, True]


def test_where_there_are_no_more_threads_what_waits_alone_takes_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    told: list[object] = []
    with DefaultSelector() as selector:
        aside = Aside(selector)
        monkeypatch.setattr(Thread, "start", refuse)
        aside.do_alone(lambda: "made", told.append)
        until(selector, told, 1)
    assert told == ["made"]


def test_between_the_parts_of_long_work_other_work_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []
    with DefaultSelector() as selector:
        aside = Aside(selector)

        def parts() -> Iterator[None]:
            for part in range(3):
                told.append(part)
                if part == 0:
                    aside.do(lambda: told.append("other"))
                yield
            raise KeyError("a bug")

        aside.do_parts(parts())
        until(selector, told, 4)
        aside.do(lambda: 1 // 0)
        aside.do(lambda: None, told.append)
        until(selector, told, 5)
    assert told == [0, "other", 1, 2, None]
    err = capsys.readouterr().err
    assert "KeyError: 'a bug'" in err
    assert "ZeroDivisionError" in err


def test_work_that_was_done_is_not_held_until_there_is_other_work() -> None:
    """It may be a function of many megabytes, which a batch was made with."""
    told: list[object] = []
    is_free = Event()
    with DefaultSelector() as selector:
        work = partial(told.append, "done")
        weakref.finalize(work, is_free.set)
        Aside(selector).do(work, told.append)
        del work
        until(selector, told, 2)
        assert is_free.wait(10)
