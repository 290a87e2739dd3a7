"""Results as lines of JSON, in the order of the jobs, while they come in."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes, Span
from batchd.errors import ResultError, UsageError
from batchd.formats.values import load
from batchd.sinks import JsonlFile, encode_line

_JOBS_AT_ONCE = 8192
_FIRST_BYTES = b'{"index":'
"""Of every file of results that holds any."""


def check_target(path: str | None, given: Iterable[str | None]) -> None:
    """Refuse to write results over what the run was given, or over anything else that is none. Raises UsageError."""
    if path is None or not Path(path).is_file():
        return
    for each in given:
        if each and Path(each).exists() and Path(path).samefile(each):
            raise UsageError(f"--out {path} would replace {each}, which the run needs: name another file")
    with open(path, "rb") as file:
        begins = file.read(len(_FIRST_BYTES))
    if begins not in {b"", _FIRST_BYTES}:
        raise UsageError(f"--out {path} is there and holds no results: remove it, or name another file")


def extend_path(spec: dict[str, Any]) -> None:
    """Make importable here what the task's results may name: classes of its own modules."""
    module = spec["task"][0]
    folders = [str(Path(module).parent)] if module.endswith(".py") else []
    sys.path += [folder for folder in (*folders, *spec.get("sys_path", ())) if folder not in sys.path]


class Unwritable(list[tuple[int, str]]):
    """(index, why) of results that could not be written as JSON."""


def lines(span: Span, unwritable: Unwritable) -> list[str]:
    """Return one line per job of the span; what JSON cannot hold stands in `unwritable` too."""
    if span.state is not JobState.SUCCEEDED:
        return [
            encode_line(index, span.state.name.lower(), {"type": failure.type, "message": failure.message})
            for index, failure in span.failures()
        ]
    values = map(load, span.separate()) if span.block.is_separate else iter(span.values())
    made = []
    for index in range(span.start, span.stop):
        try:
            made.append(encode_line(index, "succeeded", next(values)))
        except Exception as error:
            why = str(error) if isinstance(error, ResultError) else f"cannot be read back: {error!r}"
            unwritable.append((index, why))
            told = {"type": type(error).__name__, "message": why}
            made.append(json.dumps({"index": index, "state": "succeeded", "error": told}))
    return made


class ResultStream:
    """Writes a batch's results to a file as far as they are complete in order."""

    def __init__(self, path: str, folder: Path) -> None:
        """Open the file at once: a wrong path is found out before any job runs."""
        self._file = JsonlFile(path)
        self._folder = folder
        self._journal: BatchJournal | None = None
        self._outcomes: Outcomes | None = None
        self._written = 0
        self._generation = 0
        self.unwritable = Unwritable()

    def advance(self, prefix: int, generation: int) -> bool:
        """Write some of the results before job `prefix`; return whether there are more."""
        if generation != self._generation:  # Jobs that were written before were retried meanwhile.
            if self._written and not self._file.restart():
                return False
            self._generation, self._written = generation, 0
            self.unwritable.clear()
            self.release()
        if self._written >= prefix:
            return False
        if self._journal is None or self._outcomes is None:
            self._journal = BatchJournal(self._folder)
            extend_path(self._journal.spec)
            self._outcomes = Outcomes(self._journal)
        stop = min(prefix, self._written + _JOBS_AT_ONCE)
        for span in self._outcomes.spans(RangeSet([(self._written, stop)]), generation):
            self._file.write(lines(span, self.unwritable))
        self._written = stop
        return self._written < prefix

    def finish(self, prefix: int, generation: int) -> None:
        """Write what is left and give the file its name."""
        while self.advance(prefix, generation):
            pass
        self.release()
        self._file.finish()

    def abandon(self) -> str:
        """Keep what was written under the temporary name, and return that."""
        self.release()
        return self._file.abandon()

    def release(self) -> None:
        """Close the batch: a process may open it once at a time."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
