"""Pickles of large buffers are pickles like any other, whatever stands around the buffers."""

import pickle
from pickle import PickleBuffer
from typing import Any

import pytest

from batchd.formats.buffers import dump_apart, join
from batchd.formats.values import dump

LARGE = 100_000


class Holder:
    """An object with a buffer in it, as arrays are."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, _: Any) -> tuple[Any, tuple[PickleBuffer]]:
        return Holder, (PickleBuffer(self.data),)


@pytest.mark.parametrize(
    "value",
    [
        [bytearray(b"\x97" * LARGE)],
        [b"\x98" * LARGE],
        [bytearray(LARGE), "\x97\x98", b"\x97", 0x97, bytearray(b"\x97" * LARGE), 151],
        [bytearray(3), bytearray(LARGE), b"", bytearray(0)],
        ["head" * 50_000, bytearray(LARGE), {"a" * 70_000: 1}],  # More than one frame of the pickle's own.
        ["head" * 500_000, bytearray(LARGE)],  # Too long to be taken apart.
    ],
    ids=["writable", "read-only", "opcodes in data", "small ones", "many frames", "long head"],
)
def test_a_buffer_comes_back_as_it_went(value: list[Any]) -> None:
    wrapped = [PickleBuffer(each) if isinstance(each, bytes | bytearray) else each for each in value]
    payload = join(wrapped, *dump_apart(wrapped))
    found = pickle.loads(payload)
    assert found == value
    assert list(map(type, found)) == list(map(type, value))
    assert dump(wrapped) == payload


def test_what_is_told_twice_is_one_object() -> None:
    holder = Holder(bytearray(b"x" * LARGE))
    once, again, rest = pickle.loads(join(None, *dump_apart([holder, holder, ["y"]])))
    assert once is again
    assert (once.data, rest) == (holder.data, ["y"])


def test_the_name_of_a_module_in_data_is_no_reference() -> None:
    data = bytearray(b"__main__" * LARGE)
    assert pickle.loads(dump([PickleBuffer(data)])) == [data]
