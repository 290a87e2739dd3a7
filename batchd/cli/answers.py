"""How verbs speak: their answer to standard output, remarks about it to standard error."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from batchd.edge.journal import BatchJournal
from batchd.units import visible


def answer(lines: Iterable[str]) -> None:
    """Print the answer; a reader that has seen enough ends it without a word."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # What is buffered goes nowhere at exit.


def remark(text: str) -> None:
    """Say something beside the answer, behind what was printed of it."""
    sys.stdout.flush()
    print(f"batchd: {text}", file=sys.stderr, flush=True)


def head(journal: BatchJournal) -> dict[str, Any]:
    """Return what every answer in JSON says of its batch."""
    return {"batch": journal.folder.name, "name": str(journal.spec.get("name") or journal.folder.name)}


def told_lines(told: dict[str, str]) -> Iterator[str]:
    """Give what is told under each name, names in a column of their own; what is empty is left out."""
    width = max(map(len, told))
    for name, text in told.items():
        first, *rest = visible(text).splitlines() or [""]
        if first:
            yield f"  {name:<{width}}  {first}"
            yield from (f"  {'':<{width}}  {line}" for line in rest)
