"""Results as lines of JSON, in the order of the jobs: `batchd results`, and what `--out` writes as they come in."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from time import monotonic
from typing import Any, Final

from batchd.cli.answers import answer, head, remark
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Gap, Outcomes, Span
from batchd.edge.shelf import find_job
from batchd.errors import BatchdError, FormatError, JournalDamaged, JournalError, ResultError, UsageError
from batchd.formats.values import load
from batchd.sinks import JsonlFile, encode_line, to_json
from batchd.sinks.jsonl import STDOUT

_WRITE_S: Final = 0.1
"""A command that writes results looks this often whether it is to stop, however large they are."""
_PART_S: Final = 0.01
"""Lines that are written together are aimed to take so long."""
_LINES_AT_ONCE_MAX: Final = 1024
_UNWRITABLE_MAX: Final = 5
_FIRST_BYTES = b'{"index":'
"""Of every file of results that holds any."""


class Unwritable:
    """Results that could not be written as JSON, or are damaged: which, and why."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int, str]] = []
        """(start, stop, why) of jobs that follow each other and are here for the same reason."""
        self.is_damaged = False

    @property
    def exit_code(self) -> int:
        """What a command ends with that has done what it could."""
        return JournalDamaged.exit_code if self.is_damaged else 1 if self.runs else 0

    def add(self, start: int, stop: int, why: str, *, is_damaged: bool = False) -> None:
        """Take in the jobs [start, stop)."""
        self.is_damaged |= is_damaged
        if self.runs and self.runs[-1][1:] == (start, why):
            start = self.runs.pop()[0]
        self.runs.append((start, stop, why))

    def told(self, batch: str) -> Iterator[str]:
        """Say it in a few lines."""
        for start, stop, why in self.runs[:_UNWRITABLE_MAX]:
            jobs = f"{batch}: jobs {start:,}-{stop - 1:,}" if stop - start > 1 else f"{batch}:{start}"
            yield f"{jobs}: {why.removeprefix(f'Job {start}: ')}"
        if more := sum(stop - start for start, stop, _ in self.runs[_UNWRITABLE_MAX:]):
            yield f"and {more:,} more results of {batch} could not be written"


# --- The verb --------------------------------------------------------------------------------------------------


