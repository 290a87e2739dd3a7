"""N7: a worker is killed while it runs a job. How soon does that job run again?"""

from typing import Final

from benchmarks.contest import Contest, Goal, Sample, Setting
from benchmarks.deadly import AGAIN_MS, contest, mortals, run_mortals

_DEATHS: Final = 32
_JOBS_A_DEATH: Final = 10
_MS: Final = 5.0


def contests(setting: Setting) -> list[Contest]:
    """The table of N7; what peers do when a worker dies is N11."""
    count = setting.jobs(_DEATHS * _JOBS_A_DEATH, _DEATHS * _JOBS_A_DEATH)
    dying = range(_JOBS_A_DEATH - 1, count, _JOBS_A_DEATH)

    def run(durability: str) -> Sample:
        return run_mortals(setting, mortals(setting.scratch, count, _MS, dying), durability)

    return [
        contest(
            *("N7", f"CPU jobs of {_MS:g} ms, every tenth of which kills its worker once", count, run),
            others=(),
            goals=[Goal("batchd", 50.0, figure=AGAIN_MS, is_maximum=True)],
            counted=(
                "hand over all jobs, to the last result. A job that is to die writes down CLOCK_MONOTONIC and sends "
                "itself SIGKILL; run again, it reads the clock first of all. What lies between is told, as the median"
            ),
        )
    ]
