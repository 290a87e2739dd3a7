"""`batchd.map` and `batchd.starmap` without a journal: lazy on both sides, bounded, and gone without a trace."""

import itertools
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

import pytest
from tqdm import tqdm

import batchd
from batchd.client.throwaway import throwaway_folder
from batchd.edge.folder import journal_id
from batchd.edge.orphans import tagged
from batchd.errors import UsageError
from batchd.settings import IDLE_TEMPLATES_MAX
from tests.commands import Desk, dead, is_template, until
from tests.contract.calls import WAIT_S, Counter, Door, fail, kill_myself, nap, notes, square, survive_from
from tests.faces.jobs import note_and_nap

LARGE = 8 << 20


class Pulled:
    """An input that counts how far it was read."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> "Pulled":
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self.count += 1
        return item


def half(x: int) -> float:
    if x % 2:
        raise ValueError(f"odd: {x}")
    return x / 2


def spread_map(n: int) -> list[int]:
    """A map within a job of a map."""
    return list(batchd.map(square, range(n), workers=1))


def workers_of_this_process() -> list[int]:
    """Return the workers of this process's throw-away journal."""
    return [pid for pid in tagged(journal_id(throwaway_folder())) if not dead(pid) and not is_template(pid)]


def supervisor_bytes() -> int:
    """Return the memory that is the supervisor's own."""
    from batchd.client.connection import request

    status = Path(f"/proc/{request(throwaway_folder(), 'hello')['pid']}/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def templates() -> list[int]:
    """Return the templates of this process's throw-away journal."""
    return [pid for pid in tagged(journal_id(throwaway_folder())) if not dead(pid) and is_template(pid)]


def busy_jobs() -> int:
    """Return how many jobs of this process's maps are running."""
    from batchd.client.connection import request

    return sum(1 for row in request(throwaway_folder(), "status")["workers"] if row["batch"])


# --- What it leaves ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_maps_of_ever_other_functions_leave_neither_these_nor_a_process_for_each() -> None:
    before = supervisor_bytes()
    for number in range(IDLE_TEMPLATES_MAX + 2):
        large = bytes([number]) * LARGE
        assert list(batchd.map(lambda x, large=large: large[x], [0], workers=1)) == [number]
    until(lambda: len(templates()) <= IDLE_TEMPLATES_MAX, "most templates are gone")
    until(lambda: supervisor_bytes() < before + 2 * LARGE, "the functions are gone")


# --- What it gives -----------------------------------------------------------------------------------------------


def test_results_come_in_order() -> None:
    assert list(batchd.map(square, range(5_000), workers=2)) == [x * x for x in range(5_000)]


def test_results_that_need_pickling_come_in_order() -> None:
    assert list(batchd.map(lambda x: {"x": [x]}, range(300), workers=2)) == [{"x": [x]} for x in range(300)]


def test_unordered_results_are_the_same_ones() -> None:
    found = list(batchd.map(square, range(5_000), workers=2, ordered=False))
    assert sorted(found) == [x * x for x in range(5_000)]


def test_unordered_results_do_not_wait_for_the_slow_one(tmp_path: Path) -> None:
    door = Door(tmp_path)
    results = batchd.map(partial(door.enter_from, 99), [99, 1, 2, 3], workers=2, ordered=False)
    first = [next(results) for _ in range(3)]
    door.open()
    assert sorted(first) == [1, 2, 3]
    assert list(results) == [99]


@pytest.mark.parametrize("empty", [[], iter(()), range(0)])
def test_no_input_gives_no_results(empty: Any) -> None:
    assert list(batchd.map(square, empty)) == []


def test_several_iterables_end_with_the_shortest() -> None:
    assert list(batchd.map(pow, [2, 3, 4], (5, 2), workers=1)) == [32, 9]
    assert list(batchd.map(lambda a, b, c: a + b + c, "ab", "cd", itertools.count().__iter__() and "ef")) == [
        "ace",
        "bdf",
    ]


def test_starmap_spreads_each_item() -> None:
    assert list(batchd.starmap(pow, [(2, 5), [3, 2], iter((10, 3, 7))], workers=1)) == [32, 9, 6]


def test_functions_of_every_kind() -> None:
    three = 3
    assert list(batchd.map(lambda x: x + three, [1, 2], workers=1)) == [4, 5]
    assert list(batchd.map(Counter(10).plus, [1, 2], workers=1)) == [11, 12]
    assert list(batchd.map(Counter(10), [1, 2], workers=1)) == [9, 8]
    assert list(batchd.map(partial(pow, 2), [1, 2], workers=1)) == [2, 4]


# --- Laziness ----------------------------------------------------------------------------------------------------


def test_nothing_begins_before_the_first_result_is_asked_for(ran: str) -> None:
    items = Pulled(iter(range(3)))
    results = batchd.map(partial(note_and_nap, ran), items, workers=1)
    assert (items.count, notes(ran)) == (0, [])
    assert next(results) == 0


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.covers("P17")
def test_input_is_read_no_further_than_the_window(ordered: bool) -> None:
    items = Pulled(itertools.count())
    results = batchd.map(square, items, workers=2, buffersize=100, ordered=ordered)
    for taken in range(1, 1_001):
        next(results)
        assert items.count <= taken + 100
    results.close()


def test_a_window_of_one_gives_one_after_the_other() -> None:
    items = Pulled(iter(range(20)))
    for taken, result in enumerate(batchd.map(square, items, workers=2, buffersize=1), 1):
        assert (result, items.count) == ((taken - 1) ** 2, taken)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.covers("P17")
def test_an_endless_input_works(ordered: bool) -> None:
    results = batchd.map(square, itertools.count(), workers=2, ordered=ordered)
    assert len(set(itertools.islice(results, 20_000))) == 20_000
    results.close()


def test_the_default_window_bounds_an_endless_input() -> None:
    items = Pulled(itertools.count())
    results = batchd.map(square, items, workers=2)
    assert list(itertools.islice(results, 5_000)) == [x * x for x in range(5_000)]
    assert items.count <= 5_000 + 131_072
    results.close()


def test_slow_input_gives_results_as_they_are_ready() -> None:
    given: list[float] = []

    def slowly() -> Iterator[int]:
        for x in range(10):
            nap(0.15)
            given.append(monotonic())
            yield x

    ahead = [len(given) - taken for taken, _ in enumerate(batchd.map(square, slowly(), workers=1), 1)]
    assert max(ahead[3:]) <= 1  # Later than the first worker's start.


def test_input_that_turns_slow_does_not_hold_back_results() -> None:
    """A long stretch of fast items must not make the next ones be waited for in a group."""
    given = 0

    def fast_then_slow() -> Iterator[int]:
        nonlocal given
        for x in range(20_010):
            if x >= 20_000:
                nap(0.15)
            given += 1
            yield x

    behind = [given - taken for taken, _ in enumerate(batchd.map(square, fast_then_slow(), workers=1), 1)]
    assert max(behind[20_003:]) <= 2


def test_an_error_of_the_input_comes_out() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("the input broke")

    results = batchd.map(square, broken(), workers=1)
    assert next(results) == 1
    with pytest.raises(LookupError, match="the input broke"):
        next(results)


@pytest.mark.parametrize("key", [None, str])
def test_what_came_before_an_error_of_the_input_is_given(desk: Desk, key: Any) -> None:
    is_mended = False

    def broken() -> Iterator[int]:
        yield from range(50)
        if not is_mended:
            raise LookupError("the input broke")
        yield 50

    def squares() -> Iterator[int]:
        return batchd.map(square, broken(), journal=desk.journal, name="n", key=key, workers=1)

    results = squares()
    assert [next(results) for _ in range(50)] == [x * x for x in range(50)]
    with pytest.raises(LookupError, match="the input broke"):
        next(results)
    is_mended = True
    assert list(squares()) == [x * x for x in range(51)]


# --- Failures ----------------------------------------------------------------------------------------------------


def test_a_failure_is_raised_in_its_place() -> None:
    results = batchd.map(half, [0, 2, 3, 4], workers=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(batchd.JobFailed) as caught:
        next(results)
    assert caught.value.index == 2
    assert caught.value.attempt == 1
    assert isinstance(caught.value.__cause__, ValueError)
    assert "odd: 3" in str(caught.value)
    assert list(results) == []  # As with any generator that has raised.


def test_failures_may_be_returned() -> None:
    found: list[Any] = list(batchd.map(half, range(6), workers=2, on_error="return"))
    assert found[::2] == [0, 1, 2]
    assert [type(error) for error in found[1::2]] == [batchd.JobFailed] * 3
    assert [error.index for error in found[1::2]] == [1, 3, 5]


def test_failures_may_be_skipped() -> None:
    assert list(batchd.map(half, range(6), workers=2, on_error="skip")) == [0, 1, 2]


def test_many_failures_of_one_kind_do_not_end_a_map_that_skips_them() -> None:
    found = list(batchd.map(partial(fail, ValueError), ["same"] * 300, workers=2, on_error="return"))
    assert len(found) == 300


def test_a_job_that_fails_is_tried_again(ran: str) -> None:
    results = batchd.map(lambda _: survive_from(ran, 3, fail, ValueError, "not yet"), [0], workers=1, retries=2)
    assert list(results) == [3]
    assert notes(ran) == ["1", "2", "3"]


def test_a_job_that_takes_too_long_is_ended() -> None:
    began = monotonic()
    found = list(batchd.map(nap, [60, 0.0], workers=2, timeout=0.3, on_error="return"))
    assert isinstance(found[0], batchd.JobTimeout)
    assert isinstance(found[0], TimeoutError)
    assert found[1] is None
    assert monotonic() - began < 20


def test_a_crash_costs_its_own_job_only() -> None:
    def crash_at_three(x: int) -> int:
        if x == 3:
            kill_myself(9)
        return x

    found: list[Any] = list(batchd.map(crash_at_three, range(6), workers=2, crashes_max=1, on_error="return"))
    assert [x for x in found if not isinstance(x, BaseException)] == [0, 1, 2, 4, 5]
    assert isinstance(found[3], batchd.JobCrashed)
    assert (found[3].signal, found[3].index) == (9, 3)


def test_an_item_that_does_not_pickle_fails_its_own_job() -> None:
    bad = {"name": "b", "parts": [1, threading.Lock()]}
    found = list(batchd.map(lambda item: item["name"], [{"name": "a"}, bad, {"name": "c"}], on_error="return"))
    assert (found[0], found[2]) == ("a", "c")
    assert isinstance(found[1], batchd.JobFailed)
    assert "['parts'][1]" in str(found[1])
    assert "lock" in str(found[1])


def test_a_result_that_does_not_pickle_fails_its_own_job() -> None:
    found = list(batchd.map(lambda x: threading.Lock() if x else x, [0, 1], workers=1, on_error="return"))
    assert found[0] == 0
    assert isinstance(found[1], batchd.JobFailed)


def test_a_function_that_does_not_pickle_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock") as caught:
        next(batchd.map(lambda _: lock.locked(), [1]))
    assert any("test_a_function_that_does_not_pickle_is_named.<locals>.<lambda>" in n for n in caught.value.__notes__)


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"workers": 0}, UsageError, "0"),
        ({"workers": -2}, UsageError, "-2"),
        ({"workers": "none"}, UsageError, "none"),
        ({"retries": -1}, UsageError, "retries"),
        ({"memory_per_job": "5M"}, UsageError, "memory_per_job must be 16M or more"),
        ({"crashes_max": 0}, UsageError, "crashes_max"),
        ({"timeout": 0}, UsageError, "timeout"),
        ({"on_error": "ignore"}, UsageError, "on_error"),
        ({"buffersize": 0}, ValueError, "buffersize"),
        ({"key": "id"}, UsageError, "key="),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_call(options: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        batchd.map(square, [1], **options)


def test_the_call_itself_is_checked() -> None:
    with pytest.raises(TypeError, match="at least one iterable"):
        batchd.map(square)
    with pytest.raises(TypeError, match="not callable"):
        batchd.map(3, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        batchd.map(square, 3)  # type: ignore[arg-type]


def test_a_progress_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="progress="):
        next(batchd.map(square, [1], progress=7))


def test_workers_may_be_a_share_of_the_machine() -> None:
    assert list(batchd.map(square, range(10), workers="50%")) == [x * x for x in range(10)]
    assert list(batchd.map(square, range(10), workers="100%")) == [x * x for x in range(10)]


# --- Progress ----------------------------------------------------------------------------------------------------


def test_a_function_is_told_of_progress() -> None:
    told: list[dict[str, Any]] = []
    found = list(batchd.map(half, range(50), workers=2, on_error="skip", progress=told.append))
    assert len(found) == 25
    assert told[-1] == {"done": 50, "size": 50, "failed": 25, "state": "finished"}
    assert [each["done"] for each in told] == sorted(each["done"] for each in told)
    assert told[0]["size"] is None


def test_tqdm_is_told_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(batchd.map(square, range(200), workers=2, progress=tqdm))) == 200
    assert "200/200" in capsys.readouterr().err


