"""What a source is: the items of a batch, lazily, in blocks, each with a checkpoint to go on from.

Only the vocabulary lives here; the kinds of input have a module each. The one idea: a checkpoint does not
trust the input to have stayed as it was. It carries a digest of what was consumed, and whoever goes on behind it
checks that first.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

from batchd.core.costs import Cost

BLOCK_ITEMS: Final = (64, 512, 4_096)
"""Items a block: the first blocks are small so that the first jobs start early; the last number stays."""
BLOCK_BYTES: Final = 1 << 20
"""Raw text a block, unless one item alone is longer; also the most that is read at once."""
PLACES_MAX: Final = 5
"""Of what was left out, so many places are told."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far an input was read.

    >>> Checkpoint.from_json(Checkpoint(items=2, offset=8, digest="5f").to_json())
    Checkpoint(items=2, offset=8, digest='5f')
    """

    items: int
    """Items given so far."""
    offset: int
    """Consumed so far, over all files: bytes of text, otherwise items."""
    digest: str
    """What was consumed, as the hexadecimal digest of `new_hash`."""

    def to_json(self) -> dict[str, Any]:
        """The checkpoint as the journal keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Checkpoint":
        """The checkpoint that `to_json` wrote."""
        return cls(items=fields["items"], offset=fields["offset"], digest=fields["digest"])


class Place(NamedTuple):
    """Where items come from that lie line by line."""

    first: int
    """The first of them, counted from the first of its block."""
    input: str
    line: int


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive items, and the checkpoint behind the last of them.

    >>> Block("abc", Checkpoint(3, 9, ""), places=[Place(0, "one.txt", 7), Place(2, "two.txt", 1)]).place_of(1)
    'one.txt:8'
    """

    items: Sequence[Any]
    checkpoint: Checkpoint
    costs: Sequence[Cost] = ()
    """Of those that were said to be costly, counted from the first."""
    places: Sequence[Place] = field(default=(), compare=False)
    """Of items that lie in lines, in order."""

    def place_of(self, item: int) -> str:
        """Return where an item, counted from the first, comes from, '' when it lies in no line."""
        at = bisect_right(self.places, item, key=itemgetter(0)) - 1
        return f"{self.places[at].input}:{self.places[at].line + item - self.places[at].first}" if at >= 0 else ""


class Source(Protocol):
    """The items of a batch."""

    @property
    def spec(self) -> dict[str, Any]:
        """The identity of the input, JSON-able: equal specs mean the same batch goes on."""

    @property
    def skipped(self) -> int:
        """Malformed items this source has left out so far, because it was told to."""

    @property
    def skipped_places(self) -> Sequence[str]:
        """Where the first few of them are."""

    def count(self) -> int | None:
        """How many items there are, or None when only reading would tell."""

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The items behind `start`; `InputChanged` when what lies before it is not what was read then."""


def new_hash() -> "hashlib.blake2b":
    """The hash of every checkpoint: fast, and long enough that no accident collides."""
    return hashlib.blake2b(digest_size=16)


def block_limits(sizes: Sequence[int] = BLOCK_ITEMS) -> Iterator[int]:
    """How many items each block may hold, in order, without end."""
    yield from sizes
    yield from repeat(sizes[-1])
