"""Batches as they stand in a journal, written without a supervisor, and the verbs that read them."""

import argparse
import datetime as dt
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.formats.report import Failure, fingerprint
from batchd.formats.segment import input_blocks, pack_items, pack_vector

Verb = Callable[[argparse.Namespace], int]
Run = Callable[..., tuple[int, str, str]]


def make(folder: Path, batch: str, *entries: e.Entry, size: int = 0, is_sealed: bool = True, **spec: Any) -> None:
    """Make a batch of `size` jobs and close it."""
    known = {
        "name": "nightly",
        "is_named": False,
        "task": ["package.module", "work"],
        "input": {"kind": "text", "files": ["/data/in put.txt"]},
        "args": {},
        "cwd": "/data",
        "sys_path": [],
        "created": "2026-01-02T03:04:05.000+00:00",
        "python": "3.11",
        "durability": "disk",
        "command": "batchd run package.module:work 'in put.txt'",
    }
    journal = BatchJournal.create(folder / "batches" / batch, {**known, **spec})
    segments = tuple(block for _, block in input_blocks(list(range(size))))
    given: list[e.Entry] = [e.Submitted(batch, 0, size, segments, "c", 1, "")] if size else []
    seal = [e.Sealed(batch)] if is_sealed else []
    journal.commit([e.Attached(batch, 1), *given, *seal, *entries])
    journal.close()


def succeeded(batch: str, first: int, *values: Any) -> e.Recorded:
    return e.Recorded(
        batch, first, len(values), JobState.SUCCEEDED, pack_vector(first, JobState.SUCCEEDED, list(values))
    )


def separate(batch: str, first: int, *payloads: bytes) -> e.Recorded:
    block = pack_items(first, JobState.SUCCEEDED, payloads)
    return e.Recorded(batch, first, len(payloads), JobState.SUCCEEDED, block)


def failed(batch: str, first: int, *failures: Failure, state: JobState = JobState.FAILED) -> e.Recorded:
    block = pack_items(first, state, [failure.encode() for failure in failures])
    return e.Recorded(batch, first, len(failures), state, block)


VALUE_ERROR = Failure("ValueError", "9 is odd", fingerprint("v"), "reading 9\nodd!\n", {"attempt": 2, "cpu_s": 0.5})


def make_mixed(folder: Path, batch: str = "mixed", **spec: Any) -> None:
    """Make a batch with every kind of outcome."""
    make(
        folder,
        batch,
        succeeded(batch, 0, 1, "two", None),
        failed(batch, 3, VALUE_ERROR),
        separate(batch, 4, pickle.dumps({"day": dt.date(2024, 2, 29)})),
        failed(batch, 5, Failure("JobCrashed", "killed by SIGSEGV", fingerprint("c")), state=JobState.QUARANTINED),
        e.Explained(batch, fingerprint("v"), b"Traceback (most recent call last):\nValueError: 9 is odd\n"),
        size=6,
        **spec,
    )


MIXED_LINES = [
    {"index": 0, "state": "succeeded", "result": 1},
    {"index": 1, "state": "succeeded", "result": "two"},
    {"index": 2, "state": "succeeded", "result": None},
    {"index": 3, "state": "failed", "error": {"type": "ValueError", "message": "9 is odd"}},
    {"index": 4, "state": "succeeded", "result": {"day": "2024-02-29"}},
    {"index": 5, "state": "quarantined", "error": {"type": "JobCrashed", "message": "killed by SIGSEGV"}},
]
