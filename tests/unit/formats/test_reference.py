"""References: what names a file can be read back, and is refused when it is no reference."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pickle import PickleBuffer
from typing import Any

import pytest

from batchd.core.job import JobState
from batchd.errors import FormatError
from batchd.formats.buffers import dump_apart
from batchd.formats.reference import Buffer, Filed, Part, Reference, whole
from batchd.formats.segment import (
    INPUT_STATE,
    Encoding,
    input_blocks,
    nbytes_of,
    pack,
    pack_items,
    pack_pickled,
    pack_plain,
    pack_vector,
    pickled_blocks,
    references_in,
    runs_of_plain,
    unpack,
)
from batchd.formats.values import dump, dump_kept_checked, load
from batchd.settings import VALUE_BYTES_MAX, VALUE_FILE_BYTES_MIN

MADE = Reference(1 << 63, 7, 0xFFFFFFFF, (Part(5, True), Part(1 << 20, False), Part(0, True)))
LARGE = "x" * VALUE_FILE_BYTES_MIN


def test_a_reference_comes_back_as_it_went() -> None:
    unchecked = replace(MADE, crc=None)
    assert [Reference.decode(made.encode()) for made in (MADE, unchecked)] == [MADE, unchecked]
    assert MADE.nbytes == 5 + (1 << 20)
    assert MADE.name == "8000000000000000-7"


@pytest.mark.parametrize("nbytes", [0, 8, 15, 16, 23, 25])
def test_what_is_too_short_or_uneven_is_no_reference(nbytes: int) -> None:
    with pytest.raises(FormatError, match="a reference of"):
        Reference.decode(bytes(nbytes))


def test_a_reference_to_more_than_a_value_may_take_is_refused() -> None:
    for parts in ((Part(VALUE_BYTES_MAX + 1, False),), (Part(VALUE_BYTES_MAX, True), Part(1, True))):
        with pytest.raises(FormatError, match="more than a value may take"):
            Reference.decode(replace(MADE, parts=parts).encode())


def test_a_block_holds_one_reference_and_stands_among_others() -> None:
    runs = [block for _, block in pickled_blocks([b"a", b"b", MADE, MADE, b"c"])]
    blocks = list(unpack(b"".join(runs)))
    assert [(block.encoding, block.count) for block in blocks] == [
        (Encoding.ITEMS, 2),
        (Encoding.FILED, 1),
        (Encoding.FILED, 1),
        (Encoding.ITEMS, 1),
    ]
    assert list(references_in(b"".join(runs))) == [MADE, MADE]
    assert blocks[1].nbytes == MADE.nbytes
    assert nbytes_of(runs[1]) == len(runs[1]) + MADE.nbytes
    assert nbytes_of(runs[0]) == len(runs[0])


def test_a_file_is_not_read_by_who_did_not_ask_for_it() -> None:
    (block,) = unpack(pack_pickled(3, JobState.SUCCEEDED, [MADE]))
    with pytest.raises(FormatError, match="is not read here"):
        block.values()
    (block,) = unpack(pack(3, 2, JobState.SUCCEEDED, Encoding.FILED, MADE.encode()))
    with pytest.raises(FormatError, match="one reference, and 2 jobs"):
        block.reference()


def test_a_value_is_loaded_without_copying_what_it_holds() -> None:
    value = [PickleBuffer(bytearray(b"w" * 100_000)), PickleBuffer(b"r" * 100_000), "head"]
    head, buffers = dump_apart(value)
    parts: list[Buffer] = [head, bytearray(buffers[0]), bytes(buffers[1])]
    filed = Filed(MADE, lambda _: parts)
    assert len(filed) == MADE.nbytes
    writable, fixed, text = filed.load()
    assert writable is parts[1]
    assert fixed is parts[2]
    assert text == "head"
    assert pickle.loads(whole(filed)) == [b"w" * 100_000, b"r" * 100_000, "head"]
    assert whole(filed) == dump(value)
    assert load(filed)[2] == load(dump("head"))


def test_large_plain_values_are_kept_and_small_ones_are_not() -> None:
    kept: dict[str, bytes] = {}

    def keep(parts: object) -> Reference | None:
        assert isinstance(parts, list)
        data = b"".join(parts)
        if len(data) < VALUE_FILE_BYTES_MIN:
            return None
        made = Reference(1, len(kept), 0, (Part(len(data), True),))
        kept[made.name] = data
        return made

    items = ["small", b"x" * VALUE_FILE_BYTES_MIN, "y" * VALUE_FILE_BYTES_MIN, ("small", 1)]
    record = b"".join(block for _, block in input_blocks(items, keep))
    blocks = list(unpack(record, lambda reference: [kept[reference.name]]))
    assert [value for block in blocks for value in block.values()] == items
    assert [block.encoding for block in blocks].count(Encoding.FILED) == 2 == len(kept)
    assert len(record) < 1_000


def test_pickles_without_references_are_packed_as_ever() -> None:
    assert pack_pickled(0, INPUT_STATE, [b"a", b"b"]) == pack_items(0, INPUT_STATE, [b"a", b"b"])


def test_only_what_may_be_large_is_encoded_by_itself() -> None:
    asked: list[int] = []

    def keep(parts: Sequence[Buffer]) -> None:
        asked.append(sum(map(len, parts)))

    small = pack_vector(0, INPUT_STATE, ["é" * (VALUE_FILE_BYTES_MIN // 4)])
    assert pack_plain(0, INPUT_STATE, ["é" * (VALUE_FILE_BYTES_MIN // 4)], keep) == small
    assert asked == [len(dump("é" * (VALUE_FILE_BYTES_MIN // 4)))]  # UTF-8 may take four times as much.
    for value in ("é" * 1_000, "x" * (VALUE_FILE_BYTES_MIN - 1), 1, (1, "x"), None):
        pack_plain(0, INPUT_STATE, [value], keep)
    assert len(asked) == 1
    pack_plain(0, INPUT_STATE, [tuple(range(VALUE_FILE_BYTES_MIN // 8))], keep)
    assert len(asked) == 2
    assert dump_kept_checked([1], keep) == dump([1])
    assert dump_kept_checked([LARGE], keep) == dump([LARGE])
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        ([LARGE], [1]),
        ([LARGE, LARGE], [1, 1]),
        ([1, 2, LARGE, 3, (LARGE,), None], [2, 1, 1, 1, 1]),
        (["a", "b"], [2]),
        ([1, 2.0, None, True], [4]),
        ([LARGE, *range(40)], [1, 40]),
        ([LARGE] * 40, [1] * 40),
        ([*range(20), LARGE, *range(20)], [20, 1, 20]),
        ([*range(10), LARGE, *range(30)], [41]),
        ([], []),
    ],
)
def test_large_values_stand_alone_among_few(values: list[Any], lengths: list[int]) -> None:
    runs = list(runs_of_plain(values))
    assert [len(run) for run in runs] == lengths
    assert [value for run in runs for value in run] == values
