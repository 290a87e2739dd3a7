"""What callables and arguments hold counts when they are sent, and what is wrong with them is named."""

from concurrent.futures import Executor
from typing import Any

import pytest

from batchd.errors import UsageError
from tests.contract.calls import WAIT_S, Counter
from tests.contract.executors import Make


def test_a_bound_method_is_sent_as_it_is_now(make: Make) -> None:
    executor = make(1)
    counter = Counter(1)
    method = counter.plus
    assert executor.submit(method, 1).result(WAIT_S) == 2
    counter.start = 10
    assert executor.submit(method, 1).result(WAIT_S) == 11


def test_an_object_that_is_called_is_sent_as_it_is_now(make: Make) -> None:
    executor = make(1)
    counter = Counter(1)
    first = executor.submit(counter, 1).result(WAIT_S)
    counter.start = 10
    assert executor.submit(counter, 1).result(WAIT_S) != first


def test_a_function_is_sent_with_what_its_helpers_are_now(make_ours: Make) -> None:
    helpers = {"name": lambda: "old"}

    def call() -> str:
        return helpers["name"]()

    executor: Executor = make_ours(1)
    assert executor.submit(call).result(WAIT_S) == "old"
    helpers["name"] = lambda: "new"
    assert executor.submit(call).result(WAIT_S) == "new"


def test_the_part_that_does_not_pickle_is_named(make_ours: Make) -> None:
    future = make_ours(1).submit(len, {"rows": [1, (n for n in "abc")]})
    error = future.exception(WAIT_S)
    assert error is not None
    assert error.__notes__ == ["while pickling the argument args[0]['rows'][1], a generator"]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"retries": -1}, ValueError, "retries must be 0 or more"),
        ({"retries": "2"}, TypeError, "integer"),
        ({"crashes_max": 0}, ValueError, "crashes_max must be 1 or more"),
        ({"memory_per_job": 5 << 20}, UsageError, "memory_per_job must be 16M or more"),
        ({"memory_per_job": 1.5}, UsageError, 'give bytes, or a text such as "2G"'),
        ({"max_workers": 1.5}, TypeError, "integer"),
    ],
)
def test_options_without_a_meaning_are_refused(
    make_ours: Make, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        make_ours(**options)
