"""The batches that stand in a journal, for reading: all of them, or the one that a person means.

Nothing here writes or decides. The one idea: a batch that cannot be read never hides the others; it stands in their
row as what it is. LMDB allows one environment per folder and process, so every batch is closed before the next opens.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchd.edge.folder import BATCHES_NAME, journal_folder
from batchd.edge.isolation import Isolated, each_in_turn, may_try
from batchd.edge.journal import BatchJournal
from batchd.errors import BatchdError, BatchNotFound, JournalCrowded, JournalDamaged

LAST: Final = "last"
_LISTED_MAX: Final = 5


class Unread(NamedTuple):
    """A batch that cannot be read, and why."""

    folder: Path
    error: BatchdError


class _Known(NamedTuple):
    """What batches are told apart by."""

    id: str
    name: str
    is_named: bool
    created: str

    def __str__(self) -> str:
        return f"{self.id} ({self.name}, {self.created[:16].replace('T', ' ')} UTC)" if self.name else self.id


def open_batch(folder: Path) -> BatchJournal:
    """Open the batch in `folder` for reading. Whatever is wrong with it is a BatchdError."""
    try:
        return BatchJournal(folder)
    except BatchdError:
        raise
    except Exception as error:  # Damage may show as any error of a decoder.
        raise JournalDamaged(f"batch {folder.name} does not read back: {type(error).__name__}: {error}") from error


def list_batches(folder: Path) -> Iterator[BatchJournal | Unread]:
    """Give the batches of the journal in `folder`; each is closed when the next one is asked for."""
    places = batch_folders(folder)
    for place, death in zip(places, _tried(places), strict=True):
        try:
            journal = _open_tried(place, death)
        except BatchdError as error:
            if place.exists():  # Else it was deleted while this was reading.
                yield Unread(place, error)
            continue
        try:
            yield journal
        finally:
            journal.close()


def find_batch(folder: Path, text: str) -> BatchJournal:
    """Open the batch that `text` means: an id, a name, the start of an id, or `last`. Raises BatchNotFound."""
    place = find_folder(folder, text)
    (death,) = _tried([place])
    return _open_tried(place, death)


def _tried(places: Sequence[Path]) -> Iterator[str]:
    """Give for each batch how whoever opens it dies, '' when nobody does: LMDB aborts at some damage.

    In a command children open them first. Elsewhere nothing is found out.
    """
    left = len(places)
    with suppress(OSError):  # There is no process to be had.
        for found in each_in_turn(places, _try) if may_try() else ():
            left -= 1
            yield found.death if isinstance(found, Isolated) and found.is_deadly else ""
    yield from repeat("", left)


def _try(place: Path) -> dict[str, Any]:
    with suppress(Exception):  # Whoever opens it next is told.
        BatchJournal(place).close()
    return {}


def _open_tried(place: Path, death: str) -> BatchJournal:
    if death:
        raise JournalDamaged(f"batch {place.name} does not read back: whoever opens it dies: {death}")
    return open_batch(place)


def find_job(folder: Path, text: str) -> tuple[BatchJournal, int | None]:
    """Open the batch that `text` means, and return it with the job that it names as BATCH:INDEX, None without one.

    Raises BatchNotFound, also for a job that the batch does not have.
    """
    name, colon, number = text.rpartition(":")
    if not colon or not name:
        return find_batch(folder, text), None
    try:
        journal = find_batch(folder, name)
    except BatchNotFound:
        with suppress(BatchNotFound):
            return find_batch(folder, text), None  # A name may end like this.
        raise
    if not number.isdecimal():
        journal.close()
        with suppress(BatchNotFound):
            return find_batch(folder, text), None
        raise BatchNotFound(f"{number!r} is no job of {name}: write a number, such as {name}:0")
    if (index := int(number)) >= (size := journal.facts.size):
        journal.close()
        raise BatchNotFound(f"there is no job {index}: batch {journal.folder.name} has {size:,} jobs, from 0")
    return journal, index


def find_folder(folder: Path, text: str) -> Path:
    """Return the folder of the batch that `text` means, also of one that cannot be read. Raises BatchNotFound."""
    places = {place.name: place for place in batch_folders(folder)}
    if text in places:
        return places[text]
    known = list(_known(folder))
    if not known:
        raise BatchNotFound(
            f"there is no batch {text!r}: the journal {folder} is empty; `batchd run` makes the first"
        )
    return places.get(chosen := _choose(known, text, folder), folder / BATCHES_NAME / chosen)


def is_newest(batch: Path) -> bool:
    """Whether no batch of the journal was made after the one in the folder `batch`, so that `last` means it."""
    made = batch.stat().st_mtime_ns  # A batch's files are made with its folder and never renamed.
    return all(place == batch or place.stat().st_mtime_ns < made for place in batch_folders(batch.parent.parent))


def is_default(folder: Path) -> bool:
    """Whether commands without --journal use the journal in `folder`."""
    try:
        return os.path.realpath(journal_folder(None, os.environ)) == os.path.realpath(folder)
    except BatchdError:
        return False


def _choose(known: list[_Known], text: str, folder: Path) -> str:
    if text == LAST:
        return max(known, key=lambda batch: (batch.created, batch.id)).id
    found = [batch for batch in known if batch.name == text]
    found = [batch for batch in found if batch.is_named] or found
    if found and len({batch.id.partition("-")[0] for batch in found}) == 1:
        # One command, started again with --new: the latest is the one that `run` continues.
        return max(found, key=lambda batch: int(batch.id.partition("-")[2] or 1)).id
    found = found or [batch for batch in known if text and batch.id.startswith(text)]
    if len(found) == 1:
        return found[0].id
    if found:
        newest = sorted(found, key=lambda batch: batch.created, reverse=True)
        raise BatchNotFound(f"{text!r} means {len(found)} batches, name one by its id: {_listed(newest)}")
    near = difflib.get_close_matches(text, [word for batch in known for word in (batch.id, batch.name)], n=3)
    near_batches = [batch for batch in known if batch.id in near or batch.name in near]
    hint = f"did you mean {_listed(near_batches)}?" if near_batches else "`batchd ls` lists what is there"
    raise BatchNotFound(f"there is no batch {text!r} in {folder}: {hint}")


def _listed(batches: list[_Known]) -> str:
    more = f" and {len(batches) - _LISTED_MAX} more" if len(batches) > _LISTED_MAX else ""
    return ", ".join(map(str, batches[:_LISTED_MAX])) + more


def _known(folder: Path) -> Iterator[_Known]:
    for found in list_batches(folder):
        if isinstance(found, Unread):
            if isinstance(found.error, JournalCrowded):  # It may be the one that is meant.
                raise JournalCrowded(f"{found.error}, or name the batch that you mean by its id") from None
            yield _Known(found.folder.name, "", is_named=False, created="")
        else:
            spec = found.spec
            name, created = str(spec.get("name", "")), str(spec.get("created", ""))
            yield _Known(found.folder.name, name, bool(spec.get("is_named")), created)


def batch_folders(folder: Path) -> list[Path]:
    """Return the batches' folders; a name that starts with a dot is a draft, or on its way out."""
    try:
        with os.scandir(folder / BATCHES_NAME) as entries:
            return sorted(Path(entry) for entry in entries if entry.name[0] != "." and entry.is_dir())
    except FileNotFoundError:
        return []
