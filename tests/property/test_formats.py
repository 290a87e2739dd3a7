"""The formats under any bytes: what went in comes out, all else is a FormatError, whatever was done to it."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchd.edge import control
from batchd.errors import FormatError
from batchd.formats.frame import Frame, FrameReader, encode
from batchd.formats.reference import Part, Reference
from batchd.formats.report import Failure
from batchd.formats.segment import Encoding, input_blocks, pack_items, pack_vector, unpack
from batchd.formats.values import are_plain, dump_checked, is_plain, load

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
ANY_VALUE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.frozensets(SCALARS, max_size=3)
    ),
    max_leaves=8,
)
FRAMES = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.binary(max_size=80)), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FAILURES = st.builds(
    Failure,
    type=st.text(max_size=20),
    message=st.text(max_size=50),
    fingerprint=st.binary(min_size=8, max_size=8),
    output=st.text(max_size=30),
    details=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    exception=st.binary(max_size=30),
)
REFERENCES = st.builds(
    Reference,
    writer=st.integers(0, 2**64 - 1),
    number=st.integers(0, 2**32 - 1),
    crc=st.integers(0, 2**32 - 1),
    parts=st.lists(st.builds(Part, st.integers(0, 1 << 24), st.booleans()), min_size=1, max_size=9).map(tuple),
)
HURT = st.tuples(st.sampled_from(["cut", "flip", "insert", "drop"]), st.integers(0, 2**20), st.integers(1, 255))


def hurt(data: bytes, damage: tuple[str, int, int]) -> bytes:
    """Return `data` with one place changed."""
    kind, place, mask = damage
    at = place % max(1, len(data))
    match kind:
        case "cut":
            return data[:at]
        case "flip" if data:
            return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
        case "insert":
            return data[:at] + bytes([mask]) + data[at:]
        case _:
            return data[:at] + data[at + 1 :]


def read_blocks(data: bytes) -> list[tuple[int, int, list[Any]]]:
    """Read a record as a worker and a client do, except for what runs the user's code."""
    found: list[tuple[int, int, list[Any]]] = []
    for block in unpack(data):
        is_items = block.encoding is Encoding.ITEMS
        values = [bytes(p) for p in block.payloads()] if is_items else block.values()
        found.append((block.first, block.state, values))
    return found


def value_or_format_error(read: Callable[[], Any]) -> Any:
    """Return what `read` returns, or None for a FormatError. Anything else is the failure of the test."""
    try:
        return read()
    except FormatError:
        return None


# --- Values and blocks -----------------------------------------------------------------------------------------


@given(st.lists(PLAIN))
def test_plain_values_come_back_as_one_vector(values: list[Any]) -> None:
    assert are_plain(values)
    ((first, state, found),) = read_blocks(pack_vector(3, 5, values))
    assert (first, state, found) == (3, 5, values)
    assert list(map(type, found)) == list(map(type, values))


@given(st.lists(ANY_VALUE, min_size=1))
def test_any_values_come_back_one_by_one(values: list[Any]) -> None:
    (block,) = unpack(pack_items(0, 3, [dump_checked(value) for value in values]))
    assert block.values() == values
    assert [load(payload) for payload in block.payloads()] == values


@given(st.lists(ANY_VALUE, max_size=300))
def test_input_blocks_hold_the_items_in_order(items: list[Any]) -> None:
    made = list(input_blocks(items))
    assert [value for _, record in made for block in unpack(record) for value in block.values()] == items
    assert sum(count for count, _ in made) == len(items)


@given(st.floats())
def test_a_float_keeps_its_bits(value: float) -> None:
    ((_, _, (found,)),) = read_blocks(pack_vector(0, 3, [value]))
    assert found == value or (math.isnan(found) and math.isnan(value))
    assert math.copysign(1, found) == math.copysign(1, value)


@given(st.recursive(SCALARS | st.just(object()) | st.just({}), lambda inner: st.lists(inner).map(tuple)))
def test_a_value_with_anything_else_inside_is_not_plain(value: Any) -> None:
    def is_made_of_scalars(part: Any) -> bool:
        return all(map(is_made_of_scalars, part)) if type(part) is tuple else type(part) not in {object, dict}

    assert is_plain(value) == is_made_of_scalars(value)


@given(st.binary(max_size=300))
@pytest.mark.covers("X10")
def test_random_bytes_are_no_block(data: bytes) -> None:
    found = value_or_format_error(lambda: read_blocks(data))
    assert found is None or data == b""
    value_or_format_error(lambda: read_blocks(b"bd" + data))


