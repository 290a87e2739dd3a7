"""LMDB's pages as bytes: how a batch's file looks below LMDB, so that damage can be found where LMDB only fails.

    header page   two of them, 0 and 1, written in turn: the roots of the trees, the last page, the transaction
    branch page   keys and the pages of the next level; the first key counts as the lowest
    leaf page     keys and values, or the first of the overflow pages that hold a value
    overflow      pages in a row: a header, then the bytes of one value

Nothing here reads a file or trusts a byte: a page is taken apart into what is plausible and one complaint. The one
idea: nodes fill a page without gaps from `upper` to its end, so a page whose table of pointers is damaged can still
be read. This is the 0.9 format of a 64-bit machine; every number is stored in the machine's own order.
"""

import struct
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from batchd.errors import FormatError

BRANCH: Final = 1
LEAF: Final = 2
OVERFLOW: Final = 4
HEADER: Final = 8
HEADER_PAGES: Final = 2
NO_PAGE: Final = (1 << 64) - 1
PAGE_HEAD_BYTES: Final = 16
DEPTH_MAX: Final = 32
"""LMDB's cursors hold no more levels."""
KEY_BYTES_MAX: Final = 511
_PAGE_BYTES_MAX: Final = 0x8000
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_HEAD: Final = struct.Struct("=QHHHH")
_EXTENT: Final = struct.Struct("=QHHI")
_TREE: Final = struct.Struct("=IHHQQQQQ")
_START: Final = struct.Struct("=II8xQ")
_END: Final = struct.Struct("=QQ")
_NODE: Final = struct.Struct("=HHHH")
_PAGE_NUMBER: Final = struct.Struct("=Q")
TREE_BYTES: Final = _TREE.size
HEADER_BYTES: Final = PAGE_HEAD_BYTES + _START.size + 2 * _TREE.size + _END.size
_IN_OVERFLOW: Final = 1
_IS_TREE: Final = 2


class Tree(NamedTuple):
    """A table, or the table of tables: where it begins and what it should hold."""

    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Header(NamedTuple):
    """What a transaction left: everything else follows from it."""

    page_bytes: int
    free: Tree
    main: Tree
    last_page: int
    transaction: int
    number: int
    """The page that it was written as."""


class Node(NamedTuple):
    """An entry of a branch page (a key and a page) or of a leaf page (a key and a value)."""

    key: bytes
    page: int
    """Of the next level, or the first that holds the value; NO_PAGE when the value is in this page."""
    offset: int
    """Of the value in this page."""
    length: int
    """Of the value."""
    is_tree: bool = False
    """Whether the value describes a tree of its own."""


def header_of(page: bytes) -> Header:
    """Return what a header page says. Raises FormatError."""
    if len(page) < HEADER_BYTES:
        raise FormatError(f"the header is cut off after {len(page)} bytes")
    flags = _HEAD.unpack_from(page)[2]
    magic, version, _ = _START.unpack_from(page, PAGE_HEAD_BYTES)
    if (flags, magic, version) != (HEADER, _MAGIC, _VERSION):
        raise FormatError("the header is not one of LMDB 0.9")
    at = PAGE_HEAD_BYTES + _START.size
    page_bytes = _TREE.unpack_from(page, at)[0]
    if page_bytes & (page_bytes - 1) or not HEADER_BYTES < page_bytes <= _PAGE_BYTES_MAX:
        raise FormatError(f"the header tells of pages of {page_bytes} bytes")
    last_page, transaction = _END.unpack_from(page, at + 2 * _TREE.size)
    main = tree_of(page, at + _TREE.size)
    return Header(page_bytes, tree_of(page, at), main, last_page, transaction, number_of(page))


def tree_of(data: bytes, offset: int = 0) -> Tree:
    """Return the description of a tree. Raises FormatError."""
    if len(data) - offset < _TREE.size:
        raise FormatError("the description of a table is cut off")
    return Tree(*_TREE.unpack_from(data, offset)[2:])


def number_of(page: bytes) -> int:
    """Return the number that the page was written under."""
    return int(_HEAD.unpack_from(page)[0])


def flags_of(page: bytes) -> int:
    """Return what kind of page it is: BRANCH, LEAF, OVERFLOW, or HEADER when it is none of them by damage."""
    return int(_HEAD.unpack_from(page)[2])


def extent_of(page: bytes) -> int:
    """Return how many pages in a row an overflow page begins."""
    return int(_EXTENT.unpack_from(page)[3])


