"""N11: a batch of short jobs, three of which kill their worker on their first attempt. What comes back, and when?"""

from collections.abc import Sequence
from functools import partial
from tempfile import mkdtemp
from typing import Any, Final

from benchmarks.batch import Job, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.jobs import mortal, numbers_sum
from benchmarks.peers.roster import CAP_S, contenders

_MS: Final = 1.0
_DYING: Final = (0.15, 0.5, 0.85)
"""Which jobs die, as shares of the batch."""
_CALM: Final = "batchd, nobody killed"


def contests(setting: Setting) -> list[Contest]:
    """The table of N11."""
    count = setting.jobs(2_000, 2_000)
    return [
        Contest(
            number="N11",
            title=f"CPU jobs of {_MS:g} ms, {len(_DYING)} of which kill their worker once",
            jobs=count,
            expected_count=count,
            expected_checksum=sum(range(count)),
            contenders=(
                Contender("batchd", "disk", partial(_run, setting, count, "disk", _DYING)),
                Contender("batchd, process", "process", partial(_run, setting, count, "process", _DYING)),
                Contender(_CALM, "disk", partial(_run, setting, count, "disk", ())),
                *contenders(
                    setting, "deaths", mortal, partial(_items, setting, count, _DYING), numbers_sum, cap_s=CAP_S
                ),
            ),
            # A third as fast is three times the time.
            goals=(Goal("batchd", 1 / 3, (_CALM,)),),
            counted="hand over all jobs, run, read every result back; from a warm start, to the last result",
        )
    ]


def _items(setting: Setting, count: int, dying: Sequence[float]) -> list[tuple[int, float, str]]:
    marks = mkdtemp(dir=setting.scratch)
    numbers = {int(share * count) for share in dying}
    return [(number, _MS, f"{marks}/{number}" if number in numbers else "") for number in range(count)]


def _run(setting: Setting, count: int, durability: str, dying: Sequence[float]) -> Sample:
    made = run_batch(
        setting.scratch,
        Job("benchmarks.jobs", "mortal", durability),
        _items(setting, count, dying),
        workers=setting.workers,
        warm=[(0, 0.0, "")] * 10,
        reduce=_plus,
    )
    return Sample(made.seconds, made.results, made.reduced, {"commits": made.commits})


def _plus(total: Any, part: list[Any]) -> Any:
    return total + numbers_sum(part)[1]
