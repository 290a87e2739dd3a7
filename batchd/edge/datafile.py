"""A batch's data file read page by page, without LMDB: nothing that stands in it can hurt the process that reads.

Bytes come by `pread`, never from a map: behind a cut-off end there is an error instead of SIGBUS. A page is visited
once, a walk is as deep as LMDB's own at most, so that no damage makes it endless. What is found is given as it is;
what it means to a batch is told in damage.py. Who reads a batch that is being written holds a read transaction
meanwhile (watch.py), so that no page of that moment is used again.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from batchd.errors import FormatError, JournalDamaged, JournalError
from batchd.formats import pages

LOWEST: Final = b""
_TRIES: Final = 1000
_SIZES: Final = (4096, 8192, 16384, 32768, 2048, 1024, 512)


def require_whole(path: Path) -> None:
    """Refuse a file that lacks pages it needs: who reads behind the end of a map is killed by SIGBUS.

    Raises JournalDamaged, and JournalError where there is no file.
    """
    if not path.is_file():
        raise JournalError(f"there is no batch in {path.parent}")
    header: pages.Header | None = None
    for _ in range(_TRIES):
        try:
            with closing(DataFile(path)) as file:
                if not file.lacks_pages():
                    return
                before, header = header, file.newest
        except OSError:
            return  # LMDB says what is the matter.
        if header == before:
            break  # Else somebody wrote meanwhile.
    raise JournalDamaged(f"batch {path.parent.name} does not read back: {path} was cut off; put a copy of it back")


class Found(NamedTuple):
    """A record: its key, and where in the file its value lies."""

    key: bytes
    offset: int
    length: int
    page: int
    is_extent: bool
    """Whether the value has pages of its own."""
    tree: pages.Tree | None = None
    inline: bytes | None = None
    """The value, when it was read with the page of its key."""


class Flaw(NamedTuple):
    """Something that is not as LMDB writes it: keys from `low` up to `high` (None: to the end) may be missing."""

    low: bytes
    high: bytes | None
    page: int
    what: str


class DataFile:
    """One data.mdb."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError."""
        self.folder = path.parent
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self.headers, self.page_bytes = self._read_headers()
        """Both headers, as they are now: what one says, or what is wrong with it."""
        self.size = os.fstat(self._fd).st_size  # Pages are written before the header that tells of them.
        self._seen = bytearray(-(-self.size // self.page_bytes))
        self._is_short = False

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    @property
    def newest(self) -> pages.Header | None:
        """The header that LMDB goes by, None when none is readable."""
        whole = [header for header in self.headers if isinstance(header, pages.Header)]
        return max(whole, key=lambda header: header.transaction, default=None)

    def value(self, found: Found) -> tuple[bytes, str]:
        """Return a record's value and what is wrong with its pages, '' when nothing is. Raises FormatError."""
        if found.inline is not None:
            return found.inline, ""
        if not found.is_extent:
            return self._read(found.offset, found.length), ""
        data = self._read(found.offset - pages.PAGE_HEAD_BYTES, found.length + pages.PAGE_HEAD_BYTES)
        number = found.offset // self.page_bytes
        told = pages.number_of(data), pages.flags_of(data), pages.extent_of(data)
        is_whole = told == (number, pages.OVERFLOW, pages.pages_for(found.length, self.page_bytes))
        return data[pages.PAGE_HEAD_BYTES :], "" if is_whole else f"the header of page {number} is damaged"

    def walk(self, tree: pages.Tree, *, is_numbered: bool = False) -> Iterator[Found | Flaw]:
        """Give the records of a tree in its order, and the flaws where they are met."""
        counted = _Counted(is_numbered)
        flaws = 0
        if tree.root != pages.NO_PAGE:
            for item in self._walk(tree.root, tree.depth, LOWEST, None, counted):
                flaws += isinstance(item, Flaw)
                yield item
        told = tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries
        if not flaws and (counted.branches, counted.leaves, counted.overflows, counted.entries) != told:
            yield Flaw(LOWEST, None, tree.root, f"{counted.text()}, and {tree.entries} in {sum(told[:3])} should be")

    def loose(self) -> Iterator[Found]:
        """Give what looks like records in pages that no walk has come by. Values of extents have no key."""
        number = pages.HEADER_PAGES
        while number < len(self._seen):
            size = 1
            if not self._seen[number]:
                try:
                    page = self._read(number * self.page_bytes, self.page_bytes)
                except FormatError:
                    return
                if pages.flags_of(page) == pages.LEAF:
                    yield from (item for item in self._leaf(number, page, LOWEST, None) if isinstance(item, Found))
                elif (pages.flags_of(page), pages.number_of(page)) == (pages.OVERFLOW, number):
                    size = max(1, min(pages.extent_of(page), len(self._seen) - number))
                    offset = number * self.page_bytes + pages.PAGE_HEAD_BYTES
                    yield Found(
                        LOWEST, offset, size * self.page_bytes - pages.PAGE_HEAD_BYTES, number, is_extent=True
                    )
            number += size

    def lacks_pages(self) -> bool:
        """Whether something that belongs to the newest transaction lies behind the end of the file."""
        header = self.newest
        if self.size < pages.HEADER_PAGES * self.page_bytes:
            return True
        if header is None or self.size >= (header.last_page + 1) * self.page_bytes:
            return False
        # It may be sound for all that: pages at the end that were given back were never written.
        deque(self.walk(header.free, is_numbered=True), maxlen=0)
        for item in self.walk(header.main):
            if isinstance(item, Found) and item.tree is not None:
                deque(self.walk(item.tree), maxlen=0)
        return self._is_short

    def is_seen(self, page: int) -> bool:
        """Whether a walk has come by this page."""
        return page < len(self._seen) and bool(self._seen[page])

    # --- Below -------------------------------------------------------------------------------------------------

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise FormatError(f"the file is cut off: {offset + length - self.size} bytes of {length} are missing")
        try:
            data = b""
            while len(data) < length and (part := os.pread(self._fd, length - len(data), offset + len(data))):
                data = data + part if data else part
        except (OSError, OverflowError) as error:
            raise FormatError(f"byte {offset} cannot be read: {error}") from None
        if len(data) < length:
            raise FormatError(f"the file became shorter: {length - len(data)} bytes of {length} are missing")
        return data

    def _read_headers(self) -> tuple[list[pages.Header | str], int]:
        """Read both until neither changes: commits between two reads would make a sound file look torn."""
        told = self._read_both()
        for _ in range(_TRIES):
            before, told = told, self._read_both()
            if told == before:
                break
        return told

    def _read_both(self) -> tuple[list[pages.Header | str], int]:
        first = self._header(0)
        sizes = [first.page_bytes] if isinstance(first, pages.Header) else list(_SIZES)
        for size in sizes:
            second = self._header(size)
            if isinstance(second, pages.Header) and second.page_bytes == size:
                return [first, second], size
        return [first, self._header(sizes[0])], sizes[0]

    def _header(self, offset: int) -> pages.Header | str:
        try:
            return pages.header_of(self._read(offset, pages.HEADER_BYTES))
        except FormatError as error:
            return str(error)

    def _walk(
        self, number: int, levels: int, low: bytes, high: bytes | None, counted: "_Counted", level: int = 1
    ) -> Iterator[Found | Flaw]:
        page, flaw = self._visit(number)
        if flaw or level > pages.DEPTH_MAX:
            yield Flaw(low, high, number, flaw or "the tree is deeper than any")
            return
        kind = pages.flags_of(page)
        expected = pages.LEAF if level >= levels else pages.BRANCH
        if kind not in {pages.BRANCH, pages.LEAF}:
            yield Flaw(low, high, number, "it is no page of a tree")
            kind = expected
        elif (kind == pages.LEAF) != (level == levels):
            yield Flaw(low, high, number, f"level {level} is {'' if kind == pages.LEAF else 'not '}the lowest")
        if pages.number_of(page) != number:
            yield Flaw(low, high, number, f"it was written as page {pages.number_of(page)}")
            if kind == pages.BRANCH and level >= levels:
                return  # Part of another tree: that one needs what is below.
        if kind == pages.LEAF:
            counted.leaves += 1
            for item in self._leaf(number, page, low, high, counted):
                if isinstance(item, Found):
                    counted.entries += 1
                    counted.overflows += pages.pages_for(item.length, self.page_bytes) if item.is_extent else 0
                yield item
            return
        counted.branches += 1
        nodes, complaint = pages.nodes_of(page, is_branch=True, is_numbered=counted.is_numbered)
        if complaint:
            yield Flaw(low, high, number, complaint)
        for at, node in enumerate(nodes):
            start = low if at == 0 else node.key
            stop = nodes[at + 1].key if at + 1 < len(nodes) else high
            yield from self._walk(node.page, levels, start, stop, counted, level + 1)

    def _leaf(
        self, number: int, page: bytes, low: bytes, high: bytes | None, counted: "_Counted | None" = None
    ) -> Iterator[Found | Flaw]:
        """Give what a leaf holds. Pages are marked as used only by a walk, which counts."""
        is_numbered = counted is not None and counted.is_numbered
        nodes, complaint = pages.nodes_of(page, is_branch=False, is_numbered=is_numbered)
        if complaint:
            yield Flaw(low, high, number, complaint)
        elif nodes and (nodes[0].key < low or (high is not None and nodes[-1].key >= high)):
            yield Flaw(low, high, number, "it holds keys that belong elsewhere")
        for node in nodes:
            if node.page == pages.NO_PAGE:
                offset = number * self.page_bytes + node.offset
                value = page[node.offset : node.offset + node.length]
                tree = pages.tree_of(value) if node.is_tree and len(value) == pages.TREE_BYTES else None
                yield Found(node.key, offset, node.length, number, is_extent=False, tree=tree, inline=value)
                continue
            count = pages.pages_for(node.length, self.page_bytes)
            flaw = self._mark(node.page, count) if counted is not None else ""
            if flaw:
                yield Flaw(node.key, node.key + b"\0", number, f"its value lies at page {node.page}: {flaw}")
            offset = node.page * self.page_bytes + pages.PAGE_HEAD_BYTES
            yield Found(node.key, offset, node.length, number, is_extent=True)

    def _visit(self, number: int) -> tuple[bytes, str]:
        if flaw := self._mark(number, 1):
            return b"", flaw
        try:
            return self._read(number * self.page_bytes, self.page_bytes), ""
        except FormatError as error:
            return b"", str(error)

    def _mark(self, number: int, count: int) -> str:
        """Note that pages are in use; return why they cannot be."""
        if number < pages.HEADER_PAGES:
            return "a header page"
        if (number + count) * self.page_bytes > self.size:
            self._is_short = True
            return "behind the end of the file"
        if any(self._seen[number : number + count]):
            return "a page that is in use elsewhere"
        self._seen[number : number + count] = b"\1" * count
        return ""


class _Counted:
    """What a walk came by."""

    def __init__(self, is_numbered: bool) -> None:
        self.is_numbered = is_numbered
        self.branches = self.leaves = self.overflows = self.entries = 0

    def text(self) -> str:
        """Say it."""
        return f"{self.entries} entries in {self.branches + self.leaves + self.overflows} pages are there"
