"""`map`: order, errors, time, chunks and laziness. Both executors must agree."""

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from tests.commands import until
from tests.contract.calls import WAIT_S, Door, call_with, note, notes, reciprocal, square
from tests.contract.executors import Make


@pytest.mark.parametrize("chunksize", [1, 3, 40, 50])
def test_results_come_in_order(pool: Executor, chunksize: int) -> None:
    found = pool.map(pow, range(40), range(40), chunksize=chunksize)
    assert list(found) == [x**x for x in range(40)]


def test_the_shortest_input_ends_it(pool: Executor) -> None:
    found = pool.map(call_with, itertools.count(), "abc", [1, 2, 3, 4])
    assert list(found) == [((x, "abc"[x], x + 1), {}) for x in range(3)]


@pytest.mark.parametrize("inputs", [(), ([],), (range(5), [])])
def test_nothing_gives_nothing(pool: Executor, inputs: tuple[Any, ...]) -> None:
    assert list(pool.map(square, *inputs)) == []


@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunk_holds_something(pool: Executor, chunksize: int) -> None:
    with pytest.raises(ValueError, match=r"chunksize must be >= 1"):
        list(pool.map(square, range(4), chunksize=chunksize))


def test_an_error_comes_at_its_place_and_ends_it(pool: Executor) -> None:
    found = pool.map(reciprocal, [1, 2, 0, 4])
    assert (next(found), next(found)) == (1.0, 0.5)
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == []


def test_an_error_in_a_chunk_hides_none_of_the_chunks_before_it(pool: Executor) -> None:
    found = pool.map(reciprocal, [1, 2, 4, 0, 5], chunksize=2)
    assert list(itertools.islice(found, 2)) == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        list(found)


def test_an_error_of_the_input_is_raised_here(pool: Executor) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise RuntimeError("the input is torn")

    with pytest.raises(RuntimeError, match="the input is torn"):
        list(pool.map(square, inputs()))
    assert list(pool.map(square, [3])) == [9]


def test_jobs_begin_before_anybody_asks(pool: Executor, tmp_path: Path) -> None:
    found = pool.map(note, [tmp_path / "ran"] * 10, range(10))
    until(lambda: len(notes(tmp_path / "ran")) == 10, "every job ran")
    assert list(found) == [None] * 10


def test_it_gives_up_in_time(pool: Executor, door: Door) -> None:
    assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
    found = []
    with pytest.raises(TimeoutError):
        found += list(pool.map(door.enter, range(2), timeout=0.3))
    assert found == []
    door.open()
    assert list(pool.map(door.enter, range(2), timeout=WAIT_S)) == [0, 1]


def test_results_that_are_in_time_are_given(make: Make, door: Door) -> None:
    executor = make(1)
    assert executor.submit(square, 2).result(WAIT_S) == 4  # The only worker has started.
    found = executor.map(door.enter_from, itertools.repeat(2), range(3), timeout=1)
    assert (next(found), next(found)) == (0, 1)
    with pytest.raises(TimeoutError):
        next(found)


def test_closing_it_cancels_the_rest(make: Make, door: Door) -> None:
    executor = make(1)
    found: Any = executor.map(door.enter_from, itertools.repeat(1), range(30))
    assert next(found) == 0
    found.close()
    door.open()
    executor.shutdown()
    assert len(door.came()) < 10
    assert list(found) == []


def test_an_error_cancels_the_rest(make: Make, door: Door, tmp_path: Path) -> None:
    executor = make(1)
    found = executor.map(door.enter_or_fail, range(30))
    with pytest.raises(ValueError, match="the first"):
        next(found)
    door.open()
    executor.shutdown()
    assert len(door.came()) < 10


def test_large_chunks_of_many_jobs(pool: Executor) -> None:
    assert list(pool.map(square, range(20_000), chunksize=1000)) == [x * x for x in range(20_000)]


# --- buffersize --------------------------------------------------------------------------------------------------


@pytest.fixture
def lazy(pool: Any, kind: str) -> Any:
    """A pool that reads its input no faster than its results are taken."""
    if kind == "standard" and sys.version_info < (3, 14):
        pytest.skip("the standard library has buffersize since Python 3.14")
    return pool


@pytest.mark.parametrize("buffersize", [1, 3, 100])
def test_it_reads_no_further_than_it_may(lazy: Any, buffersize: int) -> None:
    taken = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        while taken < 40:
            taken += 1
            yield taken

    found = lazy.map(square, inputs(), buffersize=buffersize)
    assert taken <= buffersize
    for number in range(1, 41):
        assert next(found) == number * number
        assert taken <= number + buffersize
    assert list(found) == []


def test_an_endless_input_can_be_read(lazy: Any) -> None:
    found = lazy.map(square, itertools.count(), buffersize=4)
    assert list(itertools.islice(found, 50)) == [x * x for x in range(50)]
    found.close()


def test_a_buffer_counts_chunks(lazy: Any) -> None:
    found = lazy.map(square, itertools.count(), buffersize=2, chunksize=5)
    assert list(itertools.islice(found, 33)) == [x * x for x in range(33)]
    found.close()


def test_an_error_comes_at_its_place_in_a_buffer(lazy: Any) -> None:
    found = lazy.map(reciprocal, itertools.chain([1, 2, 0], itertools.count(1)), buffersize=2)
    assert (next(found), next(found)) == (1.0, 0.5)
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize(("buffersize", "kind_of_error"), [(0, ValueError), (-1, ValueError), ("3", TypeError)])
def test_a_buffer_holds_a_whole_number_of_jobs(lazy: Any, buffersize: Any, kind_of_error: type[Exception]) -> None:
    with pytest.raises(kind_of_error, match="buffersize must be"):
        lazy.map(square, range(4), buffersize=buffersize)
