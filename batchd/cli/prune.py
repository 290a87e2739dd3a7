"""`batchd prune`: remove batches and give their space back to the disk.

Which batches go is chosen here, from the rows of census.py; how one goes stands in edge/removal.py. The one idea: a
batch goes only if everything that was asked for agrees, what may still be of use is not chosen unless it is named,
and nothing goes that was not shown before, with --yes on the same lines.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from batchd.cli.summary import command_in
from batchd.client import request
from batchd.edge import control
from batchd.edge.census import CROWDED, DAMAGED, IDLE, INTERRUPTED, NEWER, RUNNING, Row, take_census
from batchd.edge.damage import check_batch
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.lock import vacant
from batchd.edge.removal import left_aside, set_aside, sweep
from batchd.edge.shelf import find_folder
from batchd.errors import BatchdError, JournalError, SupervisorError, UsageError
from batchd.units import counted, format_duration, format_size, parse_duration, parse_size, visible_line

STATES: Final = ("finished", "cancelled", "stopped", INTERRUPTED, IDLE, DAMAGED)
_BY_DEFAULT: Final = frozenset({"finished", "cancelled"})
_NOT_ASKED: Final = (
    "say what to remove: names of batches, --older-than 30d, --state cancelled, --keep 10 (of all that are over), "
    "--max-size 10G; a batch goes only if everything agrees, and --dry-run only shows which"
)


@dataclass(frozen=True)
class _Wish:
    """What was asked for."""

    named: frozenset[str] | None
    states: frozenset[str] | None
    older_than_s: float | None
    keep: int | None
    bytes_max: int | None

    @classmethod
    def of(cls, args: argparse.Namespace, folder: Path) -> "_Wish":
        states = frozenset(word.strip() for text in args.state for word in text.split(","))
        if wrong := states - {*STATES, "all"}:
            raise UsageError(f"{min(wrong)!r} is not a state to choose by: write {', '.join(STATES)}, or all")
        if args.keep is not None and args.keep < 0:
            raise UsageError(f"cannot keep {args.keep} batches: give a number from 0")
        wish = cls(
            named=frozenset(find_folder(folder, text).name for text in args.batch) if args.batch else None,
            states=frozenset(STATES) - {IDLE} | states if "all" in states else states or None,
            older_than_s=None if args.older_than is None else parse_duration(args.older_than),
            keep=args.keep,
            bytes_max=None if args.max_size is None else parse_size(args.max_size),
        )
        if all(getattr(wish, name) is None for name in ("named", "states", "older_than_s", "keep", "bytes_max")):
            raise UsageError(_NOT_ASKED)
        return wish

    def choose(self, rows: list[Row], now: float) -> list[Row]:
        """Return the rows that go; `rows` are all there are, the one that changed last first."""
        states = self.states if self.states is not None else _BY_DEFAULT if self.named is None else None
        chosen = [row for row in rows if self.named is None or row.batch in self.named]
        chosen = [row for row in chosen if row.state != RUNNING and (states is None or row.state in states)]
        if self.named is None:  # Of a queue somebody may yet ask what its jobs gave, whatever became of them.
            chosen = [row for row in chosen if row.state in {IDLE, DAMAGED} or not row.is_queue]
        chosen = chosen[self.keep or 0 :]
        if self.older_than_s is not None:
            chosen = [row for row in chosen if now - row.changed >= self.older_than_s]
        if self.bytes_max is not None:
            size = sum(row.disk_bytes for row in rows)
            needed: list[Row] = []
            for row in reversed(chosen):
                if size > self.bytes_max:
                    needed.insert(0, row)
                    size -= row.disk_bytes
            chosen = needed
        return chosen


def prune(args: argparse.Namespace) -> int:
    """`batchd prune`: remove batches by name, age, state, number and size."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    wish = _Wish.of(args, folder)
    rows = take_census(folder, _live(folder))
    running = [row for row in rows if wish.named and row.batch in wish.named and row.state == RUNNING]
    if running:
        raise UsageError(f"batch {running[0].batch} is running: `batchd cancel {running[0].batch}` ends it")
    chosen = [row for row in wish.choose(rows, time.time()) if row.state != DAMAGED or _is_certain(row, wish)]
    if not args.json:
        _show(folder, rows, chosen, wish)
    if args.dry_run:
        return _answer(args, folder, rows, chosen, [], [])
    swept = len(left_aside(folder))
    if chosen and not args.yes:
        if not _is_confirmed(chosen, is_json=args.json):
            _remark("nothing was removed")
            return 0
        still = {row.batch for row in wish.choose(take_census(folder, _live(folder)), time.time())}
        chosen = [row for row in chosen if row.batch in still]  # The question may have stood there for long.
    removed, failed = _remove(folder, chosen)
    complaints = sweep(folder)
    if swept and not args.json:
        _remark("what an earlier prune left behind is deleted as well")
    return _answer(args, folder, rows, removed, failed, complaints)


def _live(folder: Path) -> set[str]:
    """The batches that a supervisor has open."""
    try:
        control.connect(folder).close()
    except OSError:
        return set()
    return set(request(folder, "status")["batches"])


