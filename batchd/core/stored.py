"""Entries and facts as JSON: what the journal's log and checkpoint hold.

Only shapes are turned here. What a stored fact means is said by `facts.apply`; where it lies, by the journal.
"""

import json
from typing import Any

from batchd.core import entries as e
from batchd.core.costs import Costs
from batchd.core.facts import BatchFacts
from batchd.core.job import History, JobState
from batchd.errors import FormatError

_BYTES = frozenset({"batch", "segments", "keys", "payload"})
"""Fields that the log leaves to the tables."""

_LOGGED: dict[str, type[e.Entry]] = {
    kind.__name__: kind
    for kind in (
        e.Attached,
        e.Detached,
        e.Submitted,
        e.Left,
        e.Noted,
        e.Sealed,
        e.Unsealed,
        e.Charged,
        e.Reopened,
        e.Stopped,
        e.CancelOrdered,
    )
}


def fields_of(entry: e.Entry) -> dict[str, Any]:
    """Return what the log keeps of an entry: everything but the bytes, which have tables of their own."""
    told = entry.__dataclass_fields__.keys() - _BYTES
    fields = {name: getattr(entry, name) for name in told}
    return {"entry": type(entry).__name__, **fields}


def entry_of(batch: str, fields: dict[str, Any]) -> e.Entry:
    """Return the entry that `fields_of` made these of. Raises FormatError."""
    try:
        kind = _LOGGED[fields.pop("entry")]
        if kind is e.Attached and "epoch" in fields:
            fields = {"stint": 0}  # Up to format 2 it told of the supervisor instead.
        elif kind is e.Submitted:
            fields["segments"] = ()
            fields["costs"] = tuple((place, cost) for place, cost in fields.get("costs", ()))
        elif kind is e.Noted:
            fields["payload"] = b""
        elif kind is e.Charged:
            fields["history"] = History(*fields["history"])
        elif kind is e.Reopened:
            fields["state"] = JobState(fields["state"])
            fields["ranges"] = tuple((start, stop) for start, stop in fields["ranges"])
        return kind(batch=batch, **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"batch {batch}: unreadable log entry: {error}") from None


def stored_of(facts: BatchFacts) -> dict[str, Any]:
    """Return facts as the checkpoint keeps them."""
    stored = {name: getattr(facts, name) for name in _PLAIN_FACTS}
    stored["done"] = list(facts.done)
    stored["noted"] = list(facts.noted)
    stored["costs"] = facts.costs.stored()
    stored["counts"] = {int(state): count for state, count in facts.counts.items()}
    stored["histories"] = facts.histories.marked()
    return stored


def facts_of(batch: str, stored: dict[str, Any]) -> BatchFacts:
    """Return the facts that `stored_of` made these of."""
    facts = BatchFacts(batch)
    for name in _PLAIN_FACTS & stored.keys():
        setattr(facts, name, stored[name])
    for start, stop in stored.get("done", ()):
        facts.done.add(start, stop)
    for start, stop in stored.get("noted", ()):
        facts.noted.add(start, stop)
    facts.costs = Costs(*stored.get("costs", ()))
    facts.sequences = {client: (made, first) for client, (made, first) in facts.sequences.items()}
    facts.counts = {JobState(int(state)): count for state, count in stored.get("counts", {}).items()}
    for start, stop, history in stored.get("histories", ()):
        facts.histories.put(start, stop, History(*history))
    return facts


_PLAIN_FACTS = frozenset(BatchFacts.__dataclass_fields__) - {"batch", "done", "noted", "costs", "counts", "histories"}


def copy(facts: BatchFacts) -> BatchFacts:
    """Return independent facts that are equal."""
    return facts_of(facts.batch, json.loads(json.dumps(stored_of(facts))))
