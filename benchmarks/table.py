"""What a run prints: tables, through rich where it is installed, as plain columns where it is not."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.page import figure_text
from benchmarks.rounds import Outcome, goal_text


def show(outcome: Outcome) -> None:
    """Print one contest: its contenders, what else was measured, its goals."""
    contest = outcome.contest
    rows = [["contender", "survives", "seconds", "jobs/s", "batchd is"]]
    for contender in contest.contenders:
        name = contender.name
        if reason := outcome.reason(name):
            rows.append([name, contender.durability, reason, "", ""])
        elif name in outcome.seconds:
            times = outcome.seconds[name]
            rows.append(
                [
                    name,
                    contender.durability,
                    f"{median(times):.3f}",
                    f"{outcome.rate(name):,.0f}",
                    _ratio(outcome, name),
                ]
            )
    draw(f"{contest.number}: {contest.jobs:,} {contest.title}", rows)
    draw("", _figures(outcome))
    draw("", _goals(outcome))


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


def _ratio(outcome: Outcome, name: str) -> str:
    own, other = outcome.seconds.get("batchd", []), outcome.seconds[name]
    if name == "batchd" or len(own) != len(other):
        return ""
    return f"{median([theirs / ours for ours, theirs in zip(own, other, strict=True)]):.2f}x"


def _figures(outcome: Outcome) -> list[list[str]]:
    shown = {name: rows for name, rows in outcome.figures.items() if any(rows)}
    names = list(dict.fromkeys(figure for rows in shown.values() for row in rows for figure in row))
    table = [["medians", *shown]]
    table += [
        [figure, *(figure_text(figure, [row[figure] for row in rows if figure in row]) for rows in shown.values())]
        for figure in names
    ]
    return table


def _goals(outcome: Outcome) -> list[list[str]]:
    rows: list[list[Any]] = [["goal", "reached", ""]]
    for verdict in outcome.verdicts():
        if verdict.reached is None:
            rows.append([goal_text(verdict.goal), "-", "not measured"])
            continue
        reached = f"{verdict.reached:.3g}" + (f" ({verdict.reference})" if verdict.reference else "")
        rows.append([goal_text(verdict.goal), reached, "met" if verdict.is_met else "MISSED"])
    return rows
