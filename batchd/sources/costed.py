"""Items with what they cost: any source, and beside each block the costs that `--cost` asks for.

The items, their checkpoints and the identity of the input are the source's own: costs change only what starts first.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from batchd.client.costing import Costing, CostOf, field_of
from batchd.errors import UsageError
from batchd.sources.files import has_suffix
from batchd.sources.source import Block, Checkpoint, Source
from batchd.sources.text import JSON_SUFFIXES

SIZE: Final = "size"


class CostedSource:
    """A source whose blocks carry costs.

    >>> from batchd.sources.ranges import RangeSource
    >>> [block.costs for block in CostedSource(RangeSource.parse("0:3"), lambda n: n * n, "n * n").blocks()]
    [[(1, 1.0), (2, 4.0)]]
    """

    def __init__(self, source: Source, cost: CostOf, option: str) -> None:
        self._source = source
        self._cost = cost
        self._option = option

    @property
    def spec(self) -> dict[str, Any]:
        """The identity of the input."""
        return self._source.spec

    @property
    def skipped(self) -> int:
        """Malformed items that were left out."""
        return self._source.skipped

    @property
    def skipped_places(self) -> Sequence[str]:
        """Where the first few of them are."""
        return self._source.skipped_places

    def count(self) -> int | None:
        """How many items there are, or None when only reading would tell."""
        return self._source.count()

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The items behind `start`."""
        costing = Costing(self._cost, self._option)
        for block in self._source.blocks(start):
            first = block.checkpoint.items - len(block.items)
            yield replace(block, costs=costing.costly(first, costing.read(block.items, first, block.place_of)))


def with_cost(source: Source, cost: str) -> CostedSource:
    """The source with the costs that `--cost` asks for: the size of files, or a field of rows."""
    is_paths = source.spec["kind"] == "paths"
    if is_paths and cost != SIZE:
        raise UsageError(f"--cost {cost}: of --paths the cost of a file can only be its size: write --cost {SIZE}.")
    names = source.spec.get("files", ())
    is_table = source.spec["kind"] == "table"
    if not (is_paths or is_table or any(has_suffix(name, JSON_SUFFIXES) for name in names)):
        raise UsageError(
            f"--cost {cost} names a field of rows (.jsonl, .ndjson, .csv, .tsv), or with --paths, as --cost {SIZE}, "
            "the size of each file; lines and ranges have neither: give those first that take long."
        )
    cost_of = _size_of if is_paths else partial(_number_of, cost) if is_table else cost
    return CostedSource(source, cost_of, f"--cost {cost}")


def _number_of(column: str, row: dict[str, str]) -> Any:
    """The number in a row of a table, where all is text; what is no number is for others to refuse."""
    text = field_of(row, column)
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def _size_of(name: str) -> float | None:
    try:
        return os.stat(name).st_size  # noqa: PTH116 (a million names)
    except OSError:  # Its job will say what is wrong with it.
        return None
