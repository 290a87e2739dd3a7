"""N10: what it costs to import batchd, and to ask it for help, beside an interpreter that does nothing."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.contest import Contender, Contest, Goal, Sample, Setting
from benchmarks.peers.roster import modules

_BARE: Final = "an interpreter that does nothing"
_IMPORT: Final = "import batchd"
_HELP: Final = "batchd --help"


def contests(setting: Setting) -> list[Contest]:
    """The table of N10."""
    starts = setting.jobs(100, 40)
    command = Path(sys.executable).with_name("batchd")
    ways = {_BARE: "pass", _IMPORT: "import batchd"}
    ways |= {f"import {module}": f"import {module}" for module in modules(setting.peers)}
    return [
        Contest(
            number="N10",
            title="starts of an interpreter",
            jobs=starts,
            expected_checksum=0,
            contenders=(
                *(
                    Contender(name, "-", partial(_run, [sys.executable, "-c", program], starts))
                    for name, program in ways.items()
                ),
                Contender(_HELP, "-", partial(_run, [str(command), "--help"], starts)),
            ),
            # Half as fast is twice the time.
            goals=(Goal(_IMPORT, 0.5, (_BARE,)), Goal(_HELP, 0.5, (_BARE,))),
            counted=(
                "the median start, times the number of starts: start a process and wait for its end. The results add "
                "up to its exit codes"
            ),
        )
    ]


def _run(command: list[str], starts: int) -> Sample:
    took_s, cpu_s, codes = [], [], []
    with Path(os.devnull).open("w") as nothing:
        quiet = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 1)]
        for _ in range(starts):
            since = time.perf_counter()
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
            _, status, used = os.wait4(pid, 0)
            took_s.append(time.perf_counter() - since)
            cpu_s.append(used.ru_utime + used.ru_stime)
            codes.append(os.waitstatus_to_exitcode(status))
    figures = {"a start, ms": median(took_s) * 1e3, "its CPU time, ms": median(cpu_s) * 1e3}
    return Sample(median(took_s) * starts, len(codes), sum(map(abs, codes)), figures)
