"""`batchd chaos` for real: short by default, minutes of it when marked slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchd.testing.chaos import Chaos, Report, Target
from tests.bench import ROOT
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault


@pytest.mark.covers("X11", "P26")
def test_nothing_is_lost_and_nothing_is_left(tmp_path: Path, tally: Tally) -> None:
    asked = ("--duration", "1.5s", "--seed", "13", "--jobs", "200", "--json")  # Its first kills are early ones.
    command = [sys.executable, "-m", "batchd", "chaos", *asked]
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = json.loads(ran.stdout)
    assert ran.returncode == 0, told
    assert told["ok"] is True
    assert told["executions"] >= told["jobs"] == 200
    assert sum(told["kills"].values()) > 0
    assert list(tmp_path.iterdir()) == []
    kills = sum(told["kills"].values())
    tally.injected(kills, "X11")
    tally.injected(1, "P26")
    tally.count("real SIGKILLs", kills)
    tally.checked(told["jobs"], lost=told["lost"], doubled=told["recorded_twice"])


class Forged(Chaos):
    """Somebody changes a result, and nobody but the audit could know."""

    def _check_left_behind(self) -> None:
        super()._check_left_behind()
        text = self._out.read_text("utf-8")
        at = text.index('"result": ["') + len('"result": ["')
        self._out.write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :], "utf-8")


def test_a_forged_result_is_found(tmp_path: Path) -> None:
    shown: list[int] = []
    report = Forged(
        tmp_path, Report(seed=1, duration_s=0.3, jobs=30, workers=2), lambda it: shown.append(it.done)
    ).run()
    assert report.findings.counts == {"results_wrong": 1}
    assert report.executions >= 30
    assert shown


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "workers"), [(1, 2), (2, 4), (3, 16)])
@pytest.mark.covers("X11", "W1", "S1")
def test_nothing_is_lost_for_a_minute(tmp_path: Path, seed: int, workers: int, tally: Tally) -> None:
    jobs = 3000 * workers
    report = Chaos(tmp_path, Report(seed=seed, duration_s=60.0, jobs=jobs, workers=workers), lambda _: None).run()
    assert not report.findings, report.findings.examples
    assert report.kills[Target.SUPERVISOR] > 5
    assert report.kills[Target.WORKER] > 20
    assert report.replays > 0
    tally.injected(sum(report.kills.values()), "X11")
    tally.injected(report.kills[Target.WORKER], "W1")
    tally.injected(report.kills[Target.SUPERVISOR], "S1")
    tally.count("real SIGKILLs", sum(report.kills.values()))
    counts = report.findings.counts
    tally.checked(report.jobs, lost=counts["lost"], doubled=counts["recorded_twice"])
