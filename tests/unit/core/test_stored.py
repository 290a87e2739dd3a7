"""Entries as JSON: what cannot be one is told with its batch."""

from typing import Any

import pytest

from batchd.core.stored import entry_of
from batchd.errors import FormatError


@pytest.mark.parametrize(
    "fields", [{}, {"entry": "Nothing"}, {"entry": "Sealed", "more": 1}, {"entry": "Charged", "history": 3}]
)
def test_what_is_no_entry_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="batch b: unreadable log entry"):
        entry_of("b", fields)
