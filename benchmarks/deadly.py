"""What N7, N11 and N12 have in common: numbered jobs that die or are killed, all of which must come back."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Final

from benchmarks.batch import Job, concat, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting

AGAIN_MS: Final = "until it ran again, ms"

Item = tuple[int, float, str]
"""A job of `jobs.mortal` or `jobs.logged`: its number, its milliseconds, and its mark or log."""


def contest(
    number: str,
    title: str,
    count: int,
    run: Callable[[str], Sample],
    others: Sequence[Contender],
    goals: Sequence[Goal],
    counted: str,
) -> Contest:
    """A table of `count` numbered jobs: `run` runs batchd with a durability."""
    return Contest(
        number=number,
        title=title,
        jobs=count,
        expected_checksum=sum(range(count)),
        contenders=(
            Contender("batchd", "disk", partial(run, "disk")),
            Contender("batchd, process", "process", partial(run, "process")),
            *others,
        ),
        goals=tuple(goals),
        counted=counted,
    )


def mortals(scratch: Path, count: int, ms: float, dying: Iterable[int]) -> list[Item]:
    """Jobs some of which die, once: their marks are used up."""
    marks, doomed = mkdtemp(dir=scratch), set(dying)
    return [(number, ms, f"{marks}/{number}" if number in doomed else "") for number in range(count)]


def run_mortals(setting: Setting, items: Sequence[Item], durability: str) -> Sample:
    """Run them through batchd."""
    job = Job("benchmarks.jobs", "mortal", durability)
    made = run_batch(setting.scratch, job, items, workers=setting.workers, warm=[(0, 0.0, "")] * 10)
    return recovered(Sample(made.seconds, made.results, concat(made.values)))


def recovered(sample: Sample) -> Sample:
    """The sample, with what its results tell of those that died."""
    again_ms = [died_before_s * 1e3 for _, died_before_s in sample.checksum if died_before_s]
    figures = {"deaths": float(len(again_ms))}
    if again_ms:
        figures |= {AGAIN_MS: median(again_ms), "the longest, ms": max(again_ms)}
    return sample._replace(checksum=sum(number for number, _ in sample.checksum), figures=figures)
