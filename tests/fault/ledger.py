"""What a run of the fault tests saw: counted by the tests, written as tests/fault/README.md.

A test counts through the `tally` fixture. Its counts travel in pytest's user properties, so they arrive from the
workers of xdist as well. What there is to run is known when it is collected: a test that is never heard of again, for
its worker died, is not so. Nothing in the table that comes out is typed in by hand but the words of table.py.
"""

import json
import os
import platform
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fault.table import FAULTS, FIGURES, Row

_TIMES: Final = "times injected"
_SAW: Final = "saw"
_COVERS: Final = "covers"
_TO: Final = "where to write which test covers what"
"""xdist's controller collects nothing, and its workers report what they collected by names alone."""


class Tally:
    """Where a test counts what it did."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def injected(self, times: int, *rows: str) -> None:
        """The fault was injected so many times more; a test that never says so has injected it once.

        That counts for each row that the test covers, or for `rows` alone.
        """
        self._properties.append((_TIMES, [times, *rows]))

    def count(self, figure: str, number: int) -> None:
        """Add to one of the figures of the run."""
        assert figure in FIGURES, figure
        self._properties.append((figure, number))

    def saw(self, what: str) -> None:
        """Tell something that was measured."""
        self._properties.append((_SAW, what))

    def checked(self, jobs: int, *, lost: int, doubled: int) -> None:
        """So many jobs were looked for; the caller asserts that none is lost or doubled."""
        self.count("jobs checked", jobs)
        self.count("lost", lost)
        self.count("doubled", doubled)


class Ledger:
    """A pytest plugin: gathers the tallies of all tests, and writes the table where it was asked for."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._covers: dict[str, list[str]] = {}
        """The rows of each test that is to run."""
        self._to: Path | None = None
        self._reported: set[str] = set()
        self._times: Counter[str] = Counter()
        self._figures: Counter[str] = Counter()
        self._tests: Counter[str] = Counter()
        self._failed: dict[str, list[str]] = defaultdict(list)
        self._skipped: dict[str, list[str]] = defaultdict(list)
        self._saw: dict[str, list[str]] = defaultdict(list)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker of xdist where to write what it is to run."""
        self._to = Path(tempfile.gettempdir(), f"covers-{node.workerinput['testrunuid']}.json")
        node.workerinput[_TO] = str(self._to)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what is to run, before anybody hears that it is known."""
        for item in session.items:
            rows = [row for mark in item.iter_markers(_COVERS) for row in mark.args]
            if unknown := set(rows) - FAULTS.keys():
                raise pytest.UsageError(f"{item.nodeid} covers {unknown}, which tests/fault/table.py does not have")
            if rows:
                self._covers[item.nodeid] = rows
        if to := getattr(session.config, "workerinput", {}).get(_TO):
            mine = Path(f"{to}.{os.getpid()}")
            mine.write_text(json.dumps(self._covers), "utf-8")
            mine.rename(to)  # The others write the same.

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Hear what is to run."""
        assert self._to is not None
        self._covers = json.loads(self._to.read_text("utf-8"))

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the end of a test. Where its worker died, xdist makes up a report, of no phase."""
        is_end = report.when == "call" or (report.when == "setup" and not report.passed)
        if is_end or (report.when == "teardown" and report.failed):
            self._take_in(report)
        elif report.failed:
            self._reported.discard(report.nodeid)

    def _take_in(self, report: pytest.TestReport) -> None:
        self._reported.add(report.nodeid)
        names = set(self._covers.get(report.nodeid, ()))
        if report.skipped:
            reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"
            for name in names:
                self._skipped[name].append(reason.removeprefix("Skipped: "))
            return
        said: dict[str, list[Any]] = defaultdict(list)
        for key, value in report.user_properties:
            said[key].append(value)
        for figure in FIGURES:
            self._figures[figure] += sum(said[figure])
        for name in names:
            self._tests[name] += 1
            self._times[name] += sum(times for times, *rows in said[_TIMES] or [[1]] if not rows or name in rows)
            self._saw[name] += said[_SAW]
            if report.failed:
                self._failed[name].append(report.nodeid.partition("::")[2])

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the table."""
        if hasattr(session.config, "workerinput"):
            return
        if self._to is not None:
            self._to.unlink(missing_ok=True)
        for nodeid in self._covers.keys() - self._reported:
            for name in self._covers[nodeid]:
                self._failed[name].append(f"{nodeid.partition('::')[2]}, which never came to its end")
        if self._path:
            Path(self._path).write_text("\n".join(self._page()) + "\n", "utf-8")

    def _page(self) -> Iterable[str]:
        yield "# Every fault, and what became of it"
        yield ""
        yield "Written by `scripts/fault`, which runs every test that says what it covers, with real processes."
        yield "Do not edit: the words are in `table.py`, the numbers were counted by the run."
        yield f"This run: Linux {platform.release()}, Python {platform.python_version()}."
        yield ""
        yield "| counted by this run | |"
        yield "|---|--:|"
        yield from (f"| {figure} | {self._figures[figure]:,} |" for figure in FIGURES)
        yield ""
        yield from self._section("Faults", [name for name in FAULTS if not name.startswith("P")])
        yield from self._section("Promises of the pool", [name for name in FAULTS if name.startswith("P")])
        yield "## Not injected here"
        yield ""
        yield "| | fault | why, and what covers it instead |"
        yield "|---|---|---|"
        yield from (f"| {name} | {row.fault} | {row.instead} |" for name, row in FAULTS.items() if row.instead)

    def _section(self, title: str, names: list[str]) -> Iterable[str]:
        yield f"## {title}"
        yield ""
        yield "| | fault | injected how | times | expected | seen |"
        yield "|---|---|---|--:|---|---|"
        for name in names:
            row: Row = FAULTS[name]
            if not row.instead:
                seen = self._seen(name)
                yield f"| {name} | {row.fault} | {row.injected} | {self._times[name]:,} | {row.expected} | {seen} |"
        yield ""

    def _seen(self, name: str) -> str:
        parts = []
        if self._failed[name]:
            parts.append(f"**not so in {', '.join(self._failed[name])}**")
        elif self._tests[name]:
            parts.append(f"so in {self._tests[name]} tests" if self._tests[name] > 1 else "so")
        parts += dict.fromkeys(self._saw[name])
        parts += [f"not everywhere: {reason}" for reason in dict.fromkeys(self._skipped[name])]
        return "; ".join(parts) or "**not run**"
