"""Which numbers can be measured. A new one is a file with a function from Setting to contests, and a line here."""

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import (
    n1_noop,
    n2_submit,
    n3_round_trip,
    n4_tail,
    n5_scale,
    n6_restart,
    n7_death,
    n8_arrays,
    n9_workers,
    n10_start,
    n11_kills,
    n12_restart,
)
from benchmarks.contest import Contest, Setting

NUMBERS: Final[Mapping[str, Callable[[Setting], list[Contest]]]] = {
    "N1": n1_noop.contests,
    "N2": n2_submit.contests,
    "N3": n3_round_trip.contests,
    "N4": n4_tail.contests,
    "N5": n5_scale.contests,
    "N6": n6_restart.contests,
    "N7": n7_death.contests,
    "N8": n8_arrays.contests,
    "N9": n9_workers.contests,
    "N10": n10_start.contests,
    "N11": n11_kills.contests,
    "N12": n12_restart.contests,
}
