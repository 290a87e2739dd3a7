"""`cost=`: of what was given, the costliest starts first; results stay in the order of the input."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import batchd
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import list_batches
from batchd.errors import InputError
from tests.commands import Desk, until
from tests.contract.calls import Door, notes
from tests.faces.jobs import Item, work

COSTS = [10, 4, 6, 5, 9, 7]
"""The first job waits until everything was handed over, and costs most: it is the first in any case."""


ITEMS = [Item(number, cost) for number, cost in enumerate(COSTS)]


class Work:
    """A task that notes what it starts, one job at a time."""

    def __init__(self, folder: Path) -> None:
        self.door = Door(folder)
        self._path = str(folder / "started")
        self.task = partial(work, self.door, self._path)

    def started(self) -> list[int]:
        return [int(number) for number in notes(self._path)]

    def open(self) -> None:
        Path(self.door.folder, "open").touch()


@pytest.fixture
def jobs(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture
def client(desk: Desk) -> Iterator[batchd.Client]:
    with batchd.Client(desk.journal, workers=1) as made:
        yield made


BY_COST = [0, 4, 5, 2, 3, 1]


@pytest.mark.parametrize("cost", ["cost", lambda item: item.cost])
def test_map_starts_the_costliest_first(desk: Desk, jobs: Work, cost: Any) -> None:
    found: list[int] = []
    call = batchd.map(jobs.task, ITEMS, cost=cost, workers=1, journal=desk.journal)
    taker = Thread(target=lambda: found.extend(call))
    taker.start()
    until(jobs.started, "the first job runs")
    until(lambda: all_is_there(desk), "everything is on disk")
    jobs.open()
    taker.join()

    assert found == list(range(len(ITEMS)))
    assert jobs.started() == BY_COST


def all_is_there(desk: Desk) -> bool:
    (known,) = list_batches(desk.journal)
    return isinstance(known, BatchJournal) and known.facts.size == len(ITEMS)


def test_a_batch_of_a_client_starts_the_costliest_first(client: batchd.Client, jobs: Work) -> None:
    batch = client.submit_batch(jobs.task, ITEMS, cost="cost")
    jobs.open()

    assert list(batch.results()) == list(range(len(ITEMS)))
    assert jobs.started() == BY_COST


def test_input_that_is_added_comes_before_what_is_cheaper(client: batchd.Client, jobs: Work) -> None:
    batch = client.submit_batch(jobs.task, ITEMS[:3], cost="cost", key="number", seal=False)
    batch.add(ITEMS[3:5])
    batch.add(ITEMS[5:], cost=lambda item: item.cost / 2)
    batch.seal()
    jobs.open()

    assert list(batch.results()) == list(range(len(ITEMS)))
    assert jobs.started() == [0, 4, 2, 3, 1, 5]


def test_a_batch_that_was_found_again_goes_on_by_cost(client: batchd.Client, desk: Desk, jobs: Work) -> None:
    first = client.submit_batch(jobs.task, ITEMS[:1], name="found", seal=False)
    first.close(at_once=True)
    found = client.batch("found")
    found.add(ITEMS[1:], cost="cost")
    found.seal()
    jobs.open()

    assert list(found.results()) == list(range(len(ITEMS)))
    assert sorted(jobs.started()) in ([*range(len(ITEMS))], [0, *range(len(ITEMS))])


def test_the_costs_are_there_after_a_pause(client: batchd.Client, jobs: Work) -> None:
    batch = client.submit_batch(jobs.task, ITEMS, cost="cost", name="kept")
    batch.close(at_once=True)
    jobs.open()
    begun = len(jobs.started())
    again = client.submit_batch(jobs.task, ITEMS, name="kept")

    assert again.skipped == len(ITEMS), "cost= is no part of what the batch is"
    assert list(again.results()) == list(range(len(ITEMS)))
    assert jobs.started()[begun:] == BY_COST


def test_asyncio_does_the_same(desk: Desk, jobs: Work) -> None:
    async def application() -> list[Any]:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            batch = await client.submit_batch(jobs.task, ITEMS[:4], cost="cost", seal=False)
            await batch.add(ITEMS[4:], cost="cost")
            await batch.seal()
            jobs.open()
            return [result async for result in batch.results()]

    assert asyncio.run(application()) == list(range(len(ITEMS)))
    assert jobs.started() == BY_COST


def test_what_is_not_known_comes_in_the_order_of_the_input(client: batchd.Client, jobs: Work) -> None:
    items = [ITEMS[0], Item(1, None), Item(2, 0), Item(3, 8.5), Item(4, None)]
    batch = client.submit_batch(jobs.task, items, cost="cost")
    jobs.open()

    assert list(batch.results()) == [0, 1, 2, 3, 4]
    assert jobs.started() == [0, 3, 1, 2, 4]


@pytest.mark.parametrize("bad", [-1, "7", True, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_cost_is_told_with_the_item(desk: Desk, bad: Any) -> None:
    with pytest.raises(InputError, match=r"Item 1 of the input, \{'id': 1, 'cost': .* a number of 0 or more"):
        list(batchd.map(str, [{"id": 0, "cost": 1}, {"id": 1, "cost": bad}], cost="cost", journal=desk.journal))


@pytest.mark.parametrize("item", [{"id": 1}, ("a",), "text", 7])
def test_an_item_without_the_field_is_told(desk: Desk, item: Any) -> None:
    with pytest.raises(InputError, match=r"Item 1 of the input, .*, has no 'title', which cost='title' asks for"):
        list(batchd.map(str, [{"title": 1}, item], cost="title", journal=desk.journal))


@pytest.mark.parametrize("key", ["id", None])
def test_what_the_function_raises_is_raised_and_what_stands_before_is_given(
    client: batchd.Client, key: str | None
) -> None:
    batch = client.submit_batch(str, [], key=key, cost=lambda row: row["pages"], seal=False)
    rows = [{"id": 1, "pages": 3}, {"id": 2, "pages": 2}, {"id": 3}]
    with pytest.raises(KeyError) as raised:
        batch.add(rows)
    assert raised.value.__notes__ == ["while cost= looked at item 2 of the input, {'id': 3}"]
    assert batch.progress().size == 2

    assert batch.add(rows[2:], cost="id") == 1
    batch.seal()
    assert list(batch.results()) == [str(row) for row in rows]


def test_a_map_gives_the_results_of_what_stands_before_an_item_without_a_cost(desk: Desk) -> None:
    results = batchd.map(str, [1, 2, "x"], cost=lambda item: item + 1, journal=desk.journal)
    assert [next(results), next(results)] == ["1", "2"]
    with pytest.raises(TypeError):
        next(results)
