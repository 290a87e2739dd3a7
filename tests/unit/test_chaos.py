"""What chaos kills and how it says what came of it, without a batch."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from batchd.cli import chaos as verb
from batchd.cli.arguments import parse
from batchd.cli.main import main
from batchd.testing import chaos
from batchd.testing.audit import CHECKS
from batchd.testing.chaos import Chaos, Feeder, Report, Target, kill, pinned, strikes
from tests.commands import Terminal


def report(**changes: Any) -> Report:
    return Report(**{"seed": 7, "duration_s": 1.5, "jobs": 1200, "workers": 3, **changes})


def test_a_seed_says_who_is_killed_when() -> None:
    plan = list(islice(strikes(3), 500))
    assert plan == list(islice(strikes(3), 500))
    assert plan != list(islice(strikes(4), 500))
    counts = Counter(strike.target for strike in plan)
    assert set(counts) == set(Target)
    assert counts[Target.WORKER] > counts[Target.SUPERVISOR] > 20
    assert all(strike.delay_s >= 0 and 0 <= strike.which < 1 for strike in plan)
    assert 20 < sum(strike.pause_s > 0 for strike in plan) < 150


@pytest.fixture
def victim() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", "print(1, flush=True); import signal; signal.pause()", "the argument"]
    with subprocess.Popen(command, env={**os.environ, "MARK": "one.two"}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("what", "needle", "is_whole"),
    [("environ", b"MARK=two", False), ("cmdline", b"the arg", True), ("environ", b"the argument", False)],
)
def test_nobody_else_is_meant(victim: "subprocess.Popen[bytes]", what: str, needle: bytes, is_whole: bool) -> None:
    assert pinned(victim.pid, what, needle, is_whole=is_whole) == -1


@pytest.mark.parametrize(("what", "needle", "is_whole"), [("environ", b"MARK=one.", False), ("cmdline", b"-c", True)])
def test_who_is_meant_is_killed(victim: "subprocess.Popen[bytes]", what: str, needle: bytes, is_whole: bool) -> None:
    pidfd = pinned(victim.pid, what, needle, is_whole=is_whole)
    assert pidfd >= 0
    kill(pidfd)
    assert victim.wait() == -9
    assert pinned(victim.pid, what, needle, is_whole=is_whole) == -1


def test_the_whole_input_is_given_in_order_and_ends() -> None:
    read, write = os.pipe()
    Feeder(os.fdopen(write, "wb"), 1000, monotonic() - 5.0, 0.1)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"".join(b"%d\n" % index for index in range(1000))


def test_a_reader_that_is_killed_ends_nothing() -> None:
    read, write = os.pipe()
    pipe = os.fdopen(write, "wb")
    os.close(read)
    feeder = Feeder(pipe, 1000, monotonic() - 5.0, 0.1)
    feeder.thread.join(30)
    assert pipe.closed


class Otherwise(Chaos):
    """Chaos around another command than `batchd run`."""

    program = ""

    def _start(self) -> None:
        self._client = subprocess.Popen([sys.executable, "-c", self.program])


def test_a_command_that_hangs_is_found_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "STUCK_S", 0.2)
    monkeypatch.setattr(Otherwise, "program", "import signal; signal.pause()")
    made = Otherwise(tmp_path, report(duration_s=0.05), lambda _: None)
    findings = made.run().findings
    assert findings.counts["broken_off"] == 1
    assert "no progress" in findings.examples[0]
    assert findings.counts["lost"] == findings.counts["results_wrong"] == 1
    assert made._command.returncode == -9


def test_a_command_that_gives_up_is_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Otherwise, "program", "raise SystemExit(7)")
    findings = Otherwise(tmp_path, report(duration_s=60.0), lambda _: None).run().findings
    assert findings.counts["broken_off"] == chaos.GIVE_UPS_MAX + 1
    assert "gave up with 7" in findings.examples[0]


# --- What is said ----------------------------------------------------------------------------------------------


def asked(*args: str) -> Report:
    return verb.asked(parse(["chaos", *args]))


def test_what_is_not_asked_for_follows_from_what_is() -> None:
    assert asked("--seed", "3", "--duration", "2m", "--workers", "5").jobs == 120 * 5 * chaos.JOBS_PER_WORKER_S
    assert asked("--jobs", "17").jobs == 17
    assert asked().duration_s == 30.0
    assert asked().workers >= 4
    assert len({asked().seed for _ in range(5)}) > 1


@pytest.mark.parametrize("args", [["--duration", "soon"], ["--duration", "0"], ["--jobs", "0"], ["--workers", "0"]])
def test_what_cannot_be_done_is_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", *args]) == 2
    assert "batchd: " in capsys.readouterr().err


def test_the_same_command_is_told_and_understood() -> None:
    told = verb.again(report())
    assert told == "batchd chaos --seed 7 --duration 1.5s --jobs 1200 --workers 3"
    assert asked(*told.split()[2:]) == report()


def test_the_table_and_the_fields_say_the_same() -> None:
    made = report(executions=1300, replays=80)
    made.kills[Target.WORKER] = 12
    text = "\n".join(verb.table(made, ""))
    assert "ok: every job" in text
    assert "workers killed      12" in text
    assert all(f"{name.replace('_', ' ')} " in text for name in CHECKS)
    made.findings.add("lost", "job 4")
    bad = "\n".join(verb.table(made, "/tmp/kept"))
    assert "lost: job 4" in bad
    assert "VIOLATED" in bad
    assert "/tmp/kept" in bad
    assert "ok:" not in bad
    fields = verb.fields(made, "/tmp/kept")
    assert (fields["ok"], fields["lost"], fields["wrong"], fields["replays"]) == (False, 1, 0, 80)
    assert fields["kills"] == {"workers": 12, "supervisors": 0, "templates": 0, "commands": 0}
    assert json.loads(json.dumps(fields))["kept"] == "/tmp/kept"


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_violation_is_the_exit_code_and_keeps_what_is_left(
    is_broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(it: Chaos) -> None:
        if is_broken:
            it.report.findings.add("recorded_twice", "job 1")

    monkeypatch.setattr(Chaos, "run", run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["chaos", "--json"]) == int(is_broken)
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is not is_broken
    assert [str(folder) for folder in tmp_path.iterdir()] == ([told["kept"]] if is_broken else [])


def test_the_live_line_is_drawn_over_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    line = verb.Line(is_quiet=False)
    line.show(report(done=40))
    line.show(report(done=41))  # Too soon.
    line.clear()
    assert screen.getvalue().count("of 1,200 done") == 1
    assert "nobody yet" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_nothing_is_drawn_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    for is_quiet in (True, False):
        line = verb.Line(is_quiet=is_quiet)
        line.show(report())
        line.clear()
    assert screen.getvalue() == ""


def test_the_words_say_when_nobody_is_killed_any_more() -> None:
    made = report(done=1100)
    made.kills.update({Target.WORKER: 3, Target.CLIENT: 1})
    assert verb.progress(made, 1.0).endswith("killed 3 workers, 1 commands · 1.0 s of 1.5 s")
    assert verb.progress(made, 2.0).endswith("no more kills, finishing")
