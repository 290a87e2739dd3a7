"""Which numbers can be measured. A new one is a file with a function from Setting to contests, and a line here."""

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import n1_noop, n4_tail
from benchmarks.contest import Contest, Setting

NUMBERS: Final[Mapping[str, Callable[[Setting], list[Contest]]]] = {
    "N1": n1_noop.contests,
    "N4": n4_tail.contests,
}