def results(args: argparse.Namespace) -> int:
    """`batchd results`: the results that are there, in the order of the jobs, or that of one job."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    journal, index = find_job(folder, args.batch)
    with closing(journal):
        extend_path(journal.spec)
        unwritable = Unwritable()
        made = _made(journal, args, index, unwritable)
        file = JsonlFile(args.output or STDOUT)
        written = 0
        try:
            for part in _parts(made if args.output or not args.json else _document(journal, made, unwritable)):
                file.write(part)
                written += len(part)
            kept = _conclude(file, unwritable)
        except BrokenPipeError:
            file.abandon()
            return 0  # The reader has seen enough.
        except BaseException:
            kept = file.abandon()
            if args.output:
                remark(f"what was written before is in {kept}")
            raise
        if args.output and args.json:
            told = {"output": kept or args.output, "written": written, **_completeness(journal, unwritable)}
            answer([json.dumps({"batchd": 1, **head(journal), **told})])
        elif kept:
            remark(not_replaced(args.output, kept))
        elif args.output:
            remark(f"1 line is in {args.output}" if written == 1 else f"{written:,} lines are in {args.output}")
        if index is not None:
            return _tell_why_none(journal, index, unwritable, is_values=args.values)
        _tell_missing(journal, unwritable)
    return unwritable.exit_code


def _conclude(file: JsonlFile, unwritable: Unwritable) -> str:
    """Finish a file, unless what is there may be better: return the name of what was written then."""
    if unwritable.is_damaged and file.would_replace:
        return file.abandon()
    file.finish()
    return ""


def not_replaced(name: str, kept: str) -> str:
    """Say that the file that is there stays as it is."""
    return f"some results are damaged, and {name} may have them: it is as it was, and what can be read is in {kept}"


def _made(
    journal: BatchJournal, args: argparse.Namespace, index: int | None, unwritable: Unwritable
) -> Iterator[str]:
    """Give the lines."""
    facts = journal.facts
    start, stop = (0, None) if index is None else (index, index + 1)
    for piece in Outcomes(journal).pieces(facts.done, facts.generation, start, stop):
        if not args.values:
            yield from lines(piece, unwritable)
        elif isinstance(piece, Gap):
            unwritable.add(piece.start, piece.stop, _of_damage(piece.error), is_damaged=True)
        elif piece.state is JobState.SUCCEEDED:
            yield from _values(piece, unwritable, is_bare=bool(args.output) or not args.json)


def _parts(made: Iterable[str]) -> Iterator[list[str]]:
    """Give lines in groups, as large as can be made and taken in a moment: each by itself would take longer."""
    left, count = iter(made), 1
    since = monotonic()
    while part := list(islice(left, count)):
        yield part
        since, before = monotonic(), since
        count = min(2 * count, _LINES_AT_ONCE_MAX) if since - before < _PART_S else max(1, count // 2)


def _document(journal: BatchJournal, made: Iterable[str], unwritable: Unwritable) -> Iterator[str]:
    """Give the lines of one JSON document that has the lines `made` as its list of results."""
    yield json.dumps({"batchd": 1, **head(journal)})[:-1] + ', "results": ['
    comma = ""
    for line in made:
        yield comma + line
        comma = ","
    yield "], " + json.dumps(_completeness(journal, unwritable))[1:]


def _values(span: Span, unwritable: Unwritable, *, is_bare: bool) -> Iterator[str]:
    """Give a value a line as JSON, text as it is if `is_bare`. One that does not read back costs only itself."""
    is_separate = span.block.is_separate
    for index, stored in enumerate(span.separate() if is_separate else span.values(), span.start):
        try:
            value = load(stored) if is_separate else stored
            made = value if is_bare and isinstance(value, str) else json_of(value)
        except ResultError as error:
            why = f"{error} Have the task return JSON types, or read the value from Python."
            unwritable.add(index, index + 1, why)
        except (FormatError, JournalError) as error:
            unwritable.add(index, index + 1, _of_damage(error), is_damaged=True)
        except Exception as error:
            unwritable.add(index, index + 1, f"cannot be read back: {error!r}")
        else:
            yield made


def _completeness(journal: BatchJournal, unwritable: Unwritable) -> dict[str, Any]:
    told = [(index, why) for start, stop, why in unwritable.runs for index in range(start, stop)]
    return {
        "is_complete": journal.facts.is_finished,
        "unwritable": [{"index": index, "message": why} for index, why in told],
    }


def _tell_missing(journal: BatchJournal, unwritable: Unwritable) -> None:
    facts, name = journal.facts, journal.folder.name
    for line in unwritable.told(name):
        remark(line)
    if not facts.is_finished:
        size = f"{facts.size:,}{'' if facts.is_sealed else '+'}"
        remark(f"{name} is not finished: {facts.done.size:,} of {size} jobs are done so far")


def _tell_why_none(journal: BatchJournal, index: int, unwritable: Unwritable, *, is_values: bool) -> int:
    """Say why there is no line of the one job that was asked for; return the exit code."""
    facts, job = journal.facts, f"{journal.folder.name}:{index}"
    for line in unwritable.told(journal.folder.name):
        remark(line)
    if index not in facts.done:
        remark(f"{job} has no outcome yet; `batchd show {job}` tells how it stands")
        return 1
    if unwritable.runs:
        return unwritable.exit_code
    span = next(Outcomes(journal).spans(facts.done, facts.generation, index, index + 1))
    if span.state is not JobState.SUCCEEDED and is_values:
        remark(f"{job} has no result ({span.state.name.lower()}): `batchd show {job}` tells why")
        return 1
    return 0


# --- Lines -----------------------------------------------------------------------------------------------------


def lines(span: Span | Gap, unwritable: Unwritable) -> Iterator[str]:
    """Give one line per job of the span; what JSON cannot hold and what is damaged stand in `unwritable` too."""
    if isinstance(span, Gap):
        for index in range(span.start, span.stop):
            yield _damaged(index, span.error, unwritable)
        return
    if span.state is not JobState.SUCCEEDED:
        for index, failure in span.failures():
            yield encode_line(index, span.state.name.lower(), {"type": failure.type, "message": failure.message})
        return
    values = map(load, span.separate()) if span.block.is_separate else iter(span.values())
    for index in range(span.start, span.stop):
        try:
            made = encode_line(index, "succeeded", next(values))
        except (FormatError, JournalError) as error:
            made = _damaged(index, error, unwritable)
        except Exception as error:
            why = str(error) if isinstance(error, ResultError) else f"cannot be read back: {error!r}"
            unwritable.add(index, index + 1, why)
            told = {"type": type(error).__name__, "message": why}
            made = json.dumps({"index": index, "state": "succeeded", "error": told})
        yield made


def _damaged(index: int, error: BatchdError, unwritable: Unwritable) -> str:
    """Return the line of a job whose outcome is damaged."""
    why = _of_damage(error)
    unwritable.add(index, index + 1, why, is_damaged=True)
    return encode_line(index, "damaged", {"type": type(error).__name__, "message": why})


def _of_damage(error: BatchdError) -> str:
    return f"{error}; `batchd journal salvage` brings out what can be read"


def json_of(value: Any) -> str:
    """Return a value as JSON. Raises ResultError for one that has none."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(to_json(value), ensure_ascii=False, allow_nan=False)


