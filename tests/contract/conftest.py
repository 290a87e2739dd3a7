"""Executors for the tests of the contract. Whatever a test makes is shut down after it."""

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from tests.contract.calls import Door
from tests.contract.executors import KINDS, Make, ours


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Which executor: what asks for it runs once with each."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pool(kind: str) -> Iterator[Executor]:
    """An executor of two workers that the tests of a module share: they neither break it nor shut it down."""
    with KINDS[kind](2) as made:
        yield made


@pytest.fixture
def opened() -> Iterator[list[Executor]]:
    """The executors of one test."""
    made: list[Executor] = []
    yield made
    for executor in made:
        executor.shutdown(cancel_futures=True)


@pytest.fixture
def make(kind: str, opened: list[Executor]) -> Make:
    """Makes executors of this kind."""

    def make_one(max_workers: int | None = None, **options: Any) -> Executor:
        opened.append(KINDS[kind](max_workers, **options))
        return opened[-1]

    return make_one


@pytest.fixture
def make_ours(opened: list[Executor]) -> Any:
    """Makes batchd's executors, with options only they have."""

    def make_one(max_workers: int | None = None, **options: Any) -> Executor:
        opened.append(ours(max_workers, **options))
        return opened[-1]

    return make_one


@pytest.fixture
def door(tmp_path: Path, opened: list[Executor]) -> Iterator[Door]:
    """A closed door. It is opened at the latest before the executors of the test are shut down."""
    folder = tmp_path / "door"
    folder.mkdir()
    made = Door(folder)
    yield made
    made.open()
