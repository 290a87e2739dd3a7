"""What was decided and is in no commit yet: the entries of each batch, in their order.

Nothing here knows the disk; when a commit is made is the loop's to say.
"""

from batchd.core.entries import Entry, Explained, Noted, Recorded, Trimmed


class Unsaved:
    """Entries that wait for the next commit.

    >>> unsaved = Unsaved()
    >>> unsaved.add(Noted("b", 7, b"old"))
    >>> unsaved.add(Noted("b", 7, b"new"))
    >>> unsaved.take()
    {'b': [Noted(batch='b', index=7, payload=b'new')]}
    >>> bool(unsaved)
    False
    """

    def __init__(self) -> None:
        self.nbytes = 0
        """Of what workers reported: it is they who can be made to wait."""
        self.is_urgent = False
        """Whether one of the entries frees something, or somebody waits for it."""
        self._entries: dict[str, list[Entry]] = {}
        self._notes: dict[tuple[str, int], int] = {}
        """Of jobs that left a checkpoint: where it stands among the batch's entries."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._entries)

    def add(self, entry: Entry, *, is_awaited: bool = False) -> None:
        """Add an entry: of a job's checkpoints the last is kept, or a slow disk would cost memory."""
        self.is_urgent |= is_awaited or not isinstance(entry, Recorded | Explained | Noted)
        entries = self._entries.setdefault(entry.batch, [])
        if isinstance(entry, Noted):
            at = self._notes.setdefault((entry.batch, entry.index), len(entries))
            if at < len(entries):
                self.nbytes += _bytes_in(entry) - _bytes_in(entries[at])
                entries[at] = entry
                return
        self.nbytes += _bytes_in(entry)
        entries.append(entry)

    def take(self) -> dict[str, list[Entry]]:
        """Return all of them, by batch, and forget them."""
        taken, self._entries, self._notes = self._entries, {}, {}
        self.nbytes, self.is_urgent = 0, False
        return taken

    def take_trims(self) -> list[Trimmed]:
        """Return those that only delete what nobody reads any more, and forget them."""
        trims = []
        is_urgent, entries = self.is_urgent, self.take()
        for entry in [entry for each in entries.values() for entry in each]:
            if isinstance(entry, Trimmed):
                trims.append(entry)
            else:
                self.add(entry)
        self.is_urgent = is_urgent
        return trims


def _bytes_in(entry: Entry) -> int:
    match entry:
        case Recorded(block=block, failure=failure):
            return len(block) + len(failure)
        case Explained(text=text):
            return len(text)
        case Noted(payload=payload):
            return len(payload)
    return 0
