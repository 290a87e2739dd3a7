"""What items cost, as the user says it: a function of the item, or a field.

Costs are compared with each other and with nothing else: seconds, bytes and rows do equally well. Of what is read
here only the costliest are sent; `core.costs` says why that is enough.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from batchd.core.costs import Cost, Costs
from batchd.errors import InputError

CostOf = Callable[[Any], float | None] | str


class Costing:
    """Reads the costs of one batch's items; `option` is what the user wrote to have that.

    >>> costing = Costing("pages", "cost='pages'")
    >>> costing.costly(7, costing.read([{"pages": 3}, {"pages": None}, {"pages": 1_000}], 7))
    [(0, 3.0), (2, 1000.0)]
    >>> costing.read([{"id": 1}], 8)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    batchd.errors.InputError: Item 8 of the input, {'id': 1}, has no 'pages', which cost='pages' asks for. ...
    """

    def __init__(self, cost: CostOf, option: str) -> None:
        self._cost = cost
        self._option = option
        self._costs = Costs()

    def read(self, items: Sequence[Any], first: int) -> list[float]:
        """Return what each item costs, 0 for one that is not known to; `first` is how many came before them.

        Raises InputError, and what a function of the user's raises.
        """
        return [self._read(item, first + place) for place, item in enumerate(items)]

    def costly(self, first: int, costs: Sequence[float]) -> list[Cost]:
        """Return what a submission of jobs with these costs should say; `first` is how many were submitted before."""
        self._costs.add(first, [(place, cost) for place, cost in enumerate(costs) if cost])
        return [(job - first, cost) for job, cost in self._costs.within(first, first + len(costs))]

    def _read(self, item: Any, place: int) -> float:
        found = self._cost(item) if callable(self._cost) else self._field(item, place, self._cost)
        if found is None:
            return 0.0
        try:
            cost = float(found) if not isinstance(found, str | bytes | bool) else -1.0
        except (TypeError, ValueError, OverflowError):
            cost = -1.0
        if cost < 0 or not isfinite(cost):
            raise InputError(
                f"Item {place:,} of the input, {item!r:.200}, costs {found!r:.80} by {self._option}: a cost is a "
                "number of 0 or more, or null or None where it is not known."
            )
        return cost

    def _field(self, item: Any, place: int, name: str) -> Any:
        try:
            return item[name]
        except TypeError:  # A named tuple, or nothing that has fields.
            if hasattr(item, name) and not isinstance(item, str):
                return getattr(item, name)
        except (LookupError, ValueError):
            pass
        raise InputError(
            f"Item {place:,} of the input, {item!r:.200}, has no {name!r}, which {self._option} asks for. Give every "
            f"item one, null or None where it is not known, or leave {self._option} out."
        )
