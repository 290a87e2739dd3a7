"""What a run prints: tables, through rich where it is installed, as plain columns where it is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.page import figures, goals, times


def show(contest: Mapping[str, Any]) -> None:
    """Print one contest as it is kept: its contenders, what else was measured, its goals."""
    draw(f"{contest['number']}: {contest['jobs']:,} {contest['title']}", times(contest))
    draw("", figures(contest))
    draw("", goals(contest))


def draw(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first row names the columns."""
    if len(rows) < 2:
        return
    try:
        from rich.console import Console  # noqa: PLC0415  (nobody who pipes this needs it)
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        print("\n".join(plain(title, rows)), flush=True)
        return
    table = Table(title=title or None, title_justify="left")
    for at, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if at == 0 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)


def plain(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of text.

    >>> plain("T", [["a", "b"], ["long", "1"]])
    ['T', 'a     b', 'long  1']
    """
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [title, *lines] if title else lines
