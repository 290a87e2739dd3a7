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

    def read(self, items: Sequence[Any], first: int, place_of: Callable[[int], str] = lambda _: "") -> list[float]:
        """Return what each item costs, 0 for one that is not known to; `first` is how many came before them.

        `place_of` tells where an item lies that people can open, '' where none does. Raises InputError, and what a
        function of the user's raises.
        """
        return [self.of(item, first + at, lambda: place_of(at)) for at, item in enumerate(items)]  # noqa: B023

    def read_until_error(self, items: Sequence[Any], first: int) -> tuple[list[float], Exception | None]:
        """Return what items cost, up to the first whose cost cannot be read, and what that raised."""
        costs: list[float] = []
        try:
            for place, item in enumerate(items, first):
                costs.append(self.of(item, place))
        except Exception as error:
            return costs, error
        return costs, None

    def costly(self, first: int, costs: Sequence[float]) -> list[Cost]:
        """Return what a submission of jobs with these costs should say; `first` is how many were submitted before."""
        self._costs.add(first, [(place, cost) for place, cost in enumerate(costs) if cost])
        return [(job - first, cost) for job, cost in self._costs.within(first, first + len(costs))]

    def of(self, item: Any, place: int, where: Callable[[], str] = str) -> float:
        """Return what one item costs. Raises InputError, and what a function of the user's raises."""
        try:
            found = self._cost(item) if callable(self._cost) else field_of(item, self._cost)
        except NoField as error:
            raise InputError(
                f"{_named(item, place, where)} has no {error.args[0]!r}, which {self._option} asks for. Give every "
                f"item one, null or None where it is not known, or leave {self._option} out."
            ) from None
        except Exception as error:
            error.add_note(f"while {self._option} looked at item {place:,} of the input, {shown(item)}")
            raise
        if found is None:
            return 0.0
        try:
            cost = float(found) if not isinstance(found, str | bytes | bool) else -1.0
        except (TypeError, ValueError, OverflowError):
            cost = -1.0
        if cost < 0 or not isfinite(cost):
            raise InputError(
                f"{_named(item, place, where)} costs {found!r:.80} by {self._option}: a cost is a "
                "number of 0 or more, or null or None where it is not known."
            )
        return cost


class NoField(Exception):
    """An item has no field of that name."""


def field_of(item: Any, name: str) -> Any:
    """Return a field of an item, or an attribute of one that has no fields. Raises NoField.

    >>> field_of({"pages": 3}, "pages"), field_of(3 + 4j, "imag")
    (3, 4.0)
    """
    try:
        return item[name]
    except TypeError:  # A named tuple, or nothing that has fields.
        if hasattr(item, name) and not isinstance(item, str):
            return getattr(item, name)
    except (LookupError, ValueError):
        pass
    raise NoField(name)


def _named(item: Any, place: int, where: Callable[[], str]) -> str:
    """Return what a sentence about an item begins with."""
    return f"{where() or f'Item {place:,} of the input'}, {shown(item)},"


def shown(item: Any) -> str:
    """Return an item as a sentence shows it, whatever its own code does.

    >>> shown({"pages": 3})
    "{'pages': 3}"
    """
    try:
        return f"{item!r:.200}"
    except Exception:
        return f"a {type(item).__name__}"
