"""Values: what may be decoded in bulk, and what costs its own job only."""

import pickle
import threading
from typing import Any

import pytest

from batchd.errors import ResultUnreadable
from batchd.formats.values import are_plain, dump, dump_checked, is_plain, load


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Broken:
    """It pickles, and its pickle raises when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return int, ("no number",)


@pytest.mark.parametrize(
    "value", [0, True, 1.5, "a", b"b", None, (), (1, ("a", None)), 2**200, float("nan"), "\ud800"]
)
def test_plain_values(value: object) -> None:
    assert is_plain(value)


@pytest.mark.parametrize("value", [[1], {}, {1}, (1, [2]), Text("a"), Number(1), 1j, bytearray(b"x"), object(), int])
def test_values_that_could_change_or_run_code_are_not_plain(value: object) -> None:
    assert not is_plain(value)
    assert not are_plain([1, value])


def test_many_values_are_plain_when_each_is() -> None:
    assert are_plain([])
    assert are_plain([1, "a", (1, 2)])
    assert not are_plain([(1, 2), (1, [2])])


def test_what_the_standard_pickle_cannot_name_goes_through_cloudpickle() -> None:
    offset = 3
    assert load(dump(lambda value: value + offset))(4) == 7


def test_what_cannot_be_pickled_raises() -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        dump(threading.Lock())


def test_a_checked_dump_finds_out_what_does_not_come_back() -> None:
    assert dump(Broken())
    with pytest.raises(ResultUnreadable, match="no number"):
        dump_checked(Broken())
    with pytest.raises(ResultUnreadable, match="no number"):
        dump_checked({"deep": [Broken()]})


def test_a_checked_dump_is_an_ordinary_pickle() -> None:
    value = {"a": [1, 2, {"b"}], "c": ValueError("x").args}
    assert pickle.loads(dump_checked(value)) == value
