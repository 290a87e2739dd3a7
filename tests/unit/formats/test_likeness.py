"""Likenesses show what was pickled, and run nothing of it."""

import os
import pickle
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from batchd.errors import FormatError
from batchd.formats.likeness import likeness
from batchd.formats.values import dump


@dataclass
class Row:
    id: int
    tags: Any = None


class Colour(Enum):
    RED = 1


RED = "Colour(1)" if Colour.RED.__reduce_ex__(5)[0] is Colour else "getattr(Colour, 'RED')"
"""As this Python pickles it: by its value, or from 3.11 to 3.11.3 by its name."""


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, "two"


class Listed(list[int]):
    pass


class Maker:
    """An object that makes another one when it is read."""

    def __call__(self, *parts: int) -> tuple[int, ...]:
        return parts


class Made:
    def __reduce__(self) -> Any:
        return Maker(), (1, 2)


class Explosive:
    """Leaves word wherever its own code runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Touchy(Row):
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("its code ran")

    __repr__ = __hash__ = __eq__ = __setstate__  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Row(3, {"a"}), "Row(id=3, tags={'a'})"),
        ({"rows": [Row(1), Row(2)]}, "{'rows': [Row(id=1, tags=None), Row(id=2, tags=None)]}"),
        (Colour.RED, RED),
        (Slotted(), "Slotted(a=1, b='two')"),
        (Listed([1, 2]), "Listed([1, 2])"),
        (Listed([1]), "Listed([1])"),
        (Made(), "_Likeness(Maker(), 1, 2)"),
        ({Colour.RED: 1}, f"{{{RED}: 1}}"),
        (Counter("aab"), "Counter({'a': 2, 'b': 1})"),
        (defaultdict(int, a=1), "defaultdict(<class 'int'>, [('a', 1)])"),
        (Touchy(1), "Touchy(id=1, tags=None)"),
        ((len, Row), "(len, Row)"),
        (lambda: 3, "<function>"),
        (date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
        (np.zeros((2, 3)), "ndarray(dtype='f8', shape=(2, 3))"),
    ],
)
def test_what_was_pickled_is_shown(value: Any, text: str) -> None:
    assert repr(likeness(dump(value))) == text


def test_what_is_pickled_by_value_is_shown() -> None:
    class Thing:
        def __init__(self) -> None:
            self.size = 3

    assert repr(likeness(cloudpickle.dumps([Thing()], 5))) == "[Thing(size=3)]"


def test_what_holds_itself_has_an_end() -> None:
    row = Row(1)
    row.tags = row
    assert repr(likeness(dump(row))) == "Row(id=1, tags=...)"


def test_what_only_a_pickle_by_hand_can_say_is_shown() -> None:
    """Members put into what is no set, and names for objects that are kept elsewhere."""
    made = b"\x80\x05" + pickle.GLOBAL + b"shop\nBasket\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    filled = made + pickle.MARK + pickle.BININT1 + b"\7" + pickle.ADDITEMS + pickle.STOP
    assert repr(likeness(filled)) == "Basket([7])"
    assert likeness(pickle.PERSID + b"far away\n" + pickle.STOP) == "<far away>"


def test_nothing_of_it_runs(tmp_path: Path) -> None:
    payload = dump([Explosive(tmp_path / "ran")])
    assert repr(likeness(payload)) == f"[mkdir('{tmp_path}/ran')]"
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # As it would have been.
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("payload", [b"", b"no pickle", dump([1])[:-1], dump("x" * (17 << 20))])
def test_what_has_no_likeness_is_an_error(payload: bytes) -> None:
    with pytest.raises(FormatError):
        likeness(payload)