def _is_certain(row: Row, wish: _Wish) -> bool:
    """Whether a batch that could not be opened is really damaged, not only out of reach for this moment."""
    if wish.named is not None:
        return True
    try:
        is_well = check_batch(row.folder).is_well
    except BatchdError:
        is_well = True
    if is_well:
        _remark(f"{row.batch} is not removed, it could not be opened: {row.error}")
    return not is_well


def _remove(folder: Path, chosen: list[Row]) -> tuple[list[Row], list[tuple[Row, str]]]:
    """Set the batches aside, one by one; return those that are, and those that are not and why."""
    removed: list[Row] = []
    failed: list[tuple[Row, str]] = []
    for row in chosen:
        try:
            with _reported(folder), vacant(folder) as is_vacant:
                if is_vacant:
                    set_aside(folder, row.batch)
            if not is_vacant:
                request(folder, "prune", note=_remark, batch=row.batch)
        except BatchdError as error:
            failed.append((row, str(error)))
        else:
            removed.append(row)
    return removed, failed


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turn what the system says about the journal into a sentence."""
    try:
        yield
    except OSError as error:
        raise JournalError(f"{folder} cannot be changed: {error.strerror}") from error


# --- What is said ----------------------------------------------------------------------------------------------


def _show(folder: Path, rows: list[Row], chosen: list[Row], wish: _Wish) -> None:
    others = [row for row in rows if row.state not in {*_BY_DEFAULT, RUNNING, NEWER, CROWDED} and not row.is_queue]
    if others and wish.named is None and wish.states is None:
        counts = ", ".join(f"{sum(row.state == state for row in others)} {state}" for state in _states(others))
        _remark(f"batches that are not over are kept: {counts}; --state chooses them, --state all everything")
    queues = [row for row in rows if row.is_queue and row.state != RUNNING and row not in chosen]
    if queues and wish.named is None:
        _remark(
            f"{counted(len(queues), 'queue')} kept: a queue goes by its name, or while nothing waits by --state idle"
        )
    if not chosen:
        _remark(f"nothing to remove: {_count(rows)}, {_size(rows)} in {folder}")
        return
    lines = [("BATCH", "NAME", "STATE", "UNCHANGED FOR", "DISK")]
    now = time.time()
    for row in chosen:
        age = format_duration(max(0.0, now - row.changed))
        lines.append((row.batch, visible_line(row.name), row.state, age, format_size(row.disk_bytes)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    sys.stdout.flush()


def _states(rows: Iterable[Row]) -> list[str]:
    found = {row.state for row in rows}
    return [state for state in STATES if state in found]


def _is_confirmed(chosen: list[Row], *, is_json: bool) -> bool:
    if is_json or not (sys.stdin and sys.stdin.isatty()) or not sys.stderr.isatty():
        raise UsageError(
            f"{_count(chosen)} would be removed, {_size(chosen)}: --yes removes them, --dry-run shows them"
        )
    print(f"remove {_count(chosen)}, {_size(chosen)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _answer(
    args: argparse.Namespace,
    folder: Path,
    rows: list[Row],
    removed: list[Row],
    failed: list[tuple[Row, str]],
    complaints: list[str],
) -> int:
    left = [row for row in rows if row not in removed]
    if args.json:
        told: dict[str, Any] = {
            "batchd": 1,
            "journal": str(folder),
            "dry_run": bool(args.dry_run),
            "removed": [_fields(row) for row in removed],
            "failed": [{**_fields(row), "error": why} for row, why in failed],
            "complaints": complaints,
            "freed_bytes": sum(row.disk_bytes for row in removed),
            "left": len(left),
            "left_bytes": sum(row.disk_bytes for row in left),
        }
        print(json.dumps(told))
    elif args.dry_run:
        if removed:
            _remark(f"would remove {_count(removed)}, {_size(removed)}; {_count(left)}, {_size(left)}, would stay")
    elif removed:
        _remark(f"removed {_count(removed)}, {_size(removed)}; {_count(left)}, {_size(left)}, are left")
        _remark(f"next: {command_in(folder, 'ls')}")
    for row, why in failed if not args.json else ():
        _remark(f"{row.batch} is not removed: {why}")
    for complaint in complaints if not args.json else ():
        _remark(complaint)
    size = sum(row.disk_bytes for row in left)
    if args.max_size is not None and not args.json and size > parse_size(args.max_size):
        _remark(f"{format_size(size)} is more than {args.max_size}, and nothing else may go")
    return SupervisorError.exit_code if failed or complaints else 0


def _fields(row: Row) -> dict[str, Any]:
    return {
        "batch": row.batch,
        "name": row.name,
        "state": row.state,
        "disk_bytes": row.disk_bytes,
        "changed": round(row.changed, 3),
    }


def _count(rows: list[Row]) -> str:
    return counted(len(rows), "batch")


def _size(rows: list[Row]) -> str:
    return format_size(sum(row.disk_bytes for row in rows))


def _remark(text: str) -> None:
    print(f"batchd: {text}", file=sys.stderr)
