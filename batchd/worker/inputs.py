"""Reading a batch's inputs from the worker's own read-only map of the journal.

A job never runs inside a read transaction: bytes are copied out, the transaction ends, then user code runs.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import lmdb

from batchd.errors import FormatError, JournalCrowded
from batchd.formats import tables
from batchd.formats.reference import Buffer, Reference
from batchd.formats.segment import Block, unpack
from batchd.settings import CROWDED_WAIT_S, READERS_MAX, RECORD_BYTES_MAX
from batchd.worker.gate import begin, crowded, in_place
from batchd.worker.recorder import Lane
from batchd.worker.valuefiles import ValueFiles, read_value

_OPEN_MAX = 4
_Read = TypeVar("_Read")


def patiently(read: Callable[[], _Read], before_waiting: Callable[[], object] = int) -> _Read:
    """Return what is read as soon as there is a place among the batch's readers: no job here took the others."""
    while True:
        try:
            return read()
        except JournalCrowded:
            before_waiting()
            sleep(CROWDED_WAIT_S)


class BatchInputs:
    """One batch's inputs and its specification."""

    def __init__(self, folder: Path, writer: int = 0) -> None:
        """`writer`: what a worker has as a writer of value files."""
        try:
            self._env = lmdb.open(
                str(folder),
                readonly=True,
                create=False,
                max_dbs=len(tables.TABLES),
                max_readers=READERS_MAX,
                map_size=0,  # Adopts the size the supervisor chose.
                readahead=False,
                max_spare_txns=0,  # One that is kept keeps its slot, through a fork as well.
            )
        except lmdb.ReadersFullError:
            raise crowded(folder) from None
        try:
            names = (tables.INPUTS, tables.FUNCTIONS, tables.NOTES, tables.META)
            opened = in_place(self._env, lambda: [self._env.open_db(name, create=False) for name in names])
            self._inputs, self._functions, self._notes, meta = opened
            with begin(self._env) as txn:
                self.spec: dict[str, Any] = json.loads(txn.get(tables.META_SPEC, db=meta) or b"{}")
        except JournalCrowded:
            self._env.close()  # Or this process could not open it again.
            raise
        self._read_value = partial(read_value, folder)
        self.files = ValueFiles(
            folder,
            is_synced=self.spec.get("durability") != "process",
            is_checked=not self.spec.get("is_throwaway"),
            worker=writer,
        )
        self._block: tuple[int, Block] | None = None
        self._values: Sequence[Any] | None = None

    def block(self, index: int) -> tuple[int, Block]:
        """Return (first job, block) of the input block that holds job `index`. Raises FormatError, JournalCrowded."""
        if self._block is not None and self._block[0] <= index < self._block[0] + self._block[1].count:
            return self._block
        first, record = self._read(index)
        block = next(unpack(record, self._read_value), None)
        if block is None or index >= first + block.count:
            raise FormatError(f"the journal holds no input for job {index}")
        # A large block is one job's, and would stay in memory until the next one comes.
        self._block = (first, block) if len(block.body) <= RECORD_BYTES_MAX else None
        self._values = None
        return first, block

    def plain(self, block: Block) -> Sequence[Any]:
        """Return the values of a block of plain ones, decoded once for all leases that share it."""
        if self._block is None or block is not self._block[1]:
            return block.plain()
        if self._values is None:
            self._values = block.plain()
        return self._values

    def function(self, mark: bytes) -> bytes:
        """Return the pickled function of a mark. Raises FormatError, JournalCrowded."""
        with begin(self._env) as txn:
            payload = txn.get(mark, db=self._functions)
        if payload is None:
            raise FormatError(f"the journal holds no function {mark.hex()}")
        return bytes(payload)

    def note(self, index: int) -> bytes | None:
        """Return the checkpoint that job `index` left last, None when there is none."""

        def read() -> bytes | None:
            with begin(self._env) as txn:
                return txn.get(tables.INDEX.pack(index), db=self._notes)

        payload = patiently(read)
        return bytes(payload) if payload is not None else None

    def _read(self, index: int) -> tuple[int, bytes]:
        with begin(self._env) as txn:
            cursor = txn.cursor(db=self._inputs)
            key = tables.INDEX.pack(index)
            if (not cursor.set_range(key) or cursor.key() != key) and not cursor.prev():
                raise FormatError(f"the journal holds no input for job {index}")
            return tables.INDEX.unpack(cursor.key())[0], bytes(cursor.value())

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


class JournalInputs:
    """The batches a worker reads, the last few kept open: one that was put down in between is opened anew.

    What lies in its folder by then may be another batch, or the same one out of a backup, and the file that was open
    is nobody's any more.
    """

    def __init__(self, batches: Path, writer: int) -> None:
        self._folder = batches
        self._writer = writer
        self._open: OrderedDict[str, tuple[int, BatchInputs]] = OrderedDict()
        """With the stint for which they were opened."""

    def batch(self, lane: Lane) -> BatchInputs:
        """Return the inputs of the batch that a lease is of. Raises JournalCrowded."""
        stint, inputs = self._open.get(lane.batch, (0, None))
        if inputs is not None and stint == lane.stint:
            self._open.move_to_end(lane.batch)
            return inputs
        if inputs is not None:
            self._open.pop(lane.batch)[1].close()  # First: LMDB must not have a file open twice.
        inputs = BatchInputs(self._folder / lane.batch, self._writer)
        self._open[lane.batch] = lane.stint, inputs
        if len(self._open) > _OPEN_MAX:
            self._open.popitem(last=False)[1][1].close()
        return inputs

    def keep(self, lane: Lane, index: int, parts: Sequence[Buffer]) -> Reference | None:
        """Write a job's large result to a file of its own."""
        return self.batch(lane).files.keep(parts, index)
