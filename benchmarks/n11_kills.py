"""N11: a batch of short jobs, three of which kill their worker on their first attempt. What comes back, and when?"""

from functools import partial
from typing import Final

from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.deadly import Item, contest, mortals, recovered, run_mortals
from benchmarks.jobs import kept, mortal
from benchmarks.peers.roster import contenders

_MS: Final = 1.0
_DYING: Final = (0.15, 0.5, 0.85)
"""Which jobs die, as shares of the batch."""
_CALM: Final = "batchd, nobody killed"


def contests(setting: Setting) -> list[Contest]:
    """The table of N11."""
    count = setting.jobs(2_000, 1_000)

    def items(dying: tuple[float, ...] = _DYING) -> list[Item]:
        return mortals(setting.scratch, count, _MS, [int(share * count) for share in dying])

    def run(durability: str, dying: tuple[float, ...] = _DYING) -> Sample:
        return run_mortals(setting, items(dying), durability)

    return [
        contest(
            *("N11", f"CPU jobs of {_MS:g} ms, {len(_DYING)} of which kill their worker once", count, run),
            others=(
                Contender(_CALM, "disk", partial(run, "disk", ())),
                *contenders(setting, "deaths", mortal, items, kept, rounds=1, then=recovered),
            ),
            # A third as fast is three times the time.
            goals=[Goal("batchd", 1 / 3, (_CALM,))],
            counted="hand over all jobs, run, read every result back; from a warm start, to the last result",
        )
    ]
