"""What only batchd's executor does: limits, retries, executors within jobs, forks, large values, a journal."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Executor, Future, as_completed, wait
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import batchd
from tests.commands import Desk, dead, until
from tests.contract.calls import (
    WAIT_S,
    Door,
    TwoArguments,
    fail,
    kill_myself,
    nap,
    notes,
    square,
    square_elsewhere,
    survive_from,
)

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class Thing:
    def __init__(self) -> None:
        self.name, self.size = "a thing", 3

    def __repr__(self) -> str:
        raise AssertionError("what killed a worker is not asked again")


def die_with(_: Thing) -> None:
    os._exit(3)


@pytest.mark.parametrize("option", ["mp_context", "max_tasks_per_child"])
def test_what_is_not_offered_is_refused_with_a_reason(option: str) -> None:
    given: dict[str, Any] = {option: 3}
    with pytest.raises(ValueError, match=f"{option} is not offered: workers"):
        batchd.Executor(1, **given)
    given = {option: None}
    batchd.Executor(1, **given).shutdown()


def test_it_is_an_executor_and_its_futures_are_futures(make_ours: Any) -> None:
    executor = make_ours(1)
    assert isinstance(executor, Executor)
    assert isinstance(executor.submit(square, 3), Future)


# --- Retries and limits ------------------------------------------------------------------------------------------


def test_a_job_that_fails_is_retried(make_ours: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "attempts")
    job = make_ours(1, retries=2).submit(survive_from, path, 3, fail, ValueError, "not yet")
    assert job.result(WAIT_S) == 3
    assert notes(path) == ["1", "2", "3"]


def test_a_job_that_keeps_failing_fails_with_its_error(make_ours: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "attempts")
    job = make_ours(1, retries=2).submit(survive_from, path, 9, fail, ValueError, "not yet")
    error = job.exception(WAIT_S)
    assert (type(error), str(error)) == (ValueError, "not yet")
    assert notes(path) == ["1", "2", "3"]


def test_a_job_is_not_retried_unasked(make_ours: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "attempts")
    job = make_ours(1).submit(survive_from, path, 9, fail, ValueError, "not yet")
    assert type(job.exception(WAIT_S)) is ValueError
    assert notes(path) == ["1"]


def test_a_job_that_takes_too_long_is_ended(make_ours: Any) -> None:
    executor = make_ours(1, timeout=0.3)
    assert executor.submit(square, 3).result(WAIT_S) == 9
    began = monotonic()
    slow, quick = executor.submit(nap, 60), executor.submit(square, 4)
    error = slow.exception(WAIT_S)
    assert isinstance(error, batchd.JobTimeout)
    assert isinstance(error, TimeoutError)
    assert 0.3 <= monotonic() - began < 10
    assert quick.result(WAIT_S) == 16


@pytest.mark.covers("R2")
def test_an_error_that_does_not_read_back_fails_its_job_alone(make_ours: Any) -> None:
    executor = make_ours(1)
    before, bad = executor.submit(square, 2), executor.submit(fail, TwoArguments, 1, 2)
    after = executor.submit(square, 3)
    error = bad.exception(WAIT_S)
    assert error is not None
    told = f"{error} {error.__cause__}"
    assert "TwoArguments" in told
    assert "1 and 2" in told
    assert "# the line that failed" in told
    assert (before.result(WAIT_S), after.result(WAIT_S)) == (4, 9)


# --- Cancelling --------------------------------------------------------------------------------------------------


def test_waiting_for_jobs_that_a_shutdown_cancelled_ends(make_ours: Any, door: Door) -> None:
    executor = make_ours(1)
    futures = [executor.submit(door.enter, x) for x in range(30)]
    until(door.came, "the first job runs")
    executor.shutdown(wait=False, cancel_futures=True)
    door.open()
    assert wait(futures, timeout=WAIT_S) == (set(futures), set())
    assert set(as_completed(futures, timeout=WAIT_S)) == set(futures)
    assert sum(future.cancelled() for future in futures) > 20


# --- Executors within jobs, and forks ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.covers("P28")
def test_a_job_may_have_an_executor_of_its_own(make_ours: Any, depth: int) -> None:
    executor: Executor = make_ours(2)
    jobs = [executor.submit(square_elsewhere, x, depth) for x in range(3)]
    assert [job.result(WAIT_S) for job in jobs] == [0, 1, 4]


def run_program(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    (folder / "program.py").write_text(text)
    (folder / "tmp").mkdir()
    return subprocess.run(
        [sys.executable, "-W", "default", "program.py"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder / "tmp")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.covers("C5")
def test_a_fork_of_the_program_is_refused_and_harms_nobody(tmp_path: Path, end: str) -> None:
    ended = run_program(
        tmp_path,
        f"""
