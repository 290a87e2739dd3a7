"""Where the items of a batch come from: text, tables, file names, ranges.

`open_source` turns what a person wrote into one source and refuses what cannot be meant. Reading itself lives
in `text`, `table`, `paths` and `ranges`; nothing here knows jobs, the journal or the supervisor.
"""

from collections.abc import Sequence

from batchd.errors import UsageError
from batchd.sources.costed import with_cost
from batchd.sources.kinds import hints
from batchd.sources.paths import PathSource
from batchd.sources.ranges import RangeSource
from batchd.sources.source import Block, Checkpoint, Source
from batchd.sources.table import TableSource, is_table
from batchd.sources.text import TextSource

__all__ = [
    "Block",
    "Checkpoint",
    "PathSource",
    "RangeSource",
    "Source",
    "TableSource",
    "TextSource",
    "hints",
    "open_source",
]


def open_source(
    inputs: Sequence[str],
    *,
    paths: Sequence[str] = (),
    range_spec: str | None = None,
    null: bool = False,
    skip_bad_input: bool = False,
    cost: str | None = None,
) -> Source:
    """The one source that was asked for, checked as far as it can be without reading it.

    >>> [list(block.items) for block in open_source([], range_spec="0:10:4").blocks()]
    [[0, 4, 8]]
    """
    given = [name for name, on in (("files", inputs), ("--paths", paths), ("--range", range_spec is not None)) if on]
    if not given:
        raise UsageError("No input was given: name a file, - for standard input, --paths 'GLOB' or --range A:B.")
    if len(given) > 1:
        hint = " Quote the pattern after --paths, so that the shell leaves it alone." if "--paths" in given else ""
        raise UsageError(f"A batch has one kind of input, not {' and '.join(given)}: choose one.{hint}")
    if null and not inputs:
        raise UsageError(f"--null splits text, and {given[0]} is not text: leave --null out.")
    source: Source
    if range_spec is not None:
        source = RangeSource.parse(range_spec)
    elif paths:
        source = PathSource(paths)
    elif tables := [name for name in inputs if is_table(name)]:
        if len(tables) < len(inputs):
            other = next(name for name in inputs if name not in tables)
            raise UsageError(f"{tables[0]} holds rows and {other} lines: give tables and other files to two batches.")
        if null:
            raise UsageError(f"{tables[0]} holds rows, which --null cannot split: leave --null out.")
        source = TableSource(inputs, skip_bad_input=skip_bad_input)
    else:
        source = TextSource(inputs, null=null, skip_bad_input=skip_bad_input)
    if cost is None:
        return source
    return with_cost(source, cost)
