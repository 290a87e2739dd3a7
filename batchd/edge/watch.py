"""A batch opened as batchd opens it, by a child that may die of it; and held still while others read its file.

LMDB maps the file, so damage can kill whoever opens it: the child finds that out. The one idea: while the child holds
a read transaction, no page of that moment is used again, and reading the file page by page gives the truth of that
moment, also while a supervisor writes.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import lmdb

from batchd.edge.environment import DATA_NAME, open_environment
from batchd.edge.isolation import Isolated, Tell
from batchd.edge.journal import BatchJournal
from batchd.errors import BatchdError, JournalError
from batchd.formats import pages, tables

_BEAT_RECORDS: Final = 4096
_TRIES: Final = 1000


class Watch:
    """A batch held still. `header` is that of the moment, None when LMDB cannot open the file."""

    def __init__(self, folder: Path) -> None:
        self.header: pages.Header | None = None
        self.trouble = ""
        """Why batchd cannot open the batch, '' when it can."""
        self.kind = ""
        """The error's class, '' when there is none or the child died."""
        held, self._hold = os.pipe2(os.O_CLOEXEC)
        self._child = Isolated(lambda tell: _hold_still(folder, held, self._hold, tell))
        os.close(held)
        self._told = self._child.told()
        for fields in self._told:
            self._take(fields)
            if "header" in fields:
                break

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def finish(self) -> None:
        """Wait until the child has read everything that batchd may read; `trouble` is then all there is."""
        with suppress(BrokenPipeError):
            os.write(self._hold, b".")
        for fields in self._told:
            self._take(fields)
        if self._child.death:
            self.trouble, self.kind = self.trouble or f"whoever reads it dies: {self._child.death}", ""

    def close(self) -> None:
        """Let go."""
        self._child.close()
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def _take(self, fields: dict[str, Any]) -> None:
        if "error" in fields and not self.trouble:
            self.trouble, self.kind = fields["error"], fields["kind"]
        if fields.get("header"):
            with suppress(BatchdError):
                self.header = pages.header_of(bytes.fromhex(fields["header"]))


def _hold_still(folder: Path, held: int, others: int, tell: Tell) -> None:
    os.close(others)
    journal: BatchJournal | None = None
    try:
        journal = BatchJournal(folder)
        begin = journal.begin
    except Exception as error:  # Damage may show as any error of a decoder.
        kind = type(error).__name__ if isinstance(error, BatchdError) else ""
        tell({"error": str(error) if kind else f"{type(error).__name__}: {error}", "kind": kind})
        begin = open_environment(folder, readonly=True).begin
    for _ in range(_TRIES):
        with begin() as txn:
            header = _header_of(folder / DATA_NAME, txn.id())
            if not header:
                continue  # Two commits came in between: the header of this transaction is gone.
            tell({"header": header})
            if journal:
                _read_all(journal, txn, tell)
            os.read(held, 1)
            return
    raise JournalError(f"{folder} is written so fast that no moment of it can be held")


def _header_of(path: Path, transaction: int) -> str:
    """Return the header that the transaction reads by, in hexadecimal, '' when it was replaced meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = os.pread(fd, pages.HEADER_BYTES, 0)
        page_bytes = pages.header_of(first).page_bytes
        for data in (first, os.pread(fd, pages.HEADER_BYTES, page_bytes)):
            if pages.header_of(data).transaction == transaction:
                return data.hex()
    finally:
        os.close(fd)
    return ""


def _read_all(journal: BatchJournal, txn: lmdb.Transaction, tell: Tell) -> None:
    """Copy every record out of the map, as readers do."""
    for name in tables.TABLES:
        last, count = b"", 0
        try:
            for key, _ in txn.cursor(db=journal.table(name)):
                if count and bytes(key) <= last:
                    tell({"error": f"the keys of the table {name.decode()} go backwards", "kind": "Error"})
                    break
                last, count = bytes(key), count + 1
                if count % _BEAT_RECORDS == 0:
                    tell({})
        except lmdb.Error as error:
            tell(
                {"error": f"the table {name.decode()} cannot be read behind entry {count}: {error}", "kind": "Error"}
            )
