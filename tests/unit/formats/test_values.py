"""Values: what may be decoded in bulk, and what costs its own job only."""

import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from batchd.errors import InputUnreadable, ResultUnreadable
from batchd.formats.values import are_plain, dump, dump_checked, is_plain, load, load_input


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


def test_what_a_main_module_defines_goes_by_value() -> None:
    """Another process has another `__main__`: nothing of it can be found there by its name."""
    program = (
        "import sys\nfrom batchd.formats.values import dump\nclass Mine: x = 5\nsys.stdout.buffer.write(dump(Mine()))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert load(ran.stdout).x == 5


def test_a_class_of_this_main_module_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    made = type("Mine", (), {"x": 5, "__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Mine", made, raising=False)
    payload = dump(made())
    monkeypatch.delattr(sys.modules["__main__"], "Mine")
    assert load(payload).x == 5


def test_an_input_that_does_not_read_back_says_so_and_one_that_was_never_sent_is_itself() -> None:
    assert load_input(dump(5)) == 5
    with pytest.raises(InputUnreadable, match="could not unpickle the input: ValueError"):
        load_input(pickle.dumps(Broken()))
    with pytest.raises(pickle.PicklingError, match="never sent"):
        load_input(pickle.dumps(NeverSent()))


class NeverSent:
    """Reads back as the error with which it was not pickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return refuse, ("never sent",)


def refuse(why: str) -> None:
    raise pickle.PicklingError(why)
