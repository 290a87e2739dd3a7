"""The verb that shows what jobs logged, also while they run.

It reads the log's file and nothing else; a batch's journal is asked only whether the batch still runs. With `--json`
it writes the lines as they stand in the file, one JSON object each.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from batchd.edge.control import connect
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import find_job
from batchd.errors import BatchdError
from batchd.formats.joblog import LOG_NAME, Line, decode
from batchd.units import visible

_READ_BYTES = 1 << 20
_LOOK_S = 0.2
"""How often the file is looked at while following."""
_ASK_S = 1.0
"""How often the journal is asked whether the batch still runs."""
_PATIENCE_S = 3.0
"""A supervisor that died is replaced by its client within this."""


def logs(args: argparse.Namespace) -> int:
    """`batchd logs`: what a batch's jobs logged."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    journal, index = find_job(folder, args.batch)
    with closing(journal), closing(_Log(journal.folder / LOG_NAME, index)) as log:
        pieces = _followed(log, folder, journal) if args.follow else log.lines()
        is_any = False
        for raw, line in pieces:
            is_any = True
            print(raw if args.json else _said(line), flush=args.follow)
        sys.stdout.flush()
        if not is_any:
            what = "no job has logged anything" if index is None else f"job {index} has logged nothing"
            print(f"batchd: {journal.folder.name}: {what}", file=sys.stderr)
    return 0


class _Log:
    """A log's file, read as far as it is written. It stays open, for another batch may have its place by and by."""

    def __init__(self, path: Path, index: int | None) -> None:
        self._path = path
        self._index = index
        self._mark = b"" if index is None else b'"index": %d,' % index
        self._file: BinaryIO | None = None
        self._unfinished = b""

    def lines(self) -> Iterator[tuple[str, Line]]:
        """Give the whole lines since the last call, as they stand and as they are meant."""
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return
        while data := self._file.read(_READ_BYTES):
            *whole, self._unfinished = (self._unfinished + data).split(b"\n")
            for raw in whole:
                line = decode(raw) if self._mark in raw or b'"index": null,' in raw else None
                if line is not None and (self._index is None or line.index in {self._index, None}):
                    yield raw.decode(errors="replace").rstrip(), line

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


def _followed(log: _Log, folder: Path, journal: BatchJournal) -> Iterator[tuple[str, Line]]:
    """Give lines until the batch does not run any more."""
    seen_at = time.monotonic() if _is_running(folder, journal) else float("-inf")
    while True:
        # What was logged before it was seen to have ended is read after that.
        is_over = journal.facts.is_finished or time.monotonic() - seen_at > _PATIENCE_S
        yield from log.lines()
        if is_over:
            return
        asked_at = time.monotonic()
        while time.monotonic() - asked_at < _ASK_S:
            time.sleep(_LOOK_S)
            yield from log.lines()
        if _is_running(folder, journal):
            seen_at = time.monotonic()


def _is_running(folder: Path, journal: BatchJournal) -> bool:
    """Whether a supervisor runs the batch now; reads the facts again."""
    if not journal.refresh().is_attached:
        return False
    try:
        connect(folder).close()
    except (OSError, BatchdError):
        return False
    return True


def _said(line: Line) -> str:
    """Return a line as people read it."""
    if line.index is None:
        return f"{line.time}  {visible(line.text)}"
    attempt = f" (attempt {line.attempt})" if line.attempt != 1 else ""
    first, *more = line.text.split("\n")
    head = f"{line.time}  {line.index}{attempt}: {visible(first)}"
    return "\n".join([head, *(f"    {visible(each)}" for each in more)])