def test_without_a_terminal_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(list(batchd.map(square, range(200), workers=2))) == 200
    assert capfd.readouterr() == ("", "")


# --- Side by side, and one in the other --------------------------------------------------------------------------


def test_two_maps_at_once_in_one_process() -> None:
    one, two = batchd.map(square, itertools.count(), workers=1), batchd.map(abs, range(0, -500, -1), workers=1)
    for x in range(500):
        assert (next(one), next(two)) == (x * x, x)
    one.close()


def test_maps_in_several_threads() -> None:
    found: dict[int, list[int]] = {}

    def run(number: int) -> None:
        found[number] = list(batchd.map(partial(pow, number), range(50), workers=1))

    threads = [threading.Thread(target=run, args=(number,)) for number in (2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert found == {number: [number**x for x in range(50)] for number in (2, 3, 5)}


def test_a_map_of_a_map() -> None:
    inner = batchd.map(square, range(100), workers=1, buffersize=10)
    assert list(batchd.map(square, inner, workers=1)) == [x**4 for x in range(100)]


def test_a_map_within_a_job_of_a_map() -> None:
    assert list(batchd.map(spread_map, [2, 3], workers=1)) == [[0, 1], [0, 1, 4]]


# --- Leaving early -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["break", "close", "forget"])
def test_whoever_leaves_early_leaves_nothing_running(way: str, ran: str) -> None:
    results = batchd.map(partial(note_and_nap, ran), itertools.count(), workers=2)
    if way == "break":
        for _ in results:
            break
    else:
        next(results)
    if way == "close":
        results.close()
    del results
    until(lambda: not busy_jobs(), "no job is running")
    before = len(notes(ran))
    select([], [], [], 0.3)
    assert len(notes(ran)) == before
    until(
        lambda: not list((throwaway_folder() / "batches").glob("*/lock.mdb")) or not workers_of_this_process(), "idle"
    )
