"""No row of the fault table is dropped silently: each has a test that says so, or a reason."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import ROOT
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


def test_the_page_has_the_words_of_the_table() -> None:
    lines = (TESTS / "fault" / "README.md").read_text("utf-8").splitlines()
    shown = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    for name, row in FAULTS.items():
        if row.instead:
            assert shown[name] == f"| {name} | {row.fault} | {row.instead} |"
        else:
            begin, end = f"| {name} | {row.fault} | {row.injected} | ", f" | {row.expected} | "
            assert shown[name].startswith(begin), "run scripts/fault, which writes the page"
            assert shown[name].removeprefix(begin).lstrip("0123456789,").startswith(end), name


# --- What a run of it tells --------------------------------------------------------------------------------------

SOME_TESTS = """
import os, pytest

@pytest.mark.covers("W1", "W2")
def test_well(tally):
    tally.injected(5, "W1")

@pytest.mark.covers("W1")
def test_dies():
    os._exit(3)

@pytest.mark.covers("W3")
def test_is_well_by_itself():
    pass

@pytest.fixture
def deadly():
    os._exit(3)

@pytest.mark.covers("W4")
def test_dies_early(deadly):
    pass

@pytest.fixture
def deadly_in_the_end():
    yield
    os._exit(3)

@pytest.mark.covers("W6")
def test_dies_late(deadly_in_the_end):
    pass

@pytest.mark.covers("W5")
def test_is_not_so(tally):
    tally.injected(2)
    assert not tally
"""


@pytest.mark.slow
def test_a_test_whose_worker_dies_is_shown_as_not_so(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    command = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-n1", "--fault-table", "page.md", "test_some.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    page = (tmp_path / "page.md").read_text("utf-8").splitlines()
    lines = [line.removesuffix(" |").split(" | ") for line in page if line.startswith(("| W", "| S"))]
    assert [[line[0], line[3], line[-1]] for line in lines[:7]] == [
        ["| W1", "5", "**not so in test_dies, which never came to its end**"],
        ["| W2", "0", "so"],
        ["| W3", "1", "so"],
        ["| W4", "0", "**not so in test_dies_early, which never came to its end**"],
        ["| W5", "2", "**not so in test_is_not_so**"],
        ["| W6", "1", "**not so in test_dies_late, which never came to its end**"],
        ["| W7", "0", "**not run**"],
    ]
    assert not list(tmp_path.glob("covers-*")), "a file is left"
