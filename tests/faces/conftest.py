"""Fixtures of the tests of what Python programs call."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import batchd
from tests.commands import Desk
from tests.faces.programs import Programs


@pytest.fixture
def programs(desk: Desk) -> Iterator[Programs]:
    """A folder for scripts. They share the journal with `desk`, which sees at the end that nothing is alive."""
    made = Programs(desk.folder)
    yield made
    made.close()


@pytest.fixture
def client(desk: Desk) -> Iterator[batchd.Client]:
    """A client of the journal of `desk`."""
    with batchd.Client(desk.journal, workers=2) as made:
        yield made


@pytest.fixture
def ran(tmp_path: Path) -> str:
    """Where jobs note that they ran, a line each."""
    return str(tmp_path / "ran")
