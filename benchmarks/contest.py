"""What a number is: contenders that do the same work, what the work must yield, and the goals.

Only the vocabulary lives here. The one idea: a contender returns what its results were, never whether they were
right; `rounds` compares them with what the contest expects, before the time counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Setting:
    """How the whole run was asked for."""

    workers: int
    is_quick: bool
    scratch: Path
    """A folder for journals, on the disk that is meant to be measured."""
    scale: float = 1.0
    """Multiplies every count of jobs: tests run tiny ones."""
    peers: tuple[str, ...] = ()
    """Names of `peers.roster`: who else competes."""

    def jobs(self, full: int, quick: int) -> int:
        """Return how many jobs to run."""
        return max(20, int((quick if self.is_quick else full) * self.scale))


class Absent(Exception):
    """A contender has no time, and nothing is wrong with the benchmark: not installed, too slow, or it lost jobs."""


class Work(NamedTuple):
    """How much there is to do, and what its results add up to."""

    jobs: int
    checksum: Any


class Sample(NamedTuple):
    """One run of one contender."""

    seconds: float
    results: int
    """How many came back."""
    checksum: Any
    """What the results add up to."""
    figures: dict[str, float] = {}  # noqa: RUF012  (never changed)
    """What else was measured in the same run, by name."""
    work: Work | None = None
    """What there was to do where that was found out on the way: a slow peer gets the first so many of the jobs."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work."""

    name: str
    durability: str
    """What a finished job is safe against: `disk`, `process` or `none`."""
    run: Callable[[], Sample]
    work: Work | None = None
    """What it does where that is not what the others do: such contenders show how a figure grows."""
    peer: str = ""
    """Whom of `peers.roster` it stands for."""
    rounds_max: int | None = None
    """Where fewer rounds than the others' tell enough."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the subject must reach: a ratio of speeds to the fastest of the references, or a figure of its own."""

    subject: str
    bound: float
    references: tuple[str, ...] = ()
    figure: str = ""
    """The figure that is bounded, where there is no reference."""
    is_maximum: bool = False
    """Whether the figure must stay at or below the bound, instead of at or above it."""


@dataclass(frozen=True, slots=True)
class Contest:
    """One table of a number: who competes, for what."""

    number: str
    title: str
    jobs: int
    expected_checksum: Any
    contenders: tuple[Contender, ...]
    goals: tuple[Goal, ...]
    counted: str
    """What the clock covers, in a sentence."""
    notes: dict[str, float] = field(default_factory=dict)
    """Known facts about the work, such as its longest job."""
    rounds_max: int | None = None
    """Where a round takes minutes."""

    def work_of(self, contender: Contender, sample: Sample) -> Work:
        """What a contender had to do."""
        return sample.work or contender.work or Work(self.jobs, self.expected_checksum)
