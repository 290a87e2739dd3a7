"""Pages taken apart: what LMDB wrote is read without complaint, and whatever bytes come are never an exception."""

import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchd.errors import FormatError
from batchd.formats import pages, tables
from tests.ruin import PAGE_BYTES, node_offset, original, overwritten


def test_both_headers_are_read() -> None:
    made = original()
    headers = [pages.header_of(made.page(number)) for number in (0, 1)]
    assert [header.page_bytes for header in headers] == [PAGE_BYTES] * 2
    assert [header.number for header in headers] == [0, 1]
    assert abs(headers[0].transaction - headers[1].transaction) == 1
    assert made.header.last_page < len(made.data) // PAGE_BYTES


@pytest.mark.parametrize(
    ("offset", "what"),
    [(10, b"\2\0"), (16, b"\0\0\0\0"), (20, b"\2"), (40, b"\0\0\0\0"), (40, b"\1\20\0\0"), (40, b"\0\0\2\0")],
)
def test_a_header_that_is_none_is_refused(offset: int, what: bytes) -> None:
    with pytest.raises(FormatError, match="header"):
        pages.header_of(overwritten(original().page(0), offset, what))


def test_a_header_that_is_cut_off_is_refused() -> None:
    for length in (0, 15, pages.HEADER_BYTES - 1):
        with pytest.raises(FormatError, match="cut off"):
            pages.header_of(original().page(0)[:length])
    with pytest.raises(FormatError, match="cut off"):
        pages.tree_of(bytes(pages.TREE_BYTES - 1))


def test_the_pages_of_a_batch_hold_what_they_should() -> None:
    made = original()
    tree = made.tree(tables.OUTCOMES)
    assert tree.depth > 1
    branch = made.page(tree.root)
    children, complaint = pages.nodes_of(branch, is_branch=True)
    assert (complaint, len(children)) == ("", len({child.page for child in children}))
    found = 0
    for child in children:
        assert pages.number_of(made.page(child.page)) == child.page
        nodes, complaint = pages.nodes_of(made.page(child.page), is_branch=False)
        assert complaint == ""
        found += len(nodes)
    assert found == tree.entries


def test_an_entry_of_the_free_list_is_read_or_refused() -> None:
    assert pages.free_pages_of(struct.pack("=3Q", 2, 9, 7)) == (9, 7)
    assert pages.free_pages_of(struct.pack("=Q", 0)) == ()
    for value in (b"", b"1234", struct.pack("=2Q", 2, 9), struct.pack("=2Q", 1 << 63, 9)):
        with pytest.raises(FormatError):
            pages.free_pages_of(value)


@pytest.mark.parametrize(
    ("offset", "what", "complaint"),
    [
        (12, b"\xff", "its bounds are impossible"),
        (12, b"\x10\0", "its bounds are impossible"),
        (14, b"\xff\xff", "its bounds are impossible"),
        (14, b"\0\x08", "its entries do not fill it"),
        (16, b"\1", "an entry points outside of it"),
        (16, b"\xfe\x0f", "an entry points outside of it"),
    ],
)
def test_a_leaf_with_a_broken_head_is_still_read(offset: int, what: bytes, complaint: str) -> None:
    made = original()
    page = made.page(made.leaf(tables.OUTCOMES))
    whole, _ = pages.nodes_of(page, is_branch=False)
    nodes, told = pages.nodes_of(overwritten(page, offset, what), is_branch=False)
    assert told == complaint
    assert set(nodes) == set(whole), "an entry is lost, though the damage is elsewhere"


def test_one_broken_entry_costs_itself() -> None:
    made = original()
    page = made.page(made.leaf(tables.OUTCOMES))
    whole, _ = pages.nodes_of(page, is_branch=False)
    nodes, complaint = pages.nodes_of(overwritten(page, node_offset(page, 3) + 2, b"\xff"), is_branch=False)
    assert complaint == "an entry points outside of it"
    assert set(whole) - set(nodes) == {whole[3]}


def test_keys_out_of_order_are_told() -> None:
    made = original()
    page = made.page(made.leaf(tables.OUTCOMES))
    first, second = page[16:18], page[18:20]
    nodes, complaint = pages.nodes_of(overwritten(page, 16, second + first), is_branch=False)
    assert complaint == "its keys are out of order"
    assert len(nodes) == len(pages.nodes_of(page, is_branch=False)[0])


@given(st.binary(min_size=pages.PAGE_HEAD_BYTES, max_size=600), st.booleans(), st.booleans())
def test_no_bytes_are_an_exception(page: bytes, is_branch: bool, is_numbered: bool) -> None:
    _read_anyhow(page, is_branch=is_branch, is_numbered=is_numbered)


def test_no_damage_of_a_real_page_is_an_exception() -> None:
    random, made = Random(1), original()
    for _ in range(2_000):
        page = bytearray(made.page(random.randrange(2, len(made.data) // PAGE_BYTES)))
        for _ in range(random.choice((1, 1, 8, 100))):
            page[random.randrange(64 if random.random() < 0.5 else PAGE_BYTES)] = random.randrange(256)
        _read_anyhow(bytes(page), is_branch=random.random() < 0.5, is_numbered=False)


def _read_anyhow(page: bytes, *, is_branch: bool, is_numbered: bool) -> None:
    for node in pages.nodes_of(page, is_branch=is_branch, is_numbered=is_numbered)[0]:
        assert len(node.key) <= pages.KEY_BYTES_MAX
        assert node.page != pages.NO_PAGE or node.offset + node.length <= len(page)
    assert pages.flags_of(page) < 1 << 16
    assert pages.extent_of(page) < 1 << 32
