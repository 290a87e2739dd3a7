"""Plots of what was measured: SVG files beside the results, drawn from what is kept of a run and from nothing else.

The same run gives the same bytes. Colours follow the reader's: those of lines do on light and dark paper, ink and
paper change places. Without matplotlib the page has no plots.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.n5_scale import DISK, MEMORY
from benchmarks.n6_restart import READING, READY, TO_FIRST_JOB, WORKED
from benchmarks.n9_workers import LENGTHS_S, busy_figure

_INK, _PAPER, _GRID = "#1f2328", "#ffffff", "#d1d9e0"
_DARK: Final = {_INK: "#e6edf3", _PAPER: "#0d1117", _GRID: "#3d444d"}
_LINES: Final = ("#2a84c6", "#d55e00", "#009e73", "#cc79a7", "#b8860b")
_MARKS: Final = "osD^v"
_SIZE: Final = (4.6, 3.2)
"""Inches, of one panel."""
_STYLE: Final = {
    "svg.hashsalt": "batchd",  # Or the names of clip paths are drawn at random.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), _PAPER),
}

Kept = Mapping[str, Any]
"""One contest, as it is kept."""


def write(run: Mapping[str, Any], folder: Path) -> list[str]:
    """Write a file for each contest that has a plot; return their names."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed (pip install 'batchd[bench]')")
        return []
    names = []
    for contest in run["contests"]:
        name = name_of(contest)
        if name and any(each["figures"] for each in contest["contenders"]):
            (folder / name).write_text(svg(contest), "utf-8")
            names.append(name)
    return names


def name_of(contest: Kept) -> str:
    """The file of a contest's plot, '' when it has none.

    >>> name_of({"number": "N9", "title": "anything"}), name_of({"number": "N1", "title": "anything"})
    ('n9.svg', '')
    """
    return f"{contest['number'].lower()}.svg" if _drawer(contest) else ""


def svg(contest: Kept) -> str:
    """A contest's plot."""
    drawer = _drawer(contest)
    assert drawer is not None
    panels, draw = drawer
    matplotlib = importlib.import_module("matplotlib")
    figures = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(_SIZE[0] * panels, _SIZE[1]), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        draw(contest, axes)
        for each in axes:
            each.minorticks_off()
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _with_dark(text.getvalue())


def _with_dark(text: str) -> str:
    """The picture with rules for readers whose paper is dark."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )
    head, _, rest = text.partition("<defs>")
    return f"{head}<style>@media (prefers-color-scheme: dark){{{rules}}}</style>\n <defs>{rest}"


def _drawer(contest: Kept) -> tuple[int, Callable[[Kept, Sequence[Any]], None]] | None:
    for number, word, panels, draw in _DRAWN:
        if contest["number"] == number and word in contest["title"]:
            return panels, draw
    return None


# --- What is drawn -------------------------------------------------------------------------------------------------


def _tail(contest: Kept, panels: Sequence[Any]) -> None:
    """How evenly each contender ended a heavy-tailed batch: every round, and the median."""
    (axes,) = panels
    rows = [(name, found) for name, found in _each(contest, "efficiency") if found]
    for at, (_, found) in enumerate(reversed(rows)):
        axes.plot([100 * share for share in found], [at] * len(found), "o", color=_LINES[0], mfc="none")
        axes.plot([100 * median(found)], [at], "|", color=_INK, markersize=14)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(right=100)
    axes.set_xlabel("greedy bound / time taken, %")
    axes.grid(visible=False, axis="y")


def _growth(contest: Kept, panels: Sequence[Any]) -> None:
    """Memory and journal against the size of a batch."""
    memory, journal = panels
    sizes, found = _by_size(contest, MEMORY)
    memory.plot(sizes, found, "-o", color=_LINES[0])
    memory.axhline(200, color=_LINES[1], linestyle="--", linewidth=1)
    memory.annotate("goal: below 200 MiB", (sizes[0], 200), (0, -11), textcoords="offset points", color=_LINES[1])
    memory.set_ylim(0, 220)
    memory.set_ylabel("supervisor's own memory, peak, MiB")
    sizes, found = _by_size(contest, DISK)
    mib = [each * size / 2**20 for each, size in zip(found, sizes, strict=True)]
    journal.plot(sizes, mib, "-o", color=_LINES[0], label="journal on disk")
    line = [found[-1] * size / 2**20 for size in sizes]
    journal.plot(sizes, line, "--", color=_LINES[1], linewidth=1, label=f"{found[-1]:.1f} bytes a job")
    journal.set_yscale("log")
    journal.set_ylabel("journal, MiB")
    journal.legend(frameon=False)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("jobs in the batch")


def _restart(contest: Kept, panels: Sequence[Any]) -> None:
    """How long a restart takes against the size of a batch."""
    (axes,) = panels
    rows = (
        (TO_FIRST_JOB, "first job runs"),
        (READY, "supervisor answers"),
        (WORKED, "supervisor's CPU time"),
        (READING, "journal read once"),
    )
    for (figure, label), color, mark in zip(rows, _LINES, _MARKS, strict=False):
        sizes, found = _by_size(contest, figure)
        axes.plot(sizes, found, f"-{mark}", color=color, label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("jobs in the batch, half of them done")
    axes.set_ylabel("seconds after the start")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _workers(contest: Kept, panels: Sequence[Any]) -> None:
    """How busy workers are against the length of their jobs."""
    (axes,) = panels
    for contender, color, mark in zip(contest["contenders"], _LINES, _MARKS, strict=False):
        points = [
            (job_s, 100 * median(found))
            for job_s in LENGTHS_S
            if (found := [row[busy_figure(job_s)] for row in contender["figures"] if busy_figure(job_s) in row])
        ]
        if points:
            axes.plot(*zip(*points, strict=True), f"-{mark}", color=color, label=contender["name"])
    axes.set_xscale("log")
    axes.set_xticks([0.001, 0.01, 0.1, 1, 10], ["1 ms", "10 ms", "100 ms", "1 s", "10 s"])
    axes.set_ylim(0, 102)
    axes.set_xlabel("length of a job")
    axes.set_ylabel("workers busy, %")
    axes.legend(frameon=False, loc="lower right")


_DRAWN: Final[tuple[tuple[str, str, int, Callable[[Kept, Sequence[Any]], None]], ...]] = (
    ("N4", "heavy-tailed", 1, _tail),
    ("N5", "", 2, _growth),
    ("N6", "grows", 1, _restart),
    ("N9", "", 1, _workers),
)
"""Number, a word of the title, how many panels, what draws them."""


# --- What was measured ---------------------------------------------------------------------------------------------


def _each(contest: Kept, figure: str) -> Iterator[tuple[str, list[float]]]:
    for contender in contest["contenders"]:
        yield contender["name"], [row[figure] for row in contender["figures"] if figure in row]


def _by_size(contest: Kept, figure: str) -> tuple[list[int], list[float]]:
    """The medians of a figure of contenders that are named after how many jobs they have."""
    rows = [(int(name.split()[0].replace(",", "")), median(found)) for name, found in _each(contest, figure) if found]
    return [size for size, _ in rows], [found for _, found in rows]
