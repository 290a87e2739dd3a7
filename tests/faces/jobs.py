"""What the jobs of these tests do. Each template imports it, so it imports nothing that takes long: no pytest."""

from pathlib import Path
from typing import Any, NamedTuple

from tests.contract.calls import Door, nap, note


def half(x: int) -> float:
    if x % 2:
        raise ValueError("odd" if x < 50 else f"odd and large: {x}")
    return x / 2


def fail_until(mended: str, x: int) -> int:
    """Fail for odd numbers until there is a file `mended`."""
    note(f"{mended}.ran", x)
    if x % 2 and not Path(mended).exists():
        raise ValueError(f"odd: {x}")
    return x * 10


def note_and_square(path: str, x: Any) -> Any:
    note(path, x)
    return x * x


def slow_square(path: str, x: int) -> int:
    note(path, x)
    nap(0.003)
    return x * x


def identity(path: str, item: Any) -> Any:
    note(path)
    return item


def note_and_nap(path: str, x: int) -> int:
    note(path, x)
    return int(nap(0.2, x))


def enter_odd(door: Door, x: int) -> int:
    """Odd numbers wait at the door."""
    return int(door.enter(x)) if x % 2 else x


def enter_first(door: Door, x: int) -> int:
    """The first two wait at the door."""
    return int(door.enter(x)) if x < 2 else x


def nap_or_enter(door: Door, x: int) -> int:
    """One in the first leases and one behind them wait at the door."""
    if x in {60, 230}:
        return int(door.enter(x))
    nap(0.001)
    return x


def enter_new(door: Door, item: tuple[str, int]) -> tuple[str, int]:
    """New items wait at the door."""
    return tuple(door.enter(item)) if item[0] == "new" else item


# --- Items with keys ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    id: str
    value: int


class Thing:
    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value


def value_of(path: str, row: Any) -> Any:
    note(path, row["id"])
    return row["value"]


# --- Items with costs --------------------------------------------------------------------------------------------


class Item(NamedTuple):
    number: int
    cost: float | None


def work(door: Door, path: str, item: Item) -> int:
    note(path, item.number)
    if item.number == 0:
        door.pass_through()
    nap(0.01 * (item.cost or 0.0))  # Long enough to be put in order.
    return item.number
