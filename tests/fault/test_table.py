"""No row of the fault table is dropped silently: each has a test that says so, or a reason."""

import ast
from pathlib import Path

from tests.fault.table import FAULTS, IDS

TESTS = Path(__file__).resolve().parents[1]


def covered() -> set[str]:
    """Return the rows that some test says it covers, read from the source."""
    found: set[str] = set()
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.covers":
                found |= {ast.literal_eval(arg) for arg in node.args}
    return found


def test_no_row_is_missing() -> None:
    assert FAULTS.keys() == IDS


def test_each_row_has_a_test_or_a_reason() -> None:
    explained = {name for name, row in FAULTS.items() if row.instead}
    found = covered()
    assert not found - IDS, "covered, and not in the table"
    assert not IDS - found - explained, "neither covered nor explained"
    assert not found & explained, "both covered and explained away"


def test_the_page_shows_every_row() -> None:
    page = (TESTS / "fault" / "README.md").read_text("utf-8")
    missing = [name for name in IDS if f"\n| {name} | " not in page]
    assert not missing, "run scripts/fault, which writes the page"
