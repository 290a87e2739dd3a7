"""N12: supervisor and workers are killed in the middle of a batch and started again. What does that cost?"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from benchmarks.batch import Job, processes, run_batch
from benchmarks.contest import Contest, Goal, Sample, Setting
from benchmarks.deadly import Item, contest
from benchmarks.figures import FINISHED_AGAIN, KILL_AFTER, LOST_S, restart_figures, runs_in
from benchmarks.jobs import added, ended_in, logged
from benchmarks.peers.roster import contenders

_MS: Final = 5.0
_WARM: Final = 10


def contests(setting: Setting) -> list[Contest]:
    """The table of N12."""
    count = setting.jobs(2_000, 1_000)

    def items() -> list[Item]:
        log = str(Path(mkdtemp(dir=setting.scratch)) / "log")
        return [(number, _MS, log) for number in range(count)]

    return [
        contest(
            *("N12", f"CPU jobs of {_MS:g} ms; everything that runs them is killed after a quarter", count),
            lambda durability: _run(setting, items(), durability),
            others=contenders(setting, "restart", logged, items, added, rounds=1),
            goals=[
                Goal("batchd", 0.0, figure=FINISHED_AGAIN, is_maximum=True),
                Goal("batchd", 1.0, figure=LOST_S, is_maximum=True),
            ],
            counted=(
                "hand over all jobs, to the end of the last one. Each writes CLOCK_MONOTONIC to a log when it begins "
                "and ends. batchd's supervisor, its template and workers get SIGKILL, and its client starts them "
                "again; a queue's master and workers do, and are started again after 1 s, while its server stays. "
                "Lost is the time until a job begins again, that second too, and what was done in vain"
            ),
        )
    ]


class Killer:
    """Sends SIGKILL to the supervisor and its children, once, when the log shows so many jobs done."""

    def __init__(self, log: Path, after: float) -> None:
        self._log = log
        self._after = after
        self.killed_at_s = 0.0

    def __call__(self, journal: Path) -> None:
        """Look, and strike."""
        if self.killed_at_s or ended_in(self._log) < self._after:
            return
        for pid in processes(journal):
            with suppress(ProcessLookupError):  # Workers die of their supervisor's death by themselves.
                os.kill(pid, signal.SIGKILL)
        self.killed_at_s = time.monotonic()


def _run(setting: Setting, items: Sequence[Item], durability: str) -> Sample:
    log = Path(items[0][2])
    log.touch()
    killer = Killer(log, KILL_AFTER * len(items))
    made = run_batch(
        setting.scratch,
        Job("benchmarks.jobs", "logged", durability),
        items,
        workers=setting.workers,
        warm=[(number, 0.0, os.devnull) for number in range(_WARM)],
        reduce=lambda total, part: total + sum(part),
        meanwhile=killer,
    )
    figures = restart_figures(runs_in(log.read_text("ascii")), killer.killed_at_s, setting.workers)
    return Sample(made.seconds, made.results, made.reduced, figures)
