"""Entries as JSON: what cannot be one is told with its batch."""

import json
from typing import Any

import pytest

from batchd.core import entries as e
from batchd.core.facts import BatchFacts
from batchd.core.job import History, JobState
from batchd.core.stored import entry_of, facts_of, fields_of
from batchd.errors import FormatError


@pytest.mark.parametrize(
    "fields", [{}, {"entry": "Nothing"}, {"entry": "Sealed", "more": 1}, {"entry": "Charged", "history": 3}]
)
def test_what_is_no_entry_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="batch b: unreadable log entry"):
        entry_of("b", fields)


@pytest.mark.parametrize(
    "entry",
    [
        e.Sealed("b"),
        e.Attached("b", 2**64 - 1),
        e.Left("b", "c"),
        e.Charged("b", 3, 2, History(2, crashes=1)),
        e.Reopened("b", 1, ((0, 2), (5, 6)), JobState.FAILED),
        e.Noted("b", 7, b""),
        e.Submitted("b", 7, 9, (), "c", 1, "here", b"", ((0, 2.5), (8, 1e300))),
    ],
)
def test_an_entry_comes_back(entry: e.Entry) -> None:
    assert entry_of("b", json.loads(json.dumps(fields_of(entry)))) == entry


def test_what_earlier_formats_say_of_a_stint_is_none() -> None:
    assert entry_of("b", {"entry": "Attached", "epoch": 7}) == e.Attached("b", 0)
    assert facts_of("b", {"epoch": 7, "is_attached": True}) == BatchFacts("b", is_attached=True)
