"""Every batch of a journal in a row, whatever state it is in: what is needed to choose among them.

Nothing is decided here. The one idea: children open the batches, so that one which kills whoever opens it costs its
own row, and reading a thousand good ones costs one fork.
"""

from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchd.core.facts import BatchState
from batchd.edge.environment import DATA_NAME
from batchd.edge.folder import disk_bytes
from batchd.edge.isolation import Isolated, each_in_turn
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import batch_folders, open_batch
from batchd.errors import BatchdError, JournalCrowded, JournalNewer

RUNNING: Final = "running"
INTERRUPTED: Final = "interrupted"
IDLE: Final = "idle"
"""The state of a queue in which nothing waits."""
DAMAGED: Final = "damaged"
NEWER: Final = "newer"
CROWDED: Final = "crowded"
QUEUE: Final = "queue"
_OVER: Final = frozenset({BatchState.FINISHED, BatchState.STOPPED, BatchState.CANCELLED})


class Row(NamedTuple):
    """A batch as it is listed."""

    folder: Path
    state: str
    """What `batchd ls` says; `newer` for a batch of a later format, `crowded` while it has no place for readers."""
    changed: float
    """When it was written last, in seconds since the epoch."""
    disk_bytes: int
    name: str = ""
    is_queue: bool = False
    error: str = ""

    @property
    def batch(self) -> str:
        """Its id."""
        return self.folder.name


def is_queue(spec: Mapping[str, Any]) -> bool:
    """Whether applications hand jobs to the batch one by one, without an end."""
    return bool(spec.get("input", {}).get("kind") == QUEUE)


def unread_state(error: BatchdError) -> str:
    """Return the state of a batch that cannot be read: not all that keeps people from reading it is damage."""
    if isinstance(error, JournalCrowded):
        return CROWDED
    return NEWER if isinstance(error, JournalNewer) else DAMAGED


def take_census(folder: Path, live: Collection[str] = ()) -> list[Row]:
    """Return a row for every batch of the journal in `folder`, the one that changed last first.

    `live` are the batches that a supervisor has open: they are running, whatever can be read of them.
    """
    places = batch_folders(folder)
    rows = []
    for place, found in zip(places, each_in_turn(places, _describe), strict=True):
        if row := _row(place, _of_death(found.death) if isinstance(found, Isolated) else found, live):
            rows.append(row)
    return sorted(rows, key=lambda row: (row.changed, row.batch), reverse=True)


def _row(place: Path, fields: dict[str, Any], live: Collection[str]) -> Row | None:
    try:
        changed = max(file.stat().st_mtime for file in (place, place / DATA_NAME) if file.exists())
        size = disk_bytes(place)
    except (OSError, ValueError):
        return None  # It was removed while this was reading.
    state = RUNNING if place.name in live else fields["state"]
    told = (fields.get("name", ""), fields.get("is_queue", False), fields.get("error", ""))
    return Row(place, state, changed, size, *told)


def _of_death(death: str) -> dict[str, Any]:
    return {"state": DAMAGED, "error": f"whoever opens it dies: {death}"}


def _describe(place: Path) -> dict[str, Any]:
    try:
        journal = open_batch(place)
    except BatchdError as error:
        return {"state": unread_state(error), "error": str(error)}
    with closing(journal):
        name, of_queue = str(journal.spec.get("name", "")), is_queue(journal.spec)
        return {"state": _state_of(journal), "name": name, "is_queue": of_queue}


def _state_of(journal: BatchJournal) -> str:
    facts = journal.facts
    if facts.state in _OVER:
        return facts.state.value
    return IDLE if is_queue(journal.spec) and facts.done.size == facts.size else INTERRUPTED
