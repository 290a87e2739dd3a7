"""Rounds: every contender once, in turn, again and again; a time counts only when its results were right.

The machine's mood changes from minute to minute, so ratios are taken within a round and their median is told. Some
contenders take part in the first rounds only, and some do fewer jobs: then rates are compared, not times. A
contender that breaks, or whose results are wrong, is refused with the reason and does not run again. One that says
itself why it has no time is absent, with that reason.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.contest import Absent, Contest, Goal, Sample, Work
from benchmarks.figures import fastest, ratios

Tell = Callable[[str], None]


class WrongResults(Exception):
    """A contender was quick and wrong."""


@dataclass(slots=True)
class Verdict:
    """How a goal ended. `reached` is None when there is nothing to judge by."""

    goal: Goal
    reference: str
    reached: float | None
    rounds: list[float]

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached."""
        if self.reached is None:
            return False
        return self.reached <= self.goal.bound if self.goal.is_maximum else self.reached >= self.goal.bound


@dataclass(slots=True)
class Outcome:
    """What came out of one contest: one list of times per contender, all of the same rounds."""

    contest: Contest
    seconds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    """How many each contender did in a round."""
    refused: dict[str, str] = field(default_factory=dict)
    """Contenders that broke or lied, and how."""
    absent: dict[str, str] = field(default_factory=dict)
    """Contenders that have no time for a reason of their own."""

    def rate(self, name: str) -> float:
        """Jobs a second, from the median time."""
        return self.jobs[name] / median(self.seconds[name])

    def figure(self, name: str, figure: str) -> float | None:
        """The median of one figure."""
        found = [sample[figure] for sample in self.figures.get(name, ()) if figure in sample]
        return median(found) if found else None

    def dismiss(self, name: str, error: Exception) -> None:
        """Forget a contender's times: those beside wrong results are worth nothing."""
        if isinstance(error, Absent):
            self.absent[name] = str(error)
        else:
            self.refused[name] = f"{type(error).__name__}: {error}"
        self.seconds.pop(name, None)
        self.figures.pop(name, None)

    def reason(self, name: str) -> str:
        """Why a contender has no time; nothing for one that has."""
        return f"refused: {self.refused[name]}" if name in self.refused else self.absent.get(name, "")

    def verdicts(self) -> list[Verdict]:
        """Every goal, held against what was measured."""
        return [self._verdict(goal) for goal in self.contest.goals]

    def _verdict(self, goal: Goal) -> Verdict:
        if goal.figure:
            found = [sample[goal.figure] for sample in self.figures.get(goal.subject, ())]
            return Verdict(goal, "", median(found) if found else None, found)
        reference = fastest(self.seconds, goal.references)
        if reference is None or not self.seconds.get(goal.subject):
            return Verdict(goal, reference or "", None, [])
        found = ratios(self.seconds[goal.subject], self.seconds[reference])
        return Verdict(goal, reference, median(found), found)


def measure(contest: Contest, rounds: int, tell: Tell) -> Outcome:
    """Run `rounds` rounds of a contest, or as many as it may have."""
    outcome = Outcome(contest)
    rounds = min(rounds, contest.rounds_max or rounds)
    for number in range(rounds):
        for contender in contest.contenders:
            if outcome.reason(contender.name) or number >= (contender.rounds_max or rounds):
                continue
            gc.collect()
            try:
                sample = contender.run()
                outcome.jobs[contender.name] = checked(contest.work_of(contender, sample), sample).jobs
            except Exception as error:
                outcome.dismiss(contender.name, error)
                tell(f"{contest.number} {contender.name}: {outcome.reason(contender.name)}")
                continue
            outcome.seconds.setdefault(contender.name, []).append(sample.seconds)
            outcome.figures.setdefault(contender.name, []).append(sample.figures)
            tell(f"round {number + 1} of {rounds}, {contest.number} {contender.name}: {sample.seconds:.3f} s")
    return outcome


def checked(work: Work, sample: Sample) -> Work:
    """The work, if all its results came back and add up. Raises WrongResults."""
    if sample.results != work.jobs:
        raise WrongResults(f"{sample.results:,} results instead of {work.jobs:,}")
    if sample.checksum != work.checksum:
        raise WrongResults(f"the results add up to {sample.checksum} instead of {work.checksum}")
    return work


def stored(outcome: Outcome) -> dict[str, Any]:
    """The outcome in JSON's types, with every round."""
    contest = outcome.contest
    return {
        "number": contest.number,
        "title": contest.title,
        "jobs": contest.jobs,
        "counted": contest.counted,
        "notes": dict(contest.notes),
        "contenders": [
            {
                "name": contender.name,
                "durability": contender.durability,
                "peer": contender.peer,
                "jobs": outcome.jobs.get(contender.name),
                "seconds": outcome.seconds.get(contender.name, []),
                "jobs_per_s": outcome.rate(contender.name) if contender.name in outcome.seconds else None,
                "figures": outcome.figures.get(contender.name, []),
                "refused": outcome.refused.get(contender.name),
                "absent": outcome.absent.get(contender.name),
            }
            for contender in contest.contenders
        ],
        "goals": [
            {
                "subject": verdict.goal.subject,
                "goal": goal_text(verdict.goal),
                "reference": verdict.reference or None,
                "reached": verdict.reached,
                "rounds": verdict.rounds,
                "is_met": verdict.is_met,
            }
            for verdict in outcome.verdicts()
        ],
    }


def goal_text(goal: Goal) -> str:
    """A goal in words.

    >>> goal_text(Goal("batchd", 0.01, figure="CPU outside jobs", is_maximum=True))
    'batchd: CPU outside jobs <= 0.01'
    """
    if goal.figure:
        return f"{goal.subject}: {goal.figure} {'<=' if goal.is_maximum else '>='} {goal.bound:g}"
    names = " or ".join(goal.references)
    choice = ", whichever is faster" if len(goal.references) > 1 else ""
    return f"{goal.subject}: >= {goal.bound:g}x {names}{choice}"