@given(st.lists(PLAIN, max_size=20), st.lists(st.binary(max_size=20), max_size=5), HURT)
def test_a_hurt_record_is_refused_or_cut_between_blocks(
    values: list[Any], payloads: list[bytes], damage: Any
) -> None:
    blocks = [pack_vector(0, 3, values), pack_vector(0, 3, range(len(values))), pack_items(len(values), 4, payloads)]
    whole = read_blocks(b"".join(blocks))
    data = hurt(b"".join(blocks), damage)
    found = value_or_format_error(lambda: read_blocks(data))
    if data == b"".join(blocks):  # Dropping one of two equal bytes at the end of nothing.
        assert found == whole
    else:
        assert found is None or found == whole[: len(found)]
        assert found is None or len(found) < len(whole), "changed bytes were read as if nothing had happened"


@given(REFERENCES)
def test_references_come_back(reference: Reference) -> None:
    assert Reference.decode(reference.encode()) == reference
    assert "/" not in reference.name


@given(st.binary(max_size=60))
@pytest.mark.covers("X10", "J8")
def test_random_bytes_are_a_reference_into_the_folder_or_refused(data: bytes) -> None:
    reference = value_or_format_error(lambda: Reference.decode(data))
    assert reference is None or (reference.encode() == data and "/" not in reference.name)


# --- Frames ----------------------------------------------------------------------------------------------------


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(FRAMES, st.lists(st.integers(0, 2**16), max_size=12))
def test_frames_come_out_however_the_stream_is_cut(frames: list[tuple[int, bytes, bytes]], cuts: list[int]) -> None:
    wire = b"".join(encode(kind, meta, len(body)) + body for kind, meta, body in frames)
    reader = FrameReader()
    assert [frame for piece in pieces(wire, cuts) for frame in reader.feed(piece)] == [Frame(*f) for f in frames]
    assert list(reader.feed(encode(9, b"next"))) == [Frame(9, b"next", b"")]


def read_stream(data: bytes, cuts: list[int]) -> list[Frame]:
    reader, found = FrameReader(body_bytes_max=1 << 16), []
    for piece in pieces(data, cuts):
        found += list(reader.feed(piece))
    return found


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=8))
@pytest.mark.covers("X10", "P12")
def test_random_bytes_are_no_frames(data: bytes, cuts: list[int]) -> None:
    assert not value_or_format_error(lambda: read_stream(data, cuts))
    value_or_format_error(lambda: read_stream(b"bdF1" + data, cuts))


@given(FRAMES, HURT, st.lists(st.integers(0, 2**16), max_size=8))
@pytest.mark.covers("X10", "P12")
def test_a_hurt_stream_gives_only_frames_that_were_sent(
    frames: list[tuple[int, bytes, bytes]], damage: Any, cuts: list[int]
) -> None:
    wire = b"".join(encode(kind, meta, len(body)) + body for kind, meta, body in frames)
    found = value_or_format_error(lambda: read_stream(hurt(wire, damage), cuts)) or []
    # Bodies carry checksums of their own, so only kind and meta are sure.
    assert [frame[:2] for frame in found] == [frame[:2] for frame in frames[: len(found)]]


# --- Failures and messages -------------------------------------------------------------------------------------


@given(FAILURES)
def test_failures_come_back(failure: Failure) -> None:
    assert Failure.decode(failure.encode()) == failure


@given(st.binary(max_size=200))
def test_random_bytes_are_a_failure_or_refused(data: bytes) -> None:
    value_or_format_error(lambda: Failure.decode(data))


@given(FAILURES, HURT)
def test_a_hurt_failure_is_a_failure_or_refused(failure: Failure, damage: Any) -> None:
    found = value_or_format_error(lambda: Failure.decode(hurt(failure.encode(), damage)))
    assert found is None or isinstance(found.message, str)


@given(JSON)
@example({"type": "E", "message": "m", "details": [[1, 2]]})
@example({"type": "E", "message": "m", "details": [[[], 2]]})
def test_any_json_is_a_failure_or_refused(fields: Any) -> None:
    text = json.dumps(fields).encode()
    found = value_or_format_error(lambda: Failure.decode(b"12345678" + len(text).to_bytes(4, "little") + text))
    assert found is None or (isinstance(fields, dict) and found.type == str(fields["type"]))


@given(st.integers(0, 2**32 - 1), st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.binary(max_size=50))
def test_messages_come_back(kind: int, fields: dict[str, Any], body: bytes) -> None:
    wire = control.encode(kind, fields, len(body)) + body
    assert list(control.decode(FrameReader().feed(wire))) == [(kind, fields, body)]


@given(st.binary(max_size=60) | JSON.map(lambda fields: json.dumps(fields).encode()))
@example(b"[" * 100_000)
@example(b"1" * 10_000)
@example(b'"\xff"')
def test_any_meta_is_a_message_or_refused(meta: bytes) -> None:
    found = value_or_format_error(lambda: list(control.decode(FrameReader().feed(encode(1, meta)))))
    assert found is None or isinstance(found[0].fields, dict)
