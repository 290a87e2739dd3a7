"""The intake: items in, jobs out. What a batch was given before is not submitted again.

Items are read in the caller's thread and encoded here. Jobs are known by their place in the input, which a digest
then vouches for, or by a key.
"""

import json
import marshal
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import islice
from pickle import PicklingError
from time import perf_counter
from typing import Any, Final, NoReturn, Protocol

from batchd.core.ranges import Range
from batchd.edge.journal import BatchJournal
from batchd.errors import InputChanged
from batchd.formats.segment import input_blocks, pickled_blocks
from batchd.formats.tables import KEY_DIGEST_BYTES
from batchd.formats.values import are_plain, dump

PULL_S: Final = 0.002
"""Reading input goes on for about this long before results are looked at again."""
PULL_MAX: Final = 8_192


class Door(Protocol):
    """Where jobs go: a session, or what stands for one in another thread."""

    @property
    def progress(self) -> dict[str, Any]:
        """What the supervisor last said of the batch."""

    def submit(
        self,
        body: bytes,
        checkpoint: str = "",
        keys: bytes = b"",
        then: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Add the jobs of these input segments; `then` is called with the reply when they are on disk."""

    def unseal(self) -> None:
        """Let more input come behind what was the end."""


class PlainInput:
    """Input whose jobs are known by their place. A durable batch remembers a digest of what it was given."""

    def __init__(self, door: Door, *, keep_digest: bool) -> None:
        self.items: Iterator[Any] = iter(())
        self.is_over = False
        self.skipped = 0
        """Items that the batch had been given before."""
        self.bytes_per_item = 0
        """Of the last items that were submitted."""
        self.door = door
        self._hash = blake2b(digest_size=16) if keep_digest else None
        self._size = 0
        self._step = 1

    def begin(self, journal: BatchJournal, *, is_known: bool = False) -> None:
        """Take in what the batch holds. It is read again, and refused if it is not the same, unless `is_known`."""
        known = json.loads(journal.facts.checkpoint or "{}")
        self._known = journal.facts.size
        self._known_digest = known.get("digest", "")
        if is_known and self._known:  # Nothing vouches for the whole any more.
            self._size, self._hash = self._known, None

    def pull(self, count: int) -> list[Range]:
        """Read up to `count` items, or as many as come soon, and submit them; return their jobs."""
        start = self._size
        is_known = start < self._known
        wanted = min(count, self._step, self._known - start) if is_known else min(count, self._step)
        since = perf_counter()
        items = list(islice(self.items, wanted))
        # Slow items are not waited for in groups.
        self._step = min(PULL_MAX, 2 * self._step) if perf_counter() - since < PULL_S else max(1, self._step // 2)
        self._size += len(items)
        if not items:
            self.is_over = True
            if is_known:
                raise InputChanged(
                    f"the input ends after {start:,} items, and the batch was given {self._known:,}: "
                    "use another name for other input, or key="
                )
            return []
        pickles = None if are_plain(items) else [pickled(item) for item in items]
        if self._hash is not None:
            self._hash.update(marshal.dumps(tuple(items), 2)[5:] if pickles is None else b"".join(pickles))
        if is_known:
            self.skipped += len(items)
            self._check_known()
        else:
            self._submit(items, pickles)
        return [(start, self._size)]

    def _check_known(self) -> None:
        if self._size == self._known and self._hash is not None and self._hash.hexdigest() != self._known_digest:
            raise InputChanged(
                f"the first {self._known:,} items are not those the batch was given before: use another name for "
                "other input, or key= to tell items by something that stays"
            )

    def _submit(self, items: list[Any], pickles: list[bytes] | None) -> None:
        if self.door.progress["is_sealed"]:
            self.door.unseal()
        checkpoint = json.dumps({"digest": self._hash.hexdigest()}) if self._hash is not None else ""
        blocks = input_blocks(items) if pickles is None else pickled_blocks(pickles)
        body = b"".join(block for _, block in blocks)
        self.bytes_per_item = len(body) // len(items)
        self.door.submit(body, checkpoint)


class KeyedInput:
    """Input whose jobs are known by a key: only what is new, or changed under its key, is submitted."""

    def __init__(self, door: Door, key: Callable[[Any], Any]) -> None:
        self.items: Iterator[Any] = iter(())
        self.is_over = False
        self.skipped = 0
        """Items that have a job already."""
        self.bytes_per_item = 0
        """Of the last items that were submitted."""
        self.door = door
        self._key = key
        self._fresh: dict[bytes, tuple[int, bytes]] = {}
        """What was submitted and is not in the journal yet."""

    def begin(self, journal: BatchJournal, *, is_known: bool = False) -> None:  # noqa: ARG002
        """Take in what the batch holds."""
        self._journal = journal
        self._size = journal.facts.size

    def pull(self, count: int) -> list[Range]:
        """Read up to `count` items and submit those that are new; return the jobs of all of them."""
        items = list(islice(self.items, min(count, 512)))
        self.is_over = not items
        jobs: list[Range] = []
        payloads: list[bytes] = []
        keys: list[bytes] = []
        for item in items:
            payload = pickled(item)
            digest, content = key_digests(self._key(item), item, payload)
            known = self._fresh.get(digest) or self._journal.known_key(digest)
            if known is not None and known[1] == content:
                index = known[0]
                self.skipped += 1
            else:
                index, self._size = self._size, self._size + 1
                self._fresh[digest] = index, content
                payloads.append(payload)
                keys.append(digest + content)
            jobs.append((index, index + 1))
        if payloads:
            self._submit(payloads, keys)
        return jobs

    def _submit(self, payloads: list[bytes], keys: list[bytes]) -> None:
        if self.door.progress["is_sealed"]:
            self.door.unseal()

        def then(_: dict[str, Any]) -> None:
            for key in keys:
                self._fresh.pop(key[:KEY_DIGEST_BYTES], None)

        body = b"".join(block for _, block in pickled_blocks(payloads))
        self.bytes_per_item = len(body) // len(payloads)
        self.door.submit(body, keys=b"".join(keys), then=then)


def key_digests(key: Any, item: Any, payload: bytes) -> tuple[bytes, bytes]:
    """Return (digest of a job's key, digest of its input)."""
    of_key = blake2b(_encoded(key, None), digest_size=KEY_DIGEST_BYTES).digest()
    return of_key, blake2b(_encoded(item, payload), digest_size=8).digest()


def _encoded(value: Any, payload: bytes | None) -> bytes:
    return marshal.dumps(value, 2) if are_plain([value]) else payload if payload is not None else dump(value)


def pickled(item: Any) -> bytes:
    """Return an item's pickle; of one that does not pickle, one whose job fails and says why."""
    try:
        return dump(item)
    except Exception as error:
        return dump(Unsendable(f"the input is a {type(item).__qualname__} that does not pickle: {error}"))


class Unsendable:
    """Stands in for an input that does not pickle: reading it back fails."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[Callable[[str], NoReturn], tuple[str]]:
        return refuse, (self._why,)


def refuse(why: str) -> NoReturn:
    """Fail a job whose input could not be sent."""
    raise PicklingError(why)
