"""Answers that come when something is durable: they come, whatever became of the batch meanwhile."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from batchd.errors import BatchdError, UsageError
from batchd.supervisor.requests import Requests


class Asker:
    """A client that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def reply(self, number: int, fields: dict[str, Any]) -> None:
        """Take an answer."""
        self.told.append((number, fields))

    def refuse(self, number: int, error: BatchdError) -> None:
        """Take a refusal."""
        self.told.append((number, str(error)))


def requests_of(later: list[Callable[[], None]]) -> Requests:
    """Return the rules of a supervisor that runs no batch."""
    requests = object.__new__(Requests)
    requests._supervisor = SimpleNamespace(journals={}, after_commit=later.append)
    return requests


def test_an_answer_that_cannot_be_made_is_a_refusal() -> None:
    later: list[Callable[[], None]] = []
    requests, asker = requests_of(later), Asker()

    def refused() -> dict[str, Any]:
        raise UsageError("no")

    def broken() -> dict[str, Any]:
        raise KeyError("gone")

    for number, fields_of in enumerate((dict, refused, broken)):
        requests._when_durable(asker, number, fields_of)  # type: ignore[arg-type]
    assert asker.told == []
    later[0]()
    later[1]()
    with pytest.raises(KeyError):  # For the log.
        later[2]()
    assert asker.told == [(0, {}), (1, "no"), (2, "cannot tell what came of it: KeyError: 'gone'")]