def pages_for(length: int, page_bytes: int) -> int:
    """Return how many pages a value takes that lies in pages of its own.

    >>> pages_for(65_512, 4096), pages_for(65_536, 4096)
    (16, 17)
    """
    return -(-(PAGE_HEAD_BYTES + length) // page_bytes)


def free_pages_of(value: bytes) -> tuple[int, ...]:
    """Return the numbers of an entry of the list of free pages. Raises FormatError."""
    if len(value) < 8 or len(value) % 8 or _PAGE_NUMBER.unpack_from(value)[0] > len(value) // 8 - 1:
        raise FormatError("its number of pages does not fit its length")
    return struct.unpack_from(f"={_PAGE_NUMBER.unpack_from(value)[0]}Q", value, 8)


def nodes_of(page: bytes, *, is_branch: bool, is_numbered: bool = False) -> tuple[list[Node], str]:
    """Return what can be read of a page, and what is wrong with it: '' when nothing is.

    Keys that are the machine's own numbers (`is_numbered`) are given in the byte order in which they compare.
    """
    _, _, _, lower, upper = _HEAD.unpack_from(page)
    pointers = _pointers(page, lower)
    complaint = ""
    if lower % 2 or not PAGE_HEAD_BYTES < lower <= upper <= len(page):
        complaint = "its bounds are impossible"
    nodes = [_node(page, offset, is_branch=is_branch) for offset in pointers]
    if not complaint and None in nodes:
        complaint = "an entry points outside of it"
    found = [node for node in nodes if node is not None]
    filled = sum(_size_of(node, is_branch=is_branch) for node in found)
    if not complaint and (min(pointers) != upper or filled != len(page) - upper):
        complaint = "its entries do not fill it"
    if complaint:
        found = list(_tiles(page, upper, pointers, is_branch=is_branch)) or found
    if is_numbered and sys.byteorder == "little":
        found = [node._replace(key=node.key[::-1]) for node in found]
    keys = [node.key for node in found][int(is_branch) :]
    if not complaint and any(a >= b for a, b in pairwise(keys)):
        complaint = "its keys are out of order"
    return found, complaint


def _pointers(page: bytes, lower: int) -> list[int]:
    """Return the offsets of the entries; where `lower` cannot be right, as many as look like offsets."""
    if lower % 2 == 0 and PAGE_HEAD_BYTES < lower <= len(page):
        return list(struct.unpack_from(f"={(lower - PAGE_HEAD_BYTES) // 2}H", page, PAGE_HEAD_BYTES))
    found: list[int] = []
    at, lowest = PAGE_HEAD_BYTES, len(page)
    while at + 2 <= lowest:
        (offset,) = struct.unpack_from("=H", page, at)
        if offset in found or offset % 2 or not at + 2 <= offset < len(page) - _NODE.size:
            break
        found.append(offset)
        at, lowest = at + 2, min(lowest, offset)
    return found


def _tiles(page: bytes, upper: int, pointers: list[int], *, is_branch: bool) -> Iterator[Node]:
    """Give the entries one behind the other as they lie in the page, in their order; none if they do not fit it."""
    offsets: list[int] = []
    at = upper
    while at < len(page):
        node = _node(page, at, is_branch=is_branch)
        if node is None:
            return
        offsets.append(at)
        at += _size_of(node, is_branch=is_branch)
    if at != len(page):
        return
    rank = {offset: number for number, offset in enumerate(pointers)}
    nodes = [(offset, _node(page, offset, is_branch=is_branch)) for offset in offsets]
    whole = [(offset, node) for offset, node in nodes if node is not None]
    if all(offset in rank for offset, _ in whole):
        whole.sort(key=lambda pair: rank[pair[0]])
    else:
        whole.sort(key=lambda pair: pair[1].key)
    yield from (node for _, node in whole)


def _size_of(node: Node, *, is_branch: bool) -> int:
    """Return the bytes that an entry takes in its page."""
    stored = 0 if is_branch else _PAGE_NUMBER.size if node.page != NO_PAGE else node.length
    return (_NODE.size + len(node.key) + stored + 1) & ~1


def _node(page: bytes, offset: int, *, is_branch: bool) -> Node | None:
    if offset % 2 or not PAGE_HEAD_BYTES <= offset <= len(page) - _NODE.size:
        return None
    low, high, flags, key_bytes = _NODE.unpack_from(page, offset)
    at = offset + _NODE.size + key_bytes
    if at > len(page) or key_bytes > KEY_BYTES_MAX:
        return None
    key = page[offset + _NODE.size : at]
    if is_branch:
        return Node(key, low | high << 16 | flags << 32, 0, 0)
    length = low | high << 16
    if flags == _IN_OVERFLOW and at + _PAGE_NUMBER.size <= len(page):
        return Node(key, _PAGE_NUMBER.unpack_from(page, at)[0], at, length)
    if flags not in {0, _IS_TREE} or at + length > len(page):
        return None
    return Node(key, NO_PAGE, at, length, is_tree=flags == _IS_TREE)
