"""Blocks: what is packed is read back, and bytes that were changed are refused with the place and the reason."""

import pickle
import struct
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from batchd.errors import FormatError
from batchd.formats import segment
from batchd.formats.reference import Part, Reference
from batchd.formats.segment import (
    HEADER_BYTES,
    INPUT_STATE,
    Block,
    Encoding,
    header_of,
    input_blocks,
    pack,
    pack_items,
    pack_vector,
    pickled_blocks,
    unpack,
)
from batchd.settings import LEASE_JOBS_MAX, RECORD_BYTES_MAX


def test_a_vector_block_says_what_it_holds() -> None:
    (block,) = unpack(pack_vector(5, 3, [1, "two", None]))
    assert (block.first, block.count, block.state, block.encoding) == (5, 3, 3, Encoding.VECTOR)
    assert block.values() == [1, "two", None]


def test_an_items_block_keeps_each_pickle_apart() -> None:
    payloads = [pickle.dumps([1]), b"", pickle.dumps({"a": 2})]
    (block,) = unpack(pack_items(7, 4, payloads))
    assert (block.first, block.count, block.encoding) == (7, 3, Encoding.ITEMS)
    assert [bytes(payload) for payload in block.payloads()] == payloads


def test_nothing_but_none_takes_no_body() -> None:
    record = pack_vector(0, 3, [None] * 1_000)
    assert len(record) == HEADER_BYTES
    (block,) = unpack(record)
    assert (block.encoding, block.values()) == (Encoding.EMPTY, [None] * 1_000)


@pytest.mark.parametrize("numbers", [range(5), range(7, -9, -3), range(-(2**63), 2**63 - 1, 2**62), range(4, 5)])
def test_a_range_takes_two_numbers(numbers: range) -> None:
    record = pack_vector(0, INPUT_STATE, numbers)
    assert len(record) == HEADER_BYTES + 16
    (block,) = unpack(record)
    assert (block.encoding, block.count) == (Encoding.RANGE, len(numbers))
    assert block.plain() == numbers
    assert block.values() == list(numbers)


@pytest.mark.parametrize("numbers", [range(2**63, 2**63 + 2), range(0, 2**64, 2**63)])
def test_a_range_of_large_numbers_is_written_out(numbers: range) -> None:
    (block,) = unpack(pack_vector(0, INPUT_STATE, numbers))
    assert (block.encoding, block.values()) == (Encoding.VECTOR, list(numbers))


@pytest.mark.parametrize("body", [b"", bytes(15), bytes(16), bytes(17)])
def test_a_range_that_is_none_is_refused(body: bytes) -> None:
    (block,) = unpack(with_right_checksum(Encoding.RANGE, 2, body))
    with pytest.raises(FormatError, match=r"block of jobs 9\.\."):
        block.plain()


def test_blocks_follow_each_other_in_a_record() -> None:
    record = pack_vector(0, 3, [1]) + pack_items(1, 4, [b"x"]) + pack(2, 9, 6, Encoding.EMPTY)
    assert [(block.first, block.count, block.state) for block in unpack(record)] == [(0, 1, 3), (1, 1, 4), (2, 9, 6)]
    assert list(unpack(b"")) == []


def test_the_header_alone_tells_the_way_to_the_next_block() -> None:
    first = pack_vector(3, 3, ["a", "b"])
    record = first + pack_vector(5, 4, ["c"])
    assert header_of(record) == (3, 2, 3, len(first))
    assert header_of(record, len(first))[:3] == (5, 1, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record[: HEADER_BYTES - 1], "header cut off after 23 bytes"),
        (lambda record: record[:-1], "block of jobs 9..: 1 bytes missing"),
        (lambda record: b"xx" + record[2:], "starts with b'xx' instead of b'bd'"),
        (lambda record: record[:-1] + b"\xff", "block of jobs 9..: checksum does not match"),
        (lambda record: record[:3] + b"\x04" + record[4:], "checksum does not match"),
    ],
)
def test_damage_is_named(damage: object, message: str) -> None:
    assert callable(damage)
    with pytest.raises(FormatError, match=message):
        list(unpack(damage(pack_vector(9, 3, ["one", "two"]))))


