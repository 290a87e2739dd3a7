"""Inputs, results and exceptions that do not travel: they cost their own job; the supervisor reads none."""

import os
import subprocess
import sys
from concurrent.futures import Executor
from pathlib import Path

import pytest

import batchd
from batchd.settings import VALUE_BYTES_MAX, VALUE_FILE_BYTES_MIN
from tests.bench import ROOT
from tests.commands import Desk, until
from tests.fault import tasks
from tests.fault.ledger import Tally
from tests.fault.test_workers import failed, run

pytestmark = pytest.mark.fault
TASKS = Path(tasks.__file__)


@pytest.mark.covers("R1", "P14")
def test_a_result_that_is_nested_too_deep_fails_its_job(desk: Desk) -> None:
    _, message = failed(desk, "nested_result")
    assert "recursion" in message


DEEP = """
import sys
import batchd
from tests.fault.tasks import nested

class Deep:
    def __reduce__(self):
        return nested_pickle, ()

def nested_pickle():
    import pickle
    return pickle.loads(b"]" * 1_000_000 + b"a" * 999_999 + b".")

with batchd.Executor(1) as executor:
    before, bad, after = (executor.submit(len, value) for value in ([1], Deep(), [1, 2]))
    print(before.result(60), after.result(60))
    try:
        print(repr(bad.exception(60))[:200])
    except BaseException as error:
        print(repr(error)[:200])
"""


@pytest.mark.covers("I2")
def test_an_input_of_a_million_lists_in_each_other_costs_its_job_alone(tmp_path: Path) -> None:
    """Reading it is no trouble for pickle; letting go of it, or of anything like it, may be."""
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", DEEP], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=90, check=False
    )
    assert ran.stdout.splitlines()[0] == "1 2", ran.stdout + ran.stderr
    assert ran.returncode == 0, ran.stderr


@pytest.mark.covers("P13", "R1", "P14")
def test_a_result_that_kills_its_reader_kills_neither_worker_nor_supervisor(desk: Desk) -> None:
    """The batch is recorded to its end; whoever asks for that result dies of it, and nobody else does."""
    command = ("run", f"{TASKS}:result_that_kills_its_reader", "--range", "0:10", "-j", "2", "--name", "b")
    ran = desk.run(*command)
    assert ran.returncode == 0, ran.stderr
    assert "10 succeeded" in ran.stderr
    asked = desk.run("results", "b")
    assert asked.returncode == -9
    assert desk.run("ls").returncode == 0
    assert desk.run("journal", "check").returncode == 0


@pytest.mark.covers("R2", "P13")
def test_an_exception_that_kills_its_reader_is_kept_as_text(desk: Desk) -> None:
    kind, message = failed(desk, "exception_that_kills_its_reader")
    assert (kind, message) == ("tasks.DiesWhenRead", "no way back")
    assert "no way back" in desk.run("failures", "last").stdout


@pytest.mark.covers("R3")
@pytest.mark.slow
def test_a_result_of_2_gib_fails_with_the_limit_and_the_supervisor_stays_small(desk: Desk, tally: Tally) -> None:
    peak = 0
    process = desk.start("run", f"{TASKS}:result_of_2_gib", "--range", "0:10", "--out", "out.jsonl", "-j", "1")
    while process.poll() is None:
        pid = desk.supervisor()
        status = Path(f"/proc/{pid}/status")
        if pid and status.exists():
            lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM")]
            peak = max([peak, *(int(line[1]) for line in lines)])
    process.communicate()
    bad = {line["index"]: line for line in desk.results() if line["state"] != "succeeded"}
    assert list(bad) == [tasks.BAD]
    assert f"at most {VALUE_BYTES_MAX:,} bytes" in bad[tasks.BAD]["error"]["message"]
    assert 0 < peak < 300 << 10, f"the supervisor grew to {peak} KiB"
    tally.saw(f"supervisor's peak {peak >> 10} MiB")


def reverse(data: bytes) -> bytes:
    return data[::-1]


@pytest.mark.covers("P16", "W15")
@pytest.mark.slow
def test_100_mb_go_in_while_100_mb_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    large = os.urandom(1 << 20) * 100
    executor: Executor
    with batchd.Executor(2) as executor:
        jobs = [executor.submit(reverse, large) for _ in range(6)]
        assert all(job.result(120) == large[::-1] for job in jobs)


@pytest.mark.covers("P16", "W15")
def test_more_than_any_pipe_takes_goes_in_while_as_much_comes_out() -> None:
    """Values that are too small for files of their own, so that all of them pass sockets, records and pipes."""
    medium = os.urandom(VALUE_FILE_BYTES_MIN - 10_000)
    with batchd.Executor(2) as executor:
        jobs = [executor.submit(reverse, medium) for _ in range(60)]
        assert all(job.result(120) == medium[::-1] for job in jobs)


@pytest.mark.covers("W12", "P5")
def test_a_bad_job_among_good_ones_that_all_run(desk: Desk) -> None:
    """Whatever a worker was left as, its next jobs are right."""
    bad = run(desk, "leaks_descriptors", jobs=500)
    assert list(bad) == [tasks.BAD]
    until(lambda: not desk.workers(), "nobody is left")
