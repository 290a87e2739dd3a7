"""N7: a worker is killed while it runs a job. How soon does that job run again?"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import quantiles
from tempfile import mkdtemp
from typing import Any, Final

from benchmarks.batch import Job, concat, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.jobs import mortal
from benchmarks.peers.roster import CAP_S, contenders

DEATHS: Final = 32
_JOBS_A_DEATH: Final = 10
_MS: Final = 5.0
_AGAIN_MS: Final = "until it ran again, ms"

Item = tuple[int, float, str]


def contests(setting: Setting) -> list[Contest]:
    """The table of N7."""
    count = setting.jobs(DEATHS * _JOBS_A_DEATH, DEATHS * _JOBS_A_DEATH)
    made = partial(mortals, setting.scratch, count)
    return [
        Contest(
            number="N7",
            title=f"CPU jobs of {_MS:g} ms, every tenth of which kills its worker once",
            jobs=count,
            expected_count=count,
            expected_checksum=sum(range(count)),
            contenders=(
                Contender("batchd", "disk", partial(_run_batchd, setting, count, "disk")),
                Contender("batchd, process", "process", partial(_run_batchd, setting, count, "process")),
                *contenders(setting, "deaths", mortal, made, kept, then=recovered, cap_s=CAP_S),
            ),
            goals=(Goal("batchd", 50.0, figure=_AGAIN_MS, is_maximum=True),),
            counted=(
                "hand over all jobs, to the last result. A job that is to die writes down CLOCK_MONOTONIC and sends "
                "itself SIGKILL; run again, it reads the clock first of all. What lies between is told, as the median"
            ),
        )
    ]


def mortals(scratch: Path, count: int) -> list[Item]:
    """Jobs some of which die, once: their marks are used up."""
    marks = Path(mkdtemp(dir=scratch))
    dying = range(_JOBS_A_DEATH - 1, count, _JOBS_A_DEATH)
    return [(number, _MS, str(marks / str(number)) if number in dying else "") for number in range(count)]


def _run_batchd(setting: Setting, count: int, durability: str) -> Sample:
    items = mortals(setting.scratch, count)
    warm = [(0, 0.0, "")] * 10
    job = Job("benchmarks.jobs", "mortal", durability)
    made = run_batch(setting.scratch, job, items, workers=setting.workers, warm=warm)
    return recovered(Sample(made.seconds, made.results, concat(made.values)))


def kept(results: Iterable[Any]) -> tuple[int, list[Any]]:
    found = list(results)
    return len(found), found


def recovered(sample: Sample) -> Sample:
    """The sample, with what its results tell of those that died."""
    again_ms = [died_before_s * 1e3 for _, died_before_s in sample.checksum if died_before_s]
    figures = {
        _AGAIN_MS: quantiles(again_ms, n=2)[0],
        "90 % within, ms": quantiles(again_ms, n=10)[8],
        "the longest, ms": max(again_ms),
        "deaths": len(again_ms),
    }
    return sample._replace(checksum=sum(number for number, _ in sample.checksum), figures=figures)
