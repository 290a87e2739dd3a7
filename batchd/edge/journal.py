"""The journal of one batch: an LMDB environment in a folder of its own.

The supervisor is the only writer, one transaction per commit. Nothing here decides anything or reads a clock. Done is
the set of outcome records; the checkpoint is a cache of the facts, so that opening a batch reads only what came
after it: the log, and the records in the checkpoint's gaps. Tables and keys: formats/tables.py. Large values
lie in files beside the environment (worker/valuefiles.py), and a client writes those of its own inputs.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import lmdb

from batchd.core import entries as e
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.core.stored import copy, entry_of, facts_of, fields_of, stored_of
from batchd.edge.datafile import require_whole
from batchd.edge.drafts import make_batch
from batchd.edge.environment import DATA_NAME, Files, open_environment, readers, readers_in
from batchd.edge.folder import disk_bytes, unwritten
from batchd.errors import (
    BatchdError,
    FormatError,
    IllegalTransition,
    JournalCrowded,
    JournalDamaged,
    JournalNewer,
)
from batchd.formats import tables
from batchd.formats.reference import Buffer, Reference
from batchd.formats.segment import Encoding, header_of, pack, pack_items, references_in
from batchd.settings import (
    CHECKPOINT_ENTRIES,
    FORMAT_VERSION,
    READERS_CHECK_COMMITS,
    READERS_MAX,
    RECORD_BYTES_MAX,
)
from batchd.worker.gate import begin, gate, in_place, transaction
from batchd.worker.valuefiles import VALUES_NAME, ValueFiles

_UNREADABLE = (
    *(lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, FormatError, IllegalTransition, struct.error),
    *(ValueError, KeyError, TypeError, AttributeError),  # Of JSON that says something else than it should.
)


class Progress(NamedTuple):
    """What is durable about a batch, small enough to be told often."""

    size: int
    is_sealed: bool
    done: int
    prefix: int
    """Every job before this index has an outcome."""
    counts: dict[JobState, int]
    generation: int
    state: str
    reason: str
    """Why the batch stopped or was cancelled."""


class BatchJournal:
    """One batch on disk, opened for writing (by the supervisor) or for reading (by anybody)."""

    def __init__(self, folder: Path, *, is_writer: bool = False) -> None:
        """Open an existing batch. Raises JournalError for what is not one."""
        self.folder = folder
        require_whole(folder / DATA_NAME)
        self._is_writer = is_writer
        self._files: ValueFiles | None = None
        self._map_lock, self.is_closed = Lock(), False
        self._env = open_environment(folder) if is_writer else readers.acquire(folder)
        try:
            self._dbs = self._open_tables()
            with begin(self._env) as txn:
                found = json.loads(txn.get(tables.META_FORMAT, db=self._dbs[tables.META]) or b"{}")
                self.spec: dict[str, Any] = json.loads(txn.get(tables.META_SPEC, db=self._dbs[tables.META]) or b"{}")
            self._version = version = int(found["format"])
            self._made_by: dict[str, Any] = found
        except JournalCrowded:
            self.close()
            raise
        except (lmdb.Error, ValueError, KeyError, TypeError) as error:
            self.close()
            raise JournalDamaged(f"{folder} does not read as a batch: {error}") from None
        if version > FORMAT_VERSION:
            self.close()
            raise JournalNewer(
                f"{folder} has format {version}, this batchd reads up to {FORMAT_VERSION}: update batchd"
            )
        self.is_synced = self.spec.get("durability") != "process"
        """Whether a commit waits for the disk."""
        if is_writer and not self.is_synced:
            self._env.close()
            self._env = open_environment(folder, sync=False)
            self._dbs = self._open_tables()
        if is_writer:
            self.opened = Files(folder)
        self.usage: dict[str, Any] = {}
        self._lock = Lock()
        self._commits = self._sequence = 0
        self._checked = 0
        """The last transaction when its readers were checked."""
        self._entries_since = 0
        """How many entries the checkpoint does not cover: what a restart has to read again."""
        try:
            self.facts = self._load()
        except BatchdError:
            self.close()  # Or nobody could open it again in this process.
            raise

    @classmethod
    def create(cls, folder: Path, spec: dict[str, Any], payload: bytes = b"") -> "BatchJournal":
        """Make a batch, and open it for writing. Raises JournalError."""
        make_batch(folder, spec, payload)
        return cls(folder, is_writer=True)

    # --- Reading -----------------------------------------------------------------------------------------------

    def begin(self) -> "AbstractContextManager[lmdb.Transaction[bytes]]":
        """Read for a moment: no fork happens meanwhile, and nobody's code runs."""
        return begin(self._env)

    @contextmanager
    def held(self) -> "Iterator[lmdb.Transaction[memoryview] | None]":
        """Let a thread read for a moment beside the one that writes; gives None when the batch is closed.

        Meanwhile the environment is not closed and its map not moved: LMDB would do both under a transaction.
        """
        with self._map_lock:
            if self.is_closed:
                yield None
            else:
                with transaction(self._env, buffers=True) as txn:
                    yield txn

    def table(self, name: bytes) -> Any:
        """Return the handle of a table of formats/tables.py."""
        return self._dbs[name]

    def refresh(self) -> BatchFacts:
        """Read the facts again, as far as they are durable now."""
        self.facts = self._load()
        return self.facts

    def read_usage(self) -> dict[str, Any]:
        """Return what running the batch has used so far (seconds, bytes), as the last checkpoint knew it."""
        with self.begin() as txn:
            return dict(json.loads(bytes(txn.get(tables.META_USAGE, db=self._dbs[tables.META]) or b"{}")))

    def function(self, mark: bytes) -> bytes:
        """Return the pickled callable of that mark. Raises JournalDamaged when there is none."""
        with self.begin() as txn:
            payload = txn.get(mark, db=self._dbs[tables.FUNCTIONS])
        if payload is None:
            raise JournalDamaged(f"batch {self.folder.name}: the function {mark.hex()} is missing")
        return bytes(payload)

    def known_key(self, digest: bytes) -> tuple[int, bytes] | None:
        """Return (index, digest of the input) of the job that has the key of that digest, None when none has."""
        with self.begin() as txn:
            found = txn.get(digest, db=self._dbs[tables.KEYS])
        return (tables.INDEX.unpack(found[:8])[0], bytes(found[8:])) if found else None

    def bytes_used(self) -> int:
        """Return what the batch occupies on the disk."""
        return disk_bytes(self.folder)

    def bytes_reusable(self) -> int:
        """Return how much of the data file is taken and holds nothing: about what it need not grow for."""
        try:
            with self.begin() as txn:
                stats = [self._env.stat(), *(txn.stat(db=db) for db in self._dbs.values())]
        except JournalCrowded:
            return 0  # Nobody can look.
        used = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return max(0, self._env.info()["last_pgno"] + 1 - used) * stats[0]["psize"]

    def keep(self, parts: Sequence[Buffer]) -> Reference | None:
        """Write a large input to a file of its own, which stays until this is closed or a record names it."""
        if self._files is None:
            self._files = ValueFiles(
                self.folder, is_synced=self.is_synced, is_checked=not self.spec.get("is_throwaway")
            )
        return self._files.keep(parts)

    def _open_tables(self) -> dict[bytes, Any]:
        if not self._is_writer:
            names = tables.TABLES
            with gate.inside:
                return in_place(self._env, lambda: {name: self._env.open_db(name, create=False) for name in names})
        # For `open_db` by itself waits for the lock without letting any thread run.
        with self._env.begin(write=True) as txn:
            return {name: self._env.open_db(name, txn=txn, create=False) for name in tables.TABLES}

    def _load(self) -> BatchFacts:
        """Return the facts. Raises JournalDamaged."""
        try:
            return self._fold()
        except _UNREADABLE as error:
            raise JournalDamaged(f"batch {self.folder.name}: {type(error).__name__}: {error}") from None

    def _fold(self) -> BatchFacts:
        """Fold the checkpoint, the log behind it, and the outcome records in the checkpoint's gaps."""
        with self.begin() as txn:
            stored = json.loads(bytes(txn.get(tables.META_CHECKPOINT, db=self._dbs[tables.META]) or b"{}"))
            facts = facts_of(self.folder.name, stored)
            self._sequence = stored.get("log", 0)
            entries_since = records = 0
            for sequence, entry in self._log(txn, self._sequence):
                self._sequence = sequence
                entries_since += 1
                apply(facts, entry)
            for found, entries in self._outcomes_in_gaps(txn, facts):
                records += found
                entries_since += len(entries)
                for entry in entries:
                    apply(facts, entry)
            total = txn.stat(db=self._dbs[tables.OUTCOMES])["entries"]
        if total != stored.get("records", 0) + records:
            raise JournalDamaged(
                f"batch {facts.batch}: the checkpoint tells of {stored.get('records', 0)} outcome records and "
                f"{records} came later, but there are {total}"
            )
        self._entries_since = entries_since
        return facts

    def _log(self, txn: lmdb.Transaction, after: int) -> Iterator[tuple[int, e.Entry]]:
        cursor = txn.cursor(db=self._dbs[tables.LOG])
        found = cursor.set_range(tables.INDEX.pack(after + 1))
        while found:
            for fields in json.loads(bytes(cursor.value())):
                yield tables.INDEX.unpack(cursor.key())[0], entry_of(self.folder.name, fields)
            found = cursor.next()

    def _outcomes_in_gaps(self, txn: lmdb.Transaction, facts: BatchFacts) -> Iterator[tuple[int, list[e.Entry]]]:
        cursor = txn.cursor(db=self._dbs[tables.OUTCOMES])
        for start, stop in list(facts.done.gaps(0, facts.size)):
            found = cursor.set_range(tables.OUTCOME.pack(facts.generation, start))
            while found and tables.OUTCOME.unpack(cursor.key()) < (facts.generation, stop):
                entries: list[e.Entry] = []
                record, at = cursor.value(), 0
                while at < len(record):
                    first, count, state, length = header_of(record, at)
                    entries.append(e.Recorded(facts.batch, first, count, JobState(state)))
                    at += length
                yield 1, entries
                found = cursor.next()

    # --- Writing -----------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[e.Entry]) -> Progress:
        """Make the entries durable, all or none. Raises lmdb.Error, then nothing in memory has changed."""
        while True:
            try:
                self._write(entries)
            except lmdb.MapFullError:
                with self._map_lock:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
            else:
                break
        with self._lock:
            for entry in entries:
                apply(self.facts, entry)
        self._commits += 1
        if self._commits % READERS_CHECK_COMMITS == 0:
            self._env.reader_check()
            self._checked = self._env.info()["last_txnid"]
        if any(isinstance(entry, e.Detached) for entry in entries):
            self._env.sync(True)
        return self.progress()

    def snapshot(self) -> BatchFacts:
        """Return a copy of the facts, also while another thread commits."""
        with self._lock:
            return copy(self.facts)

    def last_of(self, client: str) -> tuple[int, int]:
        """Return (number of a client's last submission, its first job), also while another thread commits."""
        with self._lock:
            return self.facts.sequences.get(client, (0, 0))

    @property
    def was_crowded(self) -> bool:
        """Whether all places for readers have ever been taken: who died in one is in the way of whoever comes."""
        return bool(self._env.info()["num_readers"] >= READERS_MAX)

    def clear_places(self) -> None:
        """Free the places of dead readers. For a thread beside the one that writes; it may wait for who comes."""
        with self._map_lock:
            if not self.is_closed:
                self._env.reader_check()

    def late_readers(self) -> dict[tuple[int, int], int]:
        """Return how many commits ago who still reads began, by (pid, transaction); only those of long ago."""
        if not self._checked:
            return {}
        ago = {(pid, transaction): self._checked - transaction for pid, transaction in readers_in(self._env)}
        return {reader: commits for reader, commits in ago.items() if commits >= READERS_CHECK_COMMITS}

    def replace_spec(self, spec: dict[str, Any]) -> None:
        """Store another specification: the user said that changed code continues the batch."""
        try:
            with self._writing() as txn:
                txn.put(tables.META_SPEC, json.dumps(spec).encode(), db=self._dbs[tables.META])
        except lmdb.Error as error:
            raise unwritten(error, self.folder, f"cannot write to the batch in {self.folder}") from None
        self.spec = spec

    def replace_function(self, mark: bytes, payload: bytes) -> None:
        """Store the callable that the batch goes on with."""
        try:
            with self._writing() as txn:
                if txn.get(mark, db=self._dbs[tables.FUNCTIONS]) != payload:
                    txn.put(mark, payload, db=self._dbs[tables.FUNCTIONS])
        except lmdb.Error as error:
            raise unwritten(error, self.folder, f"cannot write to the batch in {self.folder}") from None

    def progress(self) -> Progress:
        """Return what is durable now."""
        facts = self.facts
        first = facts.done.first()
        return Progress(
            size=facts.size,
            is_sealed=facts.is_sealed,
            done=facts.done.size,
            prefix=first[1] if first and first[0] == 0 else 0,
            counts=dict(facts.counts),
            generation=facts.generation,
            state=facts.state.value,
            reason=facts.cancelled or facts.stopped,
        )

    def close(self) -> None:
        """Close the environment, or let go of one that others in this process read as well."""
        if self._files is not None:
            self._files.close()
        with self._map_lock:
            self.is_closed = True
            if self._is_writer:
                self._env.close()
            else:
                readers.release(self._env)

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction]:
        """Write to a batch, all or nothing; with the first of it an older batchd can read the batch no more."""
        with self._env.begin(write=True) as txn:
            if self._version < FORMAT_VERSION:
                raised = {**self._made_by, "format": FORMAT_VERSION}
                txn.put(tables.META_FORMAT, json.dumps(raised).encode(), db=self._dbs[tables.META])
            yield txn
        self._version = FORMAT_VERSION

    def _write(self, entries: Sequence[e.Entry]) -> None:
        generation = self.facts.generation
        outcomes: dict[int, list[e.Recorded]] = {}
        log: list[dict[str, Any]] = []
        noted = RangeSet()
        trimmed: list[Reference] = []
        with self._writing() as txn:
            for entry in entries:
                match entry:
                    case e.Recorded():
                        outcomes.setdefault(generation, []).append(entry)
                        self._drop_notes(txn, noted, entry)
                    case e.Explained():
                        txn.put(entry.fingerprint, entry.text, overwrite=False, db=self._dbs[tables.CAUSES])
                    case e.Defined():
                        txn.put(entry.mark, entry.payload, overwrite=False, db=self._dbs[tables.FUNCTIONS])
                    case e.Trimmed():
                        trimmed += self._trim(txn, entry.ranges)
                        for mark in entry.marks:
                            txn.delete(mark, db=self._dbs[tables.FUNCTIONS])
                    case e.Noted():
                        txn.put(tables.INDEX.pack(entry.index), entry.payload, db=self._dbs[tables.NOTES])
                        if entry.index not in self.facts.noted:  # Or a job that leaves one each second fills the log.
                            log.append(fields_of(entry))
                        noted.add(entry.index, entry.index + 1)
                    case e.Submitted():
                        self._put_inputs(txn, entry)
                        log.append(fields_of(entry))
                    case e.Reopened():
                        generation = entry.generation
                        log.append(fields_of(entry))
                    case _:
                        log.append(fields_of(entry))
            sequence = self._sequence + bool(log)
            if log:
                txn.put(tables.INDEX.pack(sequence), json.dumps(log).encode(), append=True, db=self._dbs[tables.LOG])
            for number, made in outcomes.items():
                self._put_outcomes(txn, number, made)
            entries_since = self._entries_since + len(log) + sum(map(len, outcomes.values()))
            is_due = entries_since >= max(CHECKPOINT_ENTRIES, len(self.facts.done))
            if is_due or any(isinstance(entry, e.Detached | e.Reopened | e.Trimmed) for entry in entries):
                self._put_checkpoint(txn, entries, sequence)
                entries_since = 0
        self._sequence, self._entries_since = sequence, entries_since
        for reference in trimmed:
            with suppress(OSError):  # Whoever removes the batch removes what is left.
                (self.folder / VALUES_NAME / reference.name).unlink()

    def _put_inputs(self, txn: lmdb.Transaction, entry: e.Submitted) -> None:
        index = entry.first
        for block in entry.segments:
            txn.put(tables.INDEX.pack(index), block, append=True, db=self._dbs[tables.INPUTS])
            index += header_of(block)[1]
        for at in range(0, len(entry.keys), tables.KEY_BYTES):
            digest, of_input = entry.keys[at : at + 16], entry.keys[at + 16 : at + tables.KEY_BYTES]
            known = tables.INDEX.pack(entry.first + at // tables.KEY_BYTES) + of_input
            txn.put(digest, known, db=self._dbs[tables.KEYS])

    def _drop_notes(self, txn: lmdb.Transaction, new: RangeSet, made: e.Recorded) -> None:
        """Forget the checkpoints of jobs that have an outcome now, also those that are `new` in this transaction."""
        for noted in (self.facts.noted, new):
            for start, stop in noted.overlap(made.first, made.first + made.count) if noted else ():
                for index in range(start, stop):
                    txn.delete(tables.INDEX.pack(index), db=self._dbs[tables.NOTES])

    def _trim(self, txn: lmdb.Transaction, ranges: Sequence[tuple[int, int]]) -> Iterator[Reference]:
        """Delete the records that hold nothing but jobs of `ranges`; give the references that stood in them."""
        for start, stop in ranges:
            cursor = txn.cursor(db=self._dbs[tables.INPUTS])
            found = cursor.set_range(tables.INDEX.pack(start))
            while found and tables.INDEX.unpack(cursor.key())[0] + _jobs_in(cursor.value()) <= stop:
                yield from references_in(cursor.value())
                found = cursor.delete() and bool(cursor.key())  # Deleting the last succeeds, and there is no next.
            cursor = txn.cursor(db=self._dbs[tables.OUTCOMES])
            found = cursor.set_range(tables.OUTCOME.pack(self.facts.generation, start))
            while found and tables.OUTCOME.unpack(cursor.key())[1] + _jobs_in(cursor.value()) <= stop:
                yield from references_in(cursor.value())
                found = cursor.delete() and bool(cursor.key())

    def _put_outcomes(self, txn: lmdb.Transaction, generation: int, entries: list[e.Recorded]) -> None:
        db = self._dbs[tables.OUTCOMES]
        items = [(tables.OUTCOME.pack(generation, first), record) for first, record in join(entries)]
        _, added = txn.cursor(db=db).putmulti(items, overwrite=False)
        if added != len(items):
            raise JournalDamaged(f"batch {self.facts.batch}: an outcome was about to be recorded twice")

    def _put_checkpoint(self, txn: lmdb.Transaction, entries: Sequence[e.Entry], sequence: int) -> None:
        facts = copy(self.facts)
        for entry in entries:
            apply(facts, entry)
        meta, log = self._dbs[tables.META], self._dbs[tables.LOG]
        records = txn.stat(db=self._dbs[tables.OUTCOMES])["entries"]
        stored = {"log": sequence, "records": records, **stored_of(facts)}
        txn.put(tables.META_CHECKPOINT, json.dumps(stored).encode(), db=meta)
        if self.usage:
            txn.put(tables.META_USAGE, json.dumps(self.usage).encode(), db=meta)
        cursor = txn.cursor(db=log)
        found = cursor.first()
        while found:
            found = cursor.delete()


def _jobs_in(record: bytes | memoryview) -> int:
    jobs = at = 0
    while at < len(record):
        _, count, _, length = header_of(record, at)
        jobs, at = jobs + count, at + length
    return jobs


def join(entries: Iterable[e.Recorded]) -> Iterator[tuple[int, bytes]]:
    """Give (first job, record): blocks that follow each other go into one record as far as they fit."""
    parts: list[bytes] = []
    start = stop = size = 0
    for entry in sorted(entries, key=lambda entry: entry.first):
        block = entry.block or _block_of(entry)
        if parts and (entry.first != stop or size + len(block) > RECORD_BYTES_MAX):
            yield start, _joined(parts)
            parts = []
        if not parts:
            start, size = entry.first, 0
        parts.append(block)
        size += len(block)
        stop = entry.first + entry.count
    if parts:
        yield start, _joined(parts)


def _joined(parts: list[bytes]) -> bytes:
    """One record of blocks; a large one stands alone, and is not copied."""
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _block_of(entry: e.Recorded) -> bytes:
    if entry.failure:
        return pack_items(entry.first, entry.state, [entry.failure] * entry.count)
    return pack(entry.first, entry.count, entry.state, Encoding.EMPTY)
