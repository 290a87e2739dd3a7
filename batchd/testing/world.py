"""What everything in a simulated world shares: time, chance, faults, the story, and what jobs do when they run."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple

from batchd.core import events as ev
from batchd.core.events import Options
from batchd.testing.witness import Witness


class Agenda:
    """Simulated time: what will happen, in order. Equal times keep the order in which they were written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self._items: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._written = 0

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Write down a call."""
        self._written += 1
        heappush(self._items, (when, self._written, call, args))

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Write down a call, counted from now."""
        self.at(self.now + delay_s, call, *args)

    def run_next(self) -> bool:
        """Let time pass to the next item and make it happen; return False when nothing is left."""
        if not self._items:
            return False
        when, _, call, args = heappop(self._items)
        self.now = max(self.now, when)
        call(*args)
        return True


class Story:
    """The last things that happened, told only when somebody asks."""

    def __init__(self, agenda: Agenda, lines_max: int | None) -> None:
        self._agenda = agenda
        self._lines: deque[tuple[float, str, object]] = deque(maxlen=lines_max)

    def tell(self, who: str, what: object) -> None:
        """Remember that `who` did `what`."""
        self._lines.append((self._agenda.now, who, what))

    def __str__(self) -> str:
        return "\n".join(f"{at:11.6f}  {who:<10} {self._words(what)}" for at, who, what in self._lines)

    @staticmethod
    def _words(what: object) -> str:
        if isinstance(what, ev.BatchAttached):
            return f"BatchAttached({what.facts.batch!r}, stint={what.stint})"
        return str(what)


class Deed(Enum):
    """What a run of a job does in the end."""

    SUCCEED = "succeed"
    RAISE = "raise"
    CRASH = "crash"
    HANG = "hang"


class Fate(NamedTuple):
    """A job does its deed the first so many times it runs, and succeeds from then on."""

    deed: Deed
    times: int


@dataclass(slots=True)
class Cast:
    """One batch as the world knows it: what was asked for it, and what its jobs do."""

    batch: str
    key: str
    options: Options
    fates: dict[int, Fate] = field(default_factory=dict)
    """Of the jobs that do not simply succeed."""
    duration_s: float = 0.001
    """The median of a heavy-tailed law."""
    costs: dict[int, float] = field(default_factory=dict)
    """What its client says that jobs cost."""
    edition: int = 1
    """How many batches had this id so far: each was removed before the next was made."""

    @property
    def block(self) -> bytes:
        """What a worker reports that has the inputs of this batch."""
        return b"of edition %d" % self.edition

    def deed(self, index: int, run: int) -> Deed:
        """Return what the `run`-th run (from 1) of a job does."""
        fate = self.fates.get(index)
        return fate.deed if fate is not None and run <= fate.times else Deed.SUCCEED


class Faults:
    """How many faults of each kind may still happen: a world that never stops failing proves nothing."""

    def __init__(self, chance: Random, budget: Counter[str]) -> None:
        self._chance = chance
        self._budget = budget
        self.struck: Counter[str] = Counter()

    def strikes(self, kind: str, probability: float) -> bool:
        """Return whether a fault of this kind happens here, and count it."""
        if not self._budget[kind] or self._chance.random() >= probability:
            return False
        self._budget[kind] -= 1
        self.struck[kind] += 1
        return True


@dataclass(slots=True)
class World:
    """What the simulated workers and clients have in common."""

    chance: Random
    agenda: Agenda
    story: Story
    faults: Faults
    witness: Witness
    casts: dict[str, Cast]
    post: Callable[[float, int, ev.Event], None]
    """Deliver an event at a time to the supervisor of an epoch; it is lost when that one is gone."""
    rests_idle: bool
    """Whether workers set their phase back to idle after a report, or leave it."""
    ack_s: float
    delay_s: float
    """The scale of what a message takes."""

    def delay(self) -> float:
        """Return how long a message takes."""
        return self.chance.random() ** 3 * self.delay_s
