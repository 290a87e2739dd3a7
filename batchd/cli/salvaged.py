"""The files that `batchd journal salvage` writes.

    outcomes.jsonl   a line a job, as `batchd results` writes it
    inputs.jsonl     the inputs of jobs without an outcome, a JSON value a line: what `batchd run` takes
    doubtful.jsonl   failures that may not be what became of the jobs in the end: they may have been retried since
    unplaced.jsonl   inputs of jobs whose numbers are lost
    causes.jsonl     the tracebacks of failures
    values.pickle    pickles one after another, each (kind, index or key, bytes): what JSON cannot hold as it is
    log.jsonl        what the jobs logged, as it was
    report.json      written last: what is where, what is damaged and what is lost

Values are the user's, and reading one back may kill whoever does. The one idea: a child writes the files and notes
what it is about to read and how long the files are; when it dies, the next one goes on there without that value.
"""

import errno
import json
import math
import mmap
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchd.cli.results import Unwritable, extend_path, lines
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.isolation import Isolated, Tell
from batchd.edge.salvage import Salvage, Share
from batchd.edge.survey import Piece
from batchd.errors import JournalError, JournalFull, ResultError, UsageError
from batchd.formats import tables
from batchd.formats.joblog import LOG_NAME
from batchd.formats.reference import Payload, whole
from batchd.formats.values import load
from batchd.sinks import encode_line, to_json

OUTCOMES_NAME: Final = "outcomes.jsonl"
INPUTS_NAME: Final = "inputs.jsonl"
REPORT_NAME: Final = "report.json"
DOUBTFUL_NAME: Final = "doubtful.jsonl"
_UNPLACED_NAME: Final = "unplaced.jsonl"
_CAUSES_NAME: Final = "causes.jsonl"
_VALUES_NAME: Final = "values.pickle"
_NAMES: Final = (OUTCOMES_NAME, INPUTS_NAME, DOUBTFUL_NAME, _UNPLACED_NAME, _CAUSES_NAME, _VALUES_NAME)
_STATE: Final = struct.Struct(f"=QQ{len(_NAMES)}Q")
_SILENCE_S_MAX: Final = 3600.0
"""Reading values back may take the user's code this long."""

_TOLD: Final = ("unreadable_results", "written", "unlike", "unreadable_inputs")

Key = tuple[int, int]
"""A unit of work, and one more than the job in it."""


