"""`batchd retry`, and what becomes of the results file: after a retry, and when it takes long to write."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchd.cli import results
from tests.commands import Desk, until

FAILS_FIRST = """
from pathlib import Path

def work(x):
    if x % 2 and not Path("mended").exists():
        raise ValueError(f"{x} is odd")
    return x
"""
PROGRAM = """
import os, sys
import batchd

OFFSET = 100

def work(x):
    fd = os.open(os.environ["MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d 1\\n" % x)
    if x == 3 and not os.path.exists("go"):
        import time
        time.sleep(60)
    return OFFSET + x

with batchd.Client(os.environ["BATCHD_JOURNAL"], workers=1) as client:
    batch = client.submit_batch(work, range(6), name="mine", seal="open" not in sys.argv)
    batch.wait()
"""


def test_a_retry_says_what_writes_the_results_again(desk: Desk) -> None:
    (desk.folder / "odd.py").write_text(FAILS_FIRST)
    desk.run("run", "odd.py:work", "--range", "0:4", "--out", "out.jsonl")
    (desk.folder / "mended").touch()
    ran = desk.run("retry", "last", "--failed")
    assert ran.returncode == 0, ran.stderr
    assert "retrying 2 failed jobs" in ran.stderr
    told = "out.jsonl is as it was before this; to write it again: "
    (said,) = [line for line in ran.stderr.splitlines() if told in line]
    words = said.partition(told)[2].split()
    assert words[0] == "batchd"
    assert desk.run(*words[1:]).returncode == 0
    assert desk.values() == [0, 1, 2, 3]


def test_a_retry_with_out_writes_the_results_and_refuses_what_holds_none(desk: Desk) -> None:
    (desk.folder / "odd.py").write_text(FAILS_FIRST)
    desk.run("run", "odd.py:work", "--range", "0:4", "--out", "out.jsonl")
    (desk.folder / "mended").touch()
    refused = desk.run("retry", "last", "--failed", "--out", "odd.py")
    assert refused.returncode == 2
    assert "odd.py" in refused.stderr
    ran = desk.run("retry", "last", "--failed", "--out", "out.jsonl")
    assert "as it was before" not in ran.stderr
    assert desk.values() == [0, 1, 2, 3]
    nothing = desk.run("retry", "last", "--failed", "--out", "again.jsonl")
    assert nothing.returncode == 0
    assert "nothing to retry" in nothing.stderr
    assert desk.results("again.jsonl") == desk.results()


def test_a_batch_with_nothing_left_wants_to_know_what_to_retry(desk: Desk) -> None:
    desk.run("run", desk.task("square"), "--range", "0:3")
    asked = desk.run("retry", "last")
    assert asked.returncode == 2
    assert "every job of" in asked.stderr
    assert "--failed" in asked.stderr


def test_a_batch_whose_input_was_not_read_is_not_retried_but_gone_on_with(desk: Desk) -> None:
    os.mkfifo(desk.folder / "in.txt")
    waits = desk.start("run", desk.task("square"), "in.txt", "--name", "b")
    door = os.open(desk.folder / "in.txt", os.O_WRONLY)
    until(lambda: list(desk.journal.glob("batches/[!.]*")), "it is made", waits)
    waits.send_signal(signal.SIGINT)
    waits.communicate()
    os.close(door)
    asked = desk.run("retry", "b")
    assert asked.returncode == 2
    assert "was not read to its end" in asked.stderr
    assert f"this goes on with it: batchd run {desk.task('square')} in.txt --name b" in asked.stderr


def interrupted(desk: Desk, *options: str) -> None:
    """Run the program until its fourth job, and kill it and its supervisor."""
    program = desk.folder / "program.py"
    program.write_text(PROGRAM)
    killed = subprocess.Popen([sys.executable, program, *options], env=desk.environ, cwd=desk.folder, text=True)
    desk.wait_for_jobs(4, killed)
    killed.kill()
    killed.wait()
    os.kill(desk.supervisor(), signal.SIGKILL)  # Or it would wait for the job that runs.
    until(lambda: not desk.workers(), "its workers are gone")
    (desk.folder / "go").touch()


def test_a_batch_of_a_program_that_died_is_finished_by_its_name(desk: Desk) -> None:
    interrupted(desk)
    shown = json.loads(desk.run("show", "mine", "--json").stdout)
    assert shown["shown_state"] == "interrupted"
    assert shown["next"][0] == "batchd retry last"
    assert "program.py" in shown["next"][1]
    ran = desk.run("retry", "mine", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert "going on with" in ran.stderr
    assert desk.values() == [100, 101, 102, 103, 104, 105]


def test_of_a_batch_without_an_end_what_was_given_is_run_and_the_rest_is_told(desk: Desk) -> None:
    interrupted(desk, "open")
    ran = desk.run("retry", "mine")
    assert ran.returncode == 0, ran.stderr
    assert "its input was not complete" in ran.stderr
    assert "program.py open" in ran.stderr
    assert json.loads(desk.run("show", "mine", "--json").stdout)["done"] == 6


def test_a_command_of_the_same_name_is_told_how_a_batch_of_a_program_goes_on(desk: Desk) -> None:
    interrupted(desk)
    refused = desk.run("run", desk.task("square"), "--range", "0:3", "--name", "mine")
    assert refused.returncode == 2
    assert "`batchd retry mine`" in refused.stderr


def test_the_limits_of_the_run_are_named_to_whoever_retries(desk: Desk) -> None:
    """Or what failed by them would be run without any."""
    limits = ("--timeout", "90s", "--memory-per-job=2G")
    ran = desk.run("run", desk.task("always_raises"), "--range", "0:3", "--name", "n", *limits)
    assert (
        "batchd retry last --failed --timeout 90s --memory-per-job=2G"
        in desk.run("failures", "n").stdout + ran.stderr
    )
    assert "batchd retry" in (shown := desk.run("show", "n:1").stdout)
    assert "--timeout 90s --memory-per-job=2G" in shown
    told = desk.run("retry", "n", "--failed").stderr
    assert "without the limits that" in told
    assert "given again: --timeout 90s --memory-per-job=2G" in told
    assert "without the limits" not in desk.run("retry", "n", "--failed", *limits).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_writing_results_can_be_stopped_at_a_lines_end(desk: Desk, number: signal.Signals) -> None:
    command = ("run", desk.task("long_list"), "--range", "0:120")
    assert desk.run(*command).returncode == 0
    process = desk.start(*command, "--out", "out.jsonl")
    partial = desk.folder / "out.jsonl.partial"
    until(lambda: partial.exists() and partial.stat().st_size, "results are being written", process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 4, err
    lines = partial.read_text().splitlines(keepends=True)
    assert 0 < len(lines) < 120
    assert lines[-1].endswith("}\n")
    assert f"stopped after {len(lines)} of 120 lines" in err
    words = err.partition("all of them: batchd ")[2].split()
    assert desk.run(*words).returncode == 0
    assert len(desk.results()) == 120


def test_results_are_written_for_a_moment_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run("run", desk.task("square"), "--range", "0:5")
    (batch,) = (desk.journal / "batches").iterdir()
    times = iter(range(1_000_000))
    monkeypatch.setattr(results, "monotonic", lambda: float(next(times)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    stream = results.ResultStream(str(desk.folder / "out.jsonl"), batch)
    assert stream.advance(5, 0)
    assert stream.written == 1  # No more than one line when time is up.
    assert not stream.finish(5, 0, lambda: True)
    assert Path(stream.abandon()).read_text().count("\n") == 2