import os, sys, warnings
import batchd

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer warn of any fork beside threads.
executor = batchd.Executor(1)
print(executor.submit(pow, 2, 3).result(), flush=True)
child = os.fork()
if not child:
    try:
        executor.submit(pow, 2, 4)
    except RuntimeError as error:
        print(error, flush=True)
    {end}
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print(executor.submit(pow, 2, 5).result())
executor.shutdown()
print(os.getpid())
""",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    before, refusal, code, after, pid = ended.stdout.splitlines()
    assert (before, code, after) == ("8", "0", "32")
    assert pid in refusal


# --- Large values ------------------------------------------------------------------------------------------------


@pytest.mark.covers("P16")
def test_large_values_may_cross(make_ours: Any) -> None:
    executor = make_ours(2)
    there, back = executor.submit(len, bytes(100 * MIB)), executor.submit(bytes, 100 * MIB)
    assert there.result(WAIT_S) == 100 * MIB
    assert len(back.result(WAIT_S)) == 100 * MIB


def anonymous_mib(pid: int) -> int:
    """Return what a process holds in memory of its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon"))


@pytest.mark.covers("P18")
def test_large_values_are_let_go_after_use(make_ours: Any) -> None:
    executor = make_ours(1)
    pid, before = executor.submit(os.getpid).result(WAIT_S), anonymous_mib(os.getpid())
    assert executor.submit(len, bytes(100 * MIB)).result(WAIT_S) == 100 * MIB
    until(lambda: anonymous_mib(pid) < 90, "the worker holds no argument")
    assert len(executor.submit(bytes, 100 * MIB).result(WAIT_S)) == 100 * MIB
    until(lambda: anonymous_mib(os.getpid()) < before + 90, "the client holds no result")


# --- What is left, and what is kept ------------------------------------------------------------------------------


@pytest.mark.covers("P26")
def test_without_a_journal_nothing_is_left(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
import os
import batchd
from tests.contract.calls import shared_memory_files

with batchd.Executor(2) as executor:
    print(executor.submit(os.getpid).result(), *executor.submit(shared_memory_files).result())
""",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    pid, *shared = ended.stdout.split()
    until(lambda: dead(int(pid)), "the worker is gone")
    until(lambda: not [path for path in shared if Path(path).exists()], "its shared memory is gone")
    until(lambda: not list((tmp_path / "tmp").rglob("*")), "the throw-away journal is gone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py", "tmp"]


@pytest.mark.covers("P26")
def test_nothing_is_left_of_a_program_that_was_killed(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        f"""
import os, signal
import batchd
from tests.contract.calls import nap

executor = batchd.Executor(1)
pid = executor.submit(os.getpid).result()
executor.submit(nap, 60)
print(pid, flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
""",
    )
    assert ended.returncode == -signal.SIGKILL
    until(lambda: dead(int(ended.stdout)), "the worker is gone")


def test_with_a_journal_the_batch_is_kept(desk: Desk) -> None:
    with batchd.Executor(2, journal=desk.journal, name="nightly") as executor:
        assert list(executor.map(square, range(20))) == [x * x for x in range(20)]
        assert type(executor.submit(fail, ValueError, "no such colour").exception(WAIT_S)) is ValueError
    told = json.loads(desk.run("ls", "--json", "--journal", str(desk.journal)).stdout)
    assert [batch["name"] for batch in told["batches"]] == ["nightly"]
    assert not told["batches"][0]["error"]
    assert (told["batches"][0]["succeeded"], told["batches"][0]["failed"]) == (20, 1)
    assert "nightly" in desk.run("ls", "--journal", str(desk.journal)).stdout
    assert "no such colour" in desk.run("failures", "nightly").stdout


def test_a_journal_may_be_given_as_text_and_shared(desk: Desk) -> None:
    first = batchd.Executor(1, journal=str(desk.journal), name="one")
    second = batchd.Executor(1, journal=str(desk.journal), name="two")
    with first, second:
        assert (first.submit(square, 2).result(WAIT_S), second.submit(square, 3).result(WAIT_S)) == (4, 9)
    told = json.loads(desk.run("ls", "--json").stdout)
    assert sorted(batch["name"] for batch in told["batches"]) == ["one", "two"]
    assert [batch["succeeded"] for batch in told["batches"]] == [1, 1]


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_card_of_a_crash_shows_objects_and_how_to_run_it_again(is_kept: bool, desk: Desk, make_ours: Any) -> None:
    executor = make_ours(1, **({"journal": desk.journal, "name": "n"} if is_kept else {}))
    crash = executor.submit(die_with, Thing()).exception(WAIT_S)
    assert isinstance(crash, batchd.JobCrashed)
    assert crash.input_repr == "(Thing(name='a thing', size=3))"
    *_, last = str(crash).splitlines()
    if is_kept:
        assert last.endswith(f"batchd rerun {crash.batch}:0 --journal {desk.journal}")
    else:
        assert last.endswith("with name= or journal= its journal is kept for `batchd rerun`")


def test_the_batch_and_index_of_a_crash_name_it_in_the_journal(desk: Desk, tmp_path: Path) -> None:
    with batchd.Executor(1, journal=desk.journal, name="crashes") as executor:
        executor.submit(square, 2).result(WAIT_S)
        error = executor.submit(kill_myself, signal.SIGKILL).exception(WAIT_S)
    assert isinstance(error, batchd.JobCrashed)
    assert error.index == 1
    told = desk.run("failures", error.batch).stdout
    assert "SIGKILL" in told
