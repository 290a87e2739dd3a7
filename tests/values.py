"""Batches with large values, for tests: made without a supervisor, and what lies beside their records."""

from functools import partial
from pathlib import Path
from typing import Any

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.formats.reference import OF_WORKER
from batchd.formats.segment import input_blocks, pack_plain, references_in
from batchd.settings import VALUE_FILE_BYTES_MIN
from batchd.worker.valuefiles import VALUES_NAME, ValueFiles, is_value, named
from tests.ruin import SPEC

JOBS = 4
WORKER = OF_WORKER | 1


def large(index: int, mark: str = "in") -> bytes:
    return f"{mark} {index} ".encode() * (VALUE_FILE_BYTES_MIN // 5 + 1)


def author(place: Path, **spec: Any) -> BatchJournal:
    """Write a batch whose inputs are large, of which the first two have large results, and leave it open."""
    name = place.name
    journal = BatchJournal.create(place, {**SPEC, **spec})
    blocks = tuple(block for _, block in input_blocks([large(index) for index in range(JOBS)], journal.keep))
    journal.commit([e.Attached(name, 1), e.Submitted(name, 0, JOBS, blocks, "c", 1, "4")])
    results = ValueFiles(place, is_synced=True, worker=WORKER)
    for index in range(2):
        keep = partial(results.keep, job=index)
        block = pack_plain(index, JobState.SUCCEEDED, [large(index, "out")], keep)
        journal.commit([e.Recorded(name, index, 1, JobState.SUCCEEDED, block)])
    journal.commit([e.Detached(name)])
    return journal


def files_of(place: Path) -> set[str]:
    return {file.name for file in (place / VALUES_NAME).iterdir()} - locks_of(place)


def locks_of(place: Path) -> set[str]:
    names = [file.name for file in (place / VALUES_NAME).iterdir()]
    return {name for name in names if named(name) and not is_value(name)}


def named_in(place: Path, *names: bytes) -> list[str]:
    """Return the files that the records of tables name, in the order of the jobs."""
    journal = BatchJournal(place)
    with journal.begin() as txn:
        records = [bytes(record) for name in names for _, record in txn.cursor(db=journal.table(name))]
    journal.close()
    return [reference.name for record in records for reference in references_in(record)]