def bring_out(
    salvage: Salvage, place: Path, target: Path, steps: Callable[[dict[str, Any]], list[str]]
) -> dict[str, Any]:
    """Write all files into `target`, new or empty; return the report. Raises UsageError, JournalError.

    `steps` are the commands that come next, for a report without them.
    """
    try:
        _prepare(target)
        told = _write_values(salvage, target)
        if (place / LOG_NAME).is_file():
            (target / LOG_NAME).touch(0o600)
            shutil.copyfile(place / LOG_NAME, target / LOG_NAME)
        for name in _NAMES:
            if not (target / name).stat().st_size and name not in {OUTCOMES_NAME, INPUTS_NAME}:
                (target / name).unlink()
        report = _report(salvage, told)
        report["next"] = steps(report)
        (target / REPORT_NAME).touch(0o600)
        (target / REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        kind = JournalFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else JournalError
        raise kind(f"{error.filename or target} cannot be written: {error.strerror}") from None
    return report


def _prepare(target: Path) -> None:
    target.mkdir(0o700, parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise UsageError(f"{target} is not empty: name a new or an empty folder with --to")


def _report(salvage: Salvage, told: dict[int, dict[str, Any]]) -> dict[str, Any]:
    def gathered(name: str) -> list[Any]:
        return [each for _, fields in sorted(told.items()) for each in fields[name]]

    return {
        "batchd": 1,
        "batch": salvage.batch,
        "name": str(salvage.spec.get("name", "")),
        "size": salvage.size,
        "outcomes": {
            "count": sum(share.stop - share.start for share in salvage.outcomes),
            "unreadable": gathered("unreadable_results"),
        },
        "doubtful": sum(share.stop - share.start for share in salvage.doubtful),
        "inputs": {
            "count": sum(stop - start for start, stop in gathered("written")),
            "jobs": list(RangeSet(gathered("written"))),
            "unlike": gathered("unlike"),
            "unreadable": gathered("unreadable_inputs"),
        },
        "unplaced": sum(piece.stop for piece in salvage.unplaced),
        "lost": {"outcomes": list(salvage.lost_outcomes), "inputs": list(salvage.lost_inputs)},
        "damage": [{**finding._asdict(), "text": str(finding)} for finding in salvage.findings],
        "spec": salvage.spec,
    }


# --- Writing, in children --------------------------------------------------------------------------------------


def _write_values(salvage: Salvage, target: Path) -> dict[int, dict[str, Any]]:
    """Write the files but the report; return by unit of work what is to be said about it."""
    for name in _NAMES:
        (target / name).touch(0o600)
    state = mmap.mmap(-1, _STATE.size)
    told: dict[int, dict[str, Any]] = {}
    deadly: dict[Key, str] = {}
    while True:
        with Isolated(lambda tell: _Writer(salvage, target, state, deadly, tell).write()) as child:
            for fields in child.told(_SILENCE_S_MAX):
                if "error" in fields:
                    kind = JournalFull if os.strerror(errno.ENOSPC) in fields["error"] else JournalError
                    raise kind(f"{target} cannot be written: {fields['error']}")
                told[fields["unit"]] = fields
        if not child.death:
            return told
        unit, item, *sizes = _STATE.unpack(state)
        if not item or (unit, item) in deadly:
            raise JournalError(f"writing {target} cannot go on: {child.death}")
        deadly[unit, item] = child.death
        for name, size in zip(_NAMES, sizes, strict=True):
            os.truncate(target / name, size)


class _Writer:
    """One child's work: units in order, from the one that `state` names."""

    def __init__(self, salvage: Salvage, target: Path, state: mmap.mmap, deadly: dict[Key, str], tell: Tell) -> None:
        self._salvage = salvage
        self._state = state
        self._deadly = deadly
        self._tell = tell
        self._files = {name: (target / name).open("ab") for name in _NAMES}
        self._unit = 0
        self._told: dict[str, Any] = {}

    def write(self) -> None:
        """Write everything that is not written yet."""
        if self._salvage.spec.get("task"):
            extend_path(self._salvage.spec)
        begun = _STATE.unpack(self._state)[0]
        for unit, (act, what) in enumerate(self._units()):
            if unit < begun:
                continue
            self._unit = unit
            self._told = {name: [] for name in _TOLD}
            act(what)
            for file in self._files.values():
                file.flush()
            self._tell({"unit": unit, **self._told})
            _STATE.pack_into(self._state, 0, unit + 1, 0, *(file.tell() for file in self._files.values()))
        for file in self._files.values():
            os.fsync(file.fileno())

    def _units(self) -> Iterator[tuple[Callable[[Any], None], Any]]:
        yield from ((self._write_outcomes, share) for share in self._salvage.outcomes)
        yield from ((self._write_doubtful, share) for share in self._salvage.doubtful)
        yield from ((self._write_inputs, share) for share in self._salvage.inputs)
        yield from ((self._write_unplaced, piece) for piece in self._salvage.unplaced)
        yield self._write_records, None

    def _write_outcomes(self, share: Share) -> None:
        span = self._salvage.outcome(share)
        if span.state is not JobState.SUCCEEDED or not span.block.is_separate:
            self._put(OUTCOMES_NAME, lines(span, Unwritable()))
            return
        for index, payload in enumerate(span.separate(), span.start):
            try:
                line = encode_line(index, "succeeded", self._load(index, payload))
            except Exception as error:
                why = str(error) if isinstance(error, ResultError) else f"cannot be read back: {error!r}"
                line = json.dumps(
                    {"index": index, "state": "succeeded", "error": {"type": type(error).__name__, "message": why}}
                )
                self._told["unreadable_results"].append((index, why))
                self._put_raw("result", index, payload)
            self._put(OUTCOMES_NAME, [line])

    def _write_doubtful(self, share: Share) -> None:
        self._put(DOUBTFUL_NAME, lines(self._salvage.outcome(share), Unwritable()))

    def _write_inputs(self, share: Share) -> None:
        for index, given in self._inputs_of(share.piece, share.start, share.stop):
            if isinstance(given, _Unreadable):
                self._told["unreadable_inputs"].append((index, given.why))
                self._put_raw("input", index, given.payload)
                continue
            text, is_alike = _json_of(given)
            if text:
                self._put(INPUTS_NAME, [text])
                self._told["written"].append((index, index + 1))
            if not is_alike:
                self._told["unlike"].append(index)
                self._put_raw("input", index, pickle.dumps(given, 5))
        self._told["written"] = list(RangeSet(self._told["written"]))

    def _write_unplaced(self, piece: Piece) -> None:
        for _, given in self._inputs_of(piece, 0, piece.stop):
            text, is_alike = ("", False) if isinstance(given, _Unreadable) else _json_of(given)
            if text:
                self._put(_UNPLACED_NAME, [text])
            if not is_alike:
                payload = given.payload if isinstance(given, _Unreadable) else pickle.dumps(given, 5)
                self._put_raw("unplaced input", 0, payload)

    def _write_records(self, _: None) -> None:
        for mark, text in self._salvage.records(tables.CAUSES):
            told = {"fingerprint": mark.hex(), "traceback": text.decode("utf-8", "replace")}
            self._put(_CAUSES_NAME, [json.dumps(told)])
        for mark, payload in self._salvage.records(tables.FUNCTIONS):
            self._put_raw("function", mark, payload)
        for key, payload in self._salvage.records(tables.NOTES):
            self._put_raw("note", tables.INDEX.unpack(key)[0], payload)

    def _inputs_of(self, piece: Piece, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Give (index, value) of inputs, _Unreadable for one that does not read back."""
        block = self._salvage.block(piece)
        if not block.is_separate:
            yield from enumerate(block.values()[start - piece.first : stop - piece.first], start)
            return
        for index, payload in enumerate(block.separate()[start - piece.first : stop - piece.first], start):
            try:
                yield index, self._load(index, payload)
            except Exception as error:
                yield index, _Unreadable(bytes(whole(payload)), repr(error))

    def _load(self, index: int, payload: Payload) -> Any:
        """Read a value back, so that whoever finds this process dead knows which it was."""
        if (why := self._deadly.get((self._unit, index + 1))) is not None:
            raise JournalError(f"reading it back kills the process that does it: {why}")
        _STATE.pack_into(self._state, 0, self._unit, index + 1, *_STATE.unpack(self._state)[2:])
        return load(payload)

    def _put(self, name: str, made: Iterable[str]) -> None:
        self._files[name].write("".join(f"{line}\n" for line in made).encode("utf-8", "backslashreplace"))

    def _put_raw(self, kind: str, key: int | bytes, payload: Payload) -> None:
        pickle.dump((kind, key, bytes(whole(payload))), self._files[_VALUES_NAME], 5)


class _Unreadable(NamedTuple):
    """An input that does not read back."""

    payload: bytes
    why: str


def _json_of(value: Any) -> tuple[str, bool]:
    """Return a value as JSON, '' if it has none, and whether that reads back as the same value."""
    try:
        if _is_json(value):
            return json.dumps(value), True
        return json.dumps(to_json(value, "input"), allow_nan=False), False
    except Exception:
        return "", False


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if kind is list:
        return all(map(_is_json, value))
    return kind in {str, int, bool, type(None)} or (kind is float and math.isfinite(value))
