"""Costs: which of the jobs that have not succeeded were said to be the costliest, so that they can start first.

The one idea: only the costliest matter. When K jobs cost c or more, all cost K * c or more, so that W workers that
start whatever is cheaper in the order of the input end at most c late: by a share of W / K. So COSTLY_JOBS_MAX jobs
are kept, however many have a cost, or fewer: they are cut off at a power of two, which makes that 2 * W / K at most.

Which ones follows from what was given and what is done, whatever came first: a replay, which hears of all input
before it hears of any outcome, comes to the same.
"""

from collections.abc import Iterable
from math import frexp, inf
from typing import Any, Final

from batchd.settings import COSTLY_JOBS_MAX

Cost = tuple[int, float]
"""(a job, its cost). In a submission jobs are counted from its first. Costs are finite and above 0."""

_EVERYTHING: Final = -2_000
"""Below the power of two of every cost."""


def checked_costs(found: Iterable[Iterable[Any]], jobs: int) -> tuple[Cost, ...]:
    """Return what a submission of so many jobs says of costs. Raises TypeError and ValueError.

    >>> checked_costs([[0, 2]], 1)
    ((0, 2.0),)
    """
    costs = tuple((int(place), float(cost)) for place, cost in found)
    if any(not (0 <= place < jobs and 0 < cost < inf) for place, cost in costs):
        raise ValueError("a cost that is none, or of no job")
    return costs


class Costs:
    """The costs of the costliest jobs that have not succeeded.

    >>> costs = Costs()
    >>> costs.add(100, [(0, 2.5), (7, 400.0)])
    >>> costs.drop(100, 105)
    >>> len(costs), costs.within(0, 200)
    (1, [(107, 400.0)])
    """

    __slots__ = ("_costs", "_floor", "_tally")

    def __init__(self, costs: Iterable[Cost] = (), tally: Iterable[tuple[int, int]] = ()) -> None:
        self._costs = dict(costs)
        self._tally = dict(tally)
        """How many jobs, finished ones too, had a cost of each power of two."""
        self._floor = self._lowest_kept()

    def add(self, first: int, costs: Iterable[Cost]) -> None:
        """Take in what new jobs, counted from `first`, cost."""
        powers = [(first + place, cost, frexp(cost)[1]) for place, cost in costs]
        for _, _, power in powers:
            self._tally[power] = self._tally.get(power, 0) + 1
        floor, self._floor = self._floor, self._lowest_kept()
        if floor != self._floor:
            self._costs = {job: cost for job, cost in self._costs.items() if frexp(cost)[1] >= self._floor}
        self._costs.update((job, cost) for job, cost, power in powers if power >= self._floor)

    def drop(self, start: int, stop: int) -> None:
        """Forget jobs that are not to run again."""
        for job, _ in self.within(start, stop):
            del self._costs[job]

    def within(self, start: int, stop: int) -> list[Cost]:
        """Return those of the jobs [start, stop) that are kept."""
        if stop - start < len(self._costs):
            return [(job, self._costs[job]) for job in range(start, stop) if job in self._costs]
        return [(job, cost) for job, cost in self._costs.items() if start <= job < stop]

    def stored(self) -> tuple[list[Cost], list[tuple[int, int]]]:
        """Return what `Costs` can be made of again."""
        return sorted(self._costs.items()), sorted(self._tally.items())

    def _lowest_kept(self) -> int:
        """Return the power of two from which on there are few enough."""
        jobs = 0
        for power, count in sorted(self._tally.items(), reverse=True):
            jobs += count
            if jobs > COSTLY_JOBS_MAX:
                return power + 1
        return _EVERYTHING

    def __contains__(self, job: int) -> bool:
        return job in self._costs

    def __len__(self) -> int:
        return len(self._costs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Costs) and self.stored() == other.stored()

    def __hash__(self) -> int:
        raise TypeError("Costs change and cannot be hashed")

    def __repr__(self) -> str:
        return f"Costs{self.stored()!r}"