def extend_path(spec: dict[str, Any]) -> None:
    """Make importable here what the task's results may name: classes of its own modules."""
    module = spec["task"][0]
    folders = [str(Path(module).parent)] if module.endswith(".py") else []
    sys.path += [folder for folder in (*folders, *spec.get("sys_path", ())) if folder not in sys.path]


# --- What --out writes -----------------------------------------------------------------------------------------


def check_target(path: str | None, given: Iterable[str | None]) -> None:
    """Refuse to write results over what the run was given, or over anything else that is none. Raises UsageError."""
    if path is None or not Path(path).is_file():
        return
    for each in given:
        if each and Path(each).exists() and Path(path).samefile(each):
            raise UsageError(f"--out {path} would replace {each}, which the run needs: name another file")
    if not holds_results(Path(path)):
        raise UsageError(f"--out {path} is there and holds no results: remove it, or name another file")


def holds_results(path: Path) -> bool:
    """Whether a file begins as results do, or is empty."""
    with path.open("rb") as file:
        return file.read(len(_FIRST_BYTES)) in {b"", _FIRST_BYTES}


def earlier_target(spec: Mapping[str, Any]) -> Path | None:
    """Return the file of results that the command which made the batch has written, None without one that is there.

    >>> earlier_target({"task": ["m", "f"], "command": "batchd run m:f --range 0:3 --out /no/such/file", "cwd": "/"})
    """
    words = shlex.split(spec.get("command", "")) if spec["task"][0] else []
    found = [after for word, after in pairwise(words) if word == "--out"]
    found += [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    path = Path(spec["cwd"], found[-1]) if found else None
    return path if path is not None and path.is_file() and holds_results(path) else None


class ResultStream:
    """Writes a batch's results to a file as far as they are complete in order."""

    def __init__(self, path: str, folder: Path) -> None:
        """Open the file at once: a wrong path is found out before any job runs."""
        self._file = JsonlFile(path)
        self._folder = folder
        self._journal: BatchJournal | None = None
        self._parts: Iterator[list[str]] | None = None
        """What comes next, as far as it was complete when that was last looked at."""
        self._generation = 0
        self.written = 0
        """Jobs whose lines are written."""
        self.unwritable = Unwritable()
        self.kept = ""
        """Where everything is after `finish`, when that is not the file that was named."""

    def advance(self, prefix: int, generation: int) -> bool:
        """Write some of the results before job `prefix`, for a moment; return whether there are more."""
        if generation != self._generation:  # Jobs that were written before were retried meanwhile.
            if self.written and not self._file.restart():
                return False
            self._generation, self.written = generation, 0
            self.unwritable = Unwritable()
            self.release()
        if self.written >= prefix:
            return False
        if self._parts is None:
            self._parts = _parts(self._made(prefix))
        until = monotonic() + _WRITE_S
        for part in self._parts:
            self._file.write(part)
            self.written += len(part)
            if monotonic() > until:
                break
        else:
            self._parts = None
        return self.written < prefix

    def finish(self, prefix: int, generation: int, is_stopped: Callable[[], bool]) -> bool:
        """Write what is left and give the file its name; return whether that was done before `is_stopped`."""
        while self.advance(prefix, generation):
            if is_stopped():
                return False
        self.release()
        self.kept = _conclude(self._file, self.unwritable)
        return True

    def abandon(self) -> str:
        """Keep what was written under the temporary name, and return that."""
        self.release()
        return self._file.abandon()

    def release(self) -> None:
        """Close the batch: a process may open it once at a time."""
        self._parts = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _made(self, prefix: int) -> Iterator[str]:
        if self._journal is None:
            self._journal = BatchJournal(self._folder)
            extend_path(self._journal.spec)
        for piece in Outcomes(self._journal).pieces(RangeSet([(self.written, prefix)]), self._generation):
            yield from lines(piece, self.unwritable)
