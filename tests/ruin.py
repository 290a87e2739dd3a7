"""Batches worth ruining: every table, every kind of page, several generations; and what each job became in them."""

import struct
from collections import deque
from functools import cache
from itertools import count, product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import lmdb

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge import journal as journal_module
from batchd.edge.isolation import Isolated
from batchd.edge.journal import BatchJournal
from batchd.edge.salvage import Salvage
from batchd.formats import pages, tables
from batchd.worker.calls import mark_of
from tests.author import Author, submission, success

PAGE_BYTES = 4096
SPEC = {
    "durability": "process",
    "name": "ruined",
    "task": ["tests.jobs", "act"],
    "created": "2026-01-02T03:04:05+00:00",
}

Outcome = tuple[JobState, Any]


class Original(NamedTuple):
    """A batch as it was before it was ruined."""

    data: bytes
    outcomes: dict[int, Outcome]
    """By job: the state, and the value of a success or the message of a failure."""
    inputs: dict[int, Any]
    """Of the jobs that have no outcome."""
    size: int

    def page(self, number: int) -> bytes:
        return self.data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]

    @property
    def header(self) -> pages.Header:
        """The header that counts."""
        return max((pages.header_of(self.page(number)) for number in (0, 1)), key=lambda each: each.transaction)

    def tree(self, table: bytes) -> pages.Tree:
        """Where a table begins."""
        page = self.page(self.header.main.root)
        nodes, complaint = pages.nodes_of(page, is_branch=False)
        assert not complaint
        return next(pages.tree_of(page, node.offset) for node in nodes if node.key == table)

    def leaf(self, table: bytes) -> int:
        """The number of the first leaf page of a table."""
        number = self.tree(table).root
        while pages.flags_of(self.page(number)) == pages.BRANCH:
            number = pages.nodes_of(self.page(number), is_branch=True)[0][0].page
        return number


@cache
def original() -> Original:
    """Return a batch with random history first, then many small records, then some large ones."""
    small = patch.multiple(journal_module, RECORD_BYTES_MAX=300, CHECKPOINT_ENTRIES=50)
    with TemporaryDirectory() as folder, small:
        journal, author = next(filter(None, (_begun(Path(folder) / str(seed) / "b", seed) for seed in count())))
        _go_on(journal, author)
        journal.close()
        with Salvage(journal.folder) as salvage:
            assert salvage.findings == []
            outcomes, inputs = brought_out(salvage)
        assert outcomes == author.outcomes
        return Original((journal.folder / "data.mdb").read_bytes(), outcomes, inputs, author.facts.size)


def _begun(place: Path, seed: int) -> tuple[BatchJournal, Author] | None:
    """Write a random history; return None when it is not worth ruining."""
    place.parent.mkdir()
    journal, author = BatchJournal.create(place, SPEC), Author("b", seed)
    for _ in range(60):
        journal.commit(author.commit())
    facts = author.facts
    is_worth_it = facts.generation >= 2 and not facts.cancelled and facts.noted and facts.count(JobState.FAILED)
    if not is_worth_it:
        journal.close()
        return None
    return journal, author


def _go_on(journal: BatchJournal, author: Author) -> None:
    facts, random = author.facts, Random(1)
    journal.commit([author._apply(e.Attached("b", facts.stint + 1)), author._apply(e.Unsealed("b"))])
    for turn in range(300):
        first = facts.size
        values = ["v" * 20, turn, None, 1.5, turn]
        given = submission(facts, [{"n": turn, "x": random.randbytes(9)}] * 6, "c", turn + 1_000)
        journal.commit([author._apply(given), author._apply(success("b", first, values))])
        author.outcomes |= {first + at: (JobState.SUCCEEDED, value) for at, value in enumerate(values)}
    first = facts.size
    journal.commit([author._apply(submission(facts, list(range(30_000)), "c", 5_000))])
    journal.commit([author._apply(success("b", first, ["z" * 3_000] * 4))])
    author.outcomes |= {first + at: (JobState.SUCCEEDED, "z" * 3_000) for at in range(4)}
    journal.commit([e.Defined("b", mark_of(b"f" * 5_000), b"f" * 5_000)])


def brought_out(salvage: Salvage) -> tuple[dict[int, Outcome], dict[int, Any]]:
    """Return (outcomes, inputs of jobs without one) by job. No job may have two of either."""
    outcomes: dict[int, Outcome] = {}
    for share in salvage.outcomes:
        span = salvage.outcome(share)
        assert not outcomes.keys() & set(range(span.start, span.stop))
        if span.state is JobState.SUCCEEDED:
            outcomes |= {span.start + at: (span.state, value) for at, value in enumerate(span.values())}
        else:
            outcomes |= {index: (span.state, failure.message) for index, failure in span.failures()}
    inputs: dict[int, Any] = {}
    for share in salvage.inputs:
        values = salvage.block(share.piece).values()[share.start - share.piece.first : share.stop - share.piece.first]
        assert not inputs.keys() & set(range(share.start, share.stop))
        inputs |= dict(enumerate(values, share.start))
    return outcomes, inputs


def place_of(folder: Path, data: bytes) -> Path:
    """Make a batch's folder of these bytes."""
    place = folder / "b"
    place.mkdir(exist_ok=True)
    (place / "data.mdb").write_bytes(data)
    (place / "lock.mdb").unlink(missing_ok=True)
    return place


def flipped(data: bytes, offset: int, bit: int = 0) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def overwritten(data: bytes, offset: int, what: bytes) -> bytes:
    """Return the bytes with some of them replaced."""
    return data[:offset] + what + data[offset + len(what) :]


@cache
def deadly() -> bytes:
    """Return a batch with one bit changed, so that an assertion of LMDB's kills whoever opens it."""
    made = original()
    root = made.tree(tables.OUTCOMES).root * PAGE_BYTES
    for offset, bit in product(range(pages.PAGE_HEAD_BYTES, 2 * pages.PAGE_HEAD_BYTES), range(8)):
        data = flipped(made.data, root + offset, bit)
        with TemporaryDirectory() as folder:
            place = place_of(Path(folder), data)
            with Isolated(lambda _, place=place: BatchJournal(place).close()) as child:  # type: ignore[misc]
                deque(child.told(), maxlen=0)
        if child.signal:
            return data
    raise AssertionError("LMDB survives each of these bits")


def change(place: Path, table: bytes, key: bytes, value: bytes | None) -> None:
    """Write past the journal, as a bug would; None deletes."""
    with lmdb.open(str(place), max_dbs=len(tables.TABLES), map_size=1 << 26, lib_version=0) as env:
        db = env.open_db(table, create=False)
        with env.begin(write=True, db=db) as txn:
            if value is None:
                assert txn.delete(key)
            else:
                txn.put(key, value)


def stored(place: Path, table: bytes) -> dict[bytes, bytes]:
    """Return all of a table."""
    with lmdb.open(str(place), max_dbs=len(tables.TABLES), readonly=True, lib_version=0) as env:
        db = env.open_db(table, create=False)
        with env.begin(db=db) as txn:
            return {bytes(key): bytes(value) for key, value in txn.cursor()}


def node_offset(page: bytes, index: int) -> int:
    """Return where in a page an entry begins."""
    return int(struct.unpack_from("=H", page, pages.PAGE_HEAD_BYTES + 2 * index)[0])
