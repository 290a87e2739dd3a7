"""Sets of job indices as sorted, disjoint, half-open ranges.

The one idea: a batch of a hundred million jobs that goes well is a handful of ranges, never a row per job.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

Range = tuple[int, int]
"""(start, stop): the indices start, start + 1, ... stop - 1."""

MarkT = TypeVar("MarkT")


class RangeSet:
    """A set of indices.

    >>> done = RangeSet([(0, 10), (20, 30)])
    >>> done.add(10, 20)
    >>> list(done), done.size, 29 in done
    ([(0, 30)], 30, True)
    """

    __slots__ = ("_starts", "_stops", "size")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.size = 0
        """How many indices are in the set."""
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Put the indices of [start, stop) into the set."""
        if start >= stop:
            return
        starts, stops = self._starts, self._stops
        low = bisect_left(stops, start)  # The first range that touches or follows `start`.
        high = bisect_right(starts, stop)  # One behind the last range that touches or precedes `stop`.
        if low < high:
            start, stop = min(start, starts[low]), max(stop, stops[high - 1])
            for i in range(low, high):
                self.size -= stops[i] - starts[i]
        starts[low:high] = [start]
        stops[low:high] = [stop]
        self.size += stop - start

    def remove(self, start: int, stop: int) -> None:
        """Take the indices of [start, stop) out of the set."""
        starts, stops = self._starts, self._stops
        low = bisect_right(stops, start)
        high = bisect_left(starts, stop)
        if start >= stop or low >= high:
            return
        kept: list[Range] = []
        if starts[low] < start:
            kept.append((starts[low], start))
        if stops[high - 1] > stop:
            kept.append((stop, stops[high - 1]))
        for i in range(low, high):
            self.size -= stops[i] - starts[i]
        starts[low:high] = [first for first, _ in kept]
        stops[low:high] = [last for _, last in kept]
        self.size += sum(last - first for first, last in kept)

    def overlap(self, start: int, stop: int) -> Iterator[Range]:
        """Give the parts of [start, stop) that are in the set, in order."""
        i = bisect_right(self._stops, start)
        while start < stop and i < len(self._starts) and self._starts[i] < stop:
            yield max(start, self._starts[i]), min(stop, self._stops[i])
            i += 1

    def gaps(self, start: int, stop: int) -> Iterator[Range]:
        """Give the parts of [start, stop) that are not in the set, in order."""
        for first, last in self.overlap(start, stop):
            if start < first:
                yield start, first
            start = last
        if start < stop:
            yield start, stop

    def first(self) -> Range | None:
        """Return the lowest range, or None when the set is empty."""
        return (self._starts[0], self._stops[0]) if self._starts else None

    def around(self, index: int) -> Range:
        """Return the range that holds `index`. Raises KeyError when none does.

        >>> RangeSet([(0, 10), (20, 30)]).around(25)
        (20, 30)
        """
        i = bisect_right(self._stops, index)
        if i == len(self._starts) or index < self._starts[i]:
            raise KeyError(index)
        return self._starts[i], self._stops[i]

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any index of [start, stop) is in the set."""
        return next(self.overlap(start, stop), None) is not None

    def copy(self) -> Self:
        """Return an independent set of the same indices."""
        return type(self)(self)

    def __contains__(self, index: int) -> bool:
        i = bisect_right(self._starts, index)
        return i > 0 and index < self._stops[i - 1]

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._stops, strict=True)

    def __len__(self) -> int:
        """How many ranges it takes, which is what it costs."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and list(self) == list(other)

    def __hash__(self) -> int:
        raise TypeError("a RangeSet changes and cannot be hashed")

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"


class RangeMap(Generic[MarkT]):
    """Marks on indices; an index without a mark has the default.

    It costs ranges times distinct marks: a million jobs that failed once are one range under one mark.

    >>> marks = RangeMap("fresh")
    >>> marks.put(5, 8, "tried")
    >>> marks.get(6), marks.span(0, 100), marks.span(5, 100)
    ('tried', (5, 'fresh'), (8, 'tried'))
    """

    __slots__ = ("_sets", "default")

    def __init__(self, default: MarkT) -> None:
        self.default = default
        self._sets: dict[MarkT, RangeSet] = {}

    def put(self, start: int, stop: int, mark: MarkT) -> None:
        """Mark [start, stop), whatever it was marked before."""
        self.clear(start, stop)
        if mark != self.default and start < stop:
            self._sets.setdefault(mark, RangeSet()).add(start, stop)

    def clear(self, start: int, stop: int) -> None:
        """Set [start, stop) back to the default."""
        for mark in [mark for mark, marked in self._sets.items() if marked.overlaps(start, stop)]:
            self._sets[mark].remove(start, stop)
            if not self._sets[mark]:
                del self._sets[mark]

    def get(self, index: int) -> MarkT:
        """Return the mark of one index."""
        return self.span(index, index + 1)[1]

    def span(self, start: int, stop: int) -> tuple[int, MarkT]:
        """Return (end, mark): how far from `start`, at most to `stop`, the indices carry the same mark."""
        end = stop
        for mark, marked in self._sets.items():
            part = next(marked.overlap(start, stop), None)
            if part is None:
                continue
            if part[0] == start:
                return part[1], mark
            end = min(end, part[0])
        return end, self.default

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, MarkT]]:
        """Cut [start, stop) into (start, stop, mark) of one mark each."""
        while start < stop:
            end, mark = self.span(start, stop)
            yield start, end, mark
            start = end

    def marked(self) -> list[tuple[int, int, MarkT]]:
        """Return every range that does not carry the default, in order."""
        return sorted((start, stop, mark) for mark, marked in self._sets.items() for start, stop in marked)

    def __len__(self) -> int:
        """How many ranges it takes."""
        return sum(map(len, self._sets.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeMap) and self.marked() == other.marked()

    def __hash__(self) -> int:
        raise TypeError("a RangeMap changes and cannot be hashed")
