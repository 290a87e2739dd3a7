"""What the examples in docstrings find: a journal and a client of it, which all of them share."""

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import batchd


@pytest.fixture(scope="session")
def examples() -> Iterator[dict[str, Any]]:
    """Start one supervisor for all: each would take longer to start than its example takes."""
    with tempfile.TemporaryDirectory() as folder, batchd.Client(folder, workers=1) as client:
        yield {"folder": folder, "client": client}


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest) -> None:
    test = getattr(request.node, "dtest", None)
    if test is not None and any(name in example.source for example in test.examples for name in ("client", "folder")):
        found = request.getfixturevalue("examples")
        test.globs.update({name: value for name, value in found.items() if name not in test.globs})
