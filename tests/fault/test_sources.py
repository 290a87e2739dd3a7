"""Faults that a test cannot bring about without harm to the machine, held off by what the source may do at all."""

import ast
from pathlib import Path

import batchd
from tests.test_house import imports_in, parsed

PACKAGE = Path(batchd.__file__).parent
WALL = {"time.time", "datetime.now", "datetime.utcnow", "time.time_ns", "datetime.today"}
READ_BY_IT = {
    *("edge/pool.py", "edge/reports.py", "edge/journal.py", "edge/control.py", "edge/commits.py", "edge/template.py"),
    *("edge/strays.py", "edge/drafts.py"),
}
SHOWN = {
    "edge/lock.py",  # Since when a supervisor holds the journal, for people.
    "client/world.py",
    "worker/joblog.py",
    "worker/service.py",
}
"""Where people are told a time of day. Nothing here decides anything by it."""


def named(node: ast.expr) -> str:
    """Return the last two parts of a dotted name, '' for anything else."""
    match node:
        case ast.Attribute(ast.Name(id=of) | ast.Attribute(attr=of), attr):
            return f"{of}.{attr}"
    return ""


def calls(names: set[str]) -> set[str]:
    """Return the files that call one of these."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and named(node.func) in names:
                found.add(file.relative_to(PACKAGE).as_posix())
    return found


def test_nothing_that_decides_reads_the_wall_clock() -> None:
    deciding = ("core/", "supervisor/", "edge/", "worker/", "client/", "formats/")
    assert {file for file in calls(WALL) if file.startswith(deciding)} <= SHOWN


def test_only_the_journal_begins_transactions_that_write() -> None:
    """And only the supervisor opens it for that: nobody waits for a lock that a client holds."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(file.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "write" and ast.unparse(node.value) == "True":
                found.add(file.relative_to(PACKAGE).as_posix())
    assert found == {"edge/journal.py", "edge/drafts.py"}


def test_the_supervisor_has_nothing_to_unpickle_with() -> None:
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE).as_posix()
        if path.startswith(("supervisor/", "core/")) or path in READ_BY_IT:
            modules = {each.module for each in imports_in(f"batchd/{path}", parsed(file.read_text("utf-8")))}
            assert not modules & {"pickle", "cloudpickle", "batchd.formats.values"}, path