def with_right_checksum(encoding: int, count: int, body: bytes) -> bytes:
    header = struct.pack("<2sBBIQI", b"bd", encoding, 3, count, 9, len(body))
    return header + struct.pack("<I", crc32(body, crc32(header))) + body


def test_an_unknown_encoding_is_refused_although_its_checksum_is_right() -> None:
    with pytest.raises(FormatError, match="unknown encoding 77"):
        list(unpack(with_right_checksum(77, 1, b"")))


@pytest.mark.parametrize(
    ("count", "body", "message"),
    [
        (3, struct.pack("<2I", 1, 1), "offset table cut off"),
        (2, struct.pack("<2I", 1, 3) + b"ab", "does not fit its values"),
        (2, struct.pack("<2I", 2, 1) + b"a", "does not fit its values"),
        (3, struct.pack("<3I", 2, 1, 2) + b"ab", "does not fit its values"),
    ],
)
def test_an_offset_table_that_lies_is_refused(count: int, body: bytes, message: str) -> None:
    (block,) = unpack(with_right_checksum(Encoding.ITEMS, count, body))
    with pytest.raises(FormatError, match=message):
        block.payloads()


@pytest.mark.parametrize("value", [(1, 2), [1], {"a": 1}])
def test_a_vector_of_another_length_is_refused(value: object) -> None:
    (block,) = unpack(with_right_checksum(Encoding.VECTOR, 2, pickle.dumps(value)))
    with pytest.raises(FormatError, match="holds another number of values than 2"):
        block.values()


@pytest.mark.parametrize(
    "items", [list(range(100_000)), [f"{n:0700}" for n in range(500)], [[n] for n in range(20_000)]]
)
def test_input_blocks_fill_a_record_and_never_pass_it(items: list[object]) -> None:
    made = list(input_blocks(items))
    assert all(len(block) <= RECORD_BYTES_MAX for _, block in made)
    assert [value for _, record in made for block in unpack(record) for value in block.values()] == items
    assert [count for count, _ in made] == [header_of(record)[1] for _, record in made]
    assert all(header_of(record)[2] == INPUT_STATE for _, record in made)
    full = [len(block) for _, block in made[:-1]]
    assert len(made) > 2
    assert min(full) > 0.5 * RECORD_BYTES_MAX, "records are wasted"


def test_large_values_are_pickled_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def dumps(*args: Any) -> bytes:
        payload = pickle.dumps(*args)
        made.append(len(payload))
        return payload

    monkeypatch.setattr(segment, "pickle", SimpleNamespace(dumps=dumps))
    items = ["small", *(bytes(1 << 20) for _ in range(50)), "small"]
    kept = iter(range(50))
    blocks = list(input_blocks(items, lambda parts: Reference(1, next(kept), 0, (Part(len(parts[0]), True),))))
    assert [count for count, _ in blocks] == [1] * 52
    assert sum(made) < 3 * (50 << 20)


def test_a_long_range_is_cut_where_a_lease_ends() -> None:
    made = list(input_blocks(range(LEASE_JOBS_MAX + 3)))
    assert [count for count, _ in made] == [LEASE_JOBS_MAX, 3]
    assert [value for _, record in made for block in unpack(record) for value in block.plain()[:1]] == [
        0,
        LEASE_JOBS_MAX,
    ]


@pytest.mark.parametrize("items", [["a", "x" * 200_000, "b"], [[1], ["x" * 200_000], [2]]])
def test_an_item_larger_than_a_record_has_a_block_of_its_own(items: list[object]) -> None:
    made = list(input_blocks(items))
    assert [count for count, _ in made] == [1, 1, 1]
    assert [value for _, record in made for block in unpack(record) for value in block.values()] == items


def test_no_items_make_no_block() -> None:
    assert list(input_blocks([])) == []


@pytest.mark.parametrize("body", [b"no pickle", pickle.dumps({1: 2}), pickle.dumps([1])])
def test_a_vector_that_does_not_hold_what_it_says_is_refused(body: bytes) -> None:
    block = Block(7, 3, 3, Encoding.VECTOR, memoryview(body))
    with pytest.raises(FormatError, match=r"block of jobs 7\.\."):
        block.plain()


def test_no_pickles_make_no_block() -> None:
    assert list(pickled_blocks([])) == []
