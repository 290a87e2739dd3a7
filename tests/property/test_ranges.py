"""RangeSet against a set, RangeMap against a dict."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchd.core.ranges import RangeMap, RangeSet

BOUND = 40
spans = st.tuples(st.integers(0, BOUND), st.integers(0, BOUND))


def indices(ranges: RangeSet) -> set[int]:
    return {index for start, stop in ranges for index in range(start, stop)}


@given(st.lists(st.tuples(st.booleans(), spans)), spans)
def test_a_range_set_is_a_set(changes: list[tuple[bool, tuple[int, int]]], look: tuple[int, int]) -> None:
    ranges, plain = RangeSet(), set[int]()
    for adds, (start, stop) in changes:
        if adds:
            ranges.add(start, stop)
            plain |= set(range(start, stop))
        else:
            ranges.remove(start, stop)
            plain -= set(range(start, stop))

    start, stop = look
    seen = plain & set(range(start, stop))
    assert indices(ranges) == plain
    assert ranges.size == len(plain)
    assert all(index in ranges for index in plain)
    assert all(index not in ranges for index in range(BOUND + 1) if index not in plain)
    assert {i for a, b in ranges.overlap(start, stop) for i in range(a, b)} == seen
    assert {i for a, b in ranges.gaps(start, stop) for i in range(a, b)} == set(range(start, stop)) - seen
    assert ranges.overlaps(start, stop) == bool(seen)
    assert ranges.first() == next(iter(ranges), None)
    assert ranges.copy() == ranges


@given(st.lists(spans))
def test_ranges_are_sorted_disjoint_and_as_few_as_possible(parts: list[tuple[int, int]]) -> None:
    ranges = list(RangeSet(parts))

    assert all(start < stop for start, stop in ranges)
    assert all(stop < start for (_, stop), (start, _) in pairwise(ranges))
    assert len(RangeSet(parts)) == len(ranges)


@given(st.lists(st.tuples(st.sampled_from(["fresh", "tried", "worn"]), spans)), spans)
def test_a_range_map_is_a_dict(changes: list[tuple[str, tuple[int, int]]], look: tuple[int, int]) -> None:
    marks, plain = RangeMap("fresh"), dict.fromkeys(range(BOUND), "fresh")
    for mark, (start, stop) in changes:
        marks.put(start, stop, mark)
        plain.update(dict.fromkeys(range(start, stop), mark))

    start, stop = look
    assert {index: marks.get(index) for index in plain} == plain
    assert [(i, mark) for a, b, mark in marks.spans(start, stop) for i in range(a, b)] == [
        (index, plain[index]) for index in range(start, stop)
    ]
    assert {i: mark for a, b, mark in marks.marked() for i in range(a, b)} == {
        index: mark for index, mark in plain.items() if mark != "fresh"
    }
    assert len(marks) == len(marks.marked())


@given(st.lists(spans), spans)
def test_clearing_gives_back_the_default(parts: list[tuple[int, int]], cleared: tuple[int, int]) -> None:
    marks = RangeMap(0)
    for start, stop in parts:
        marks.put(start, stop, 1)
    marks.clear(*cleared)

    assert all(marks.get(index) == 0 for index in range(*cleared))


def test_what_changes_cannot_be_hashed() -> None:
    for changing in (RangeSet(), RangeMap(0)):
        with pytest.raises(TypeError, match="changes"):
            hash(changing)
    assert repr(RangeSet([(1, 2)])) == "RangeSet([(1, 2)])"


@pytest.mark.parametrize("index", [-1, 10, 15, 30])
def test_what_no_range_holds_has_no_range_around(index: int) -> None:
    with pytest.raises(KeyError):
        RangeSet([(0, 10), (20, 30)]).around(index)
