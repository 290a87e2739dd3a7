"""Functions of an executor: defined before the first call that names them, and forgotten with the last."""

from functools import partial
from threading import Lock
from types import SimpleNamespace
from typing import Any

from batchd.packing import Calling, Packer


def calling(fn: Any, *args: Any) -> Calling:
    return Calling(SimpleNamespace(mark=b""), fn, args, {})


class Desk:
    """A packer, and what it defined and refused."""

    def __init__(self) -> None:
        self.packer = Packer()
        self.defined: dict[bytes, bytes] = {}
        self.refused: list[Any] = []

    def pack(self, *calls: Calling) -> list[bytes]:
        """Return the marks by which functions are counted."""
        sent, _ = self.packer.pack(calls, self._define, lambda future, *_: self.refused.append(future))
        return [future.mark for future in sent]

    def _define(self, mark: bytes, payload: bytes) -> None:
        assert mark not in self.defined
        self.defined[mark] = payload


def test_a_function_is_forgotten_when_no_call_names_it_and_then_defined_again() -> None:
    desk, double, square = Desk(), partial(pow, 2), partial(pow, exp=2)
    first, second, third = desk.pack(calling(double, 3), calling(square, 3), calling(double, 4))
    assert first == third != second
    assert desk.packer.nbytes_defined == sum(map(len, desk.defined.values()))
    desk.packer.over(first)
    desk.packer.over(second)
    assert desk.packer.forget_unused() == [second], "one call is not over"
    del desk.defined[second]
    assert desk.pack(calling(double, 5), calling(square, 5)) == [first, second]
    assert second in desk.defined
    for mark in (first, first, second):
        desk.packer.over(mark)
    assert sorted(desk.packer.forget_unused()) == sorted([first, second])
    assert desk.packer.forget_unused() == []


def test_what_workers_import_by_name_stays() -> None:
    desk = Desk()
    assert desk.pack(calling(abs, 3), calling(abs, 4)) == [b"", b""]
    assert desk.packer.forget_unused() == []
    assert desk.pack(calling(abs, 5)) == [b""]
    assert len(desk.defined) == 1


def test_a_function_whose_only_call_does_not_pickle_is_forgotten() -> None:
    desk = Desk()
    assert desk.pack(calling(partial(pow, 2), Lock())) == []
    assert len(desk.refused) == 1
    assert desk.packer.forget_unused() == list(desk.defined)
