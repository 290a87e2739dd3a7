"""SIGKILL to everybody: nothing is lost, each job is recorded once, one bad job costs one job."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest

from batchd.core.events import Phase, Position
from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.worker.recorder import PID, Recorder
from tests.bench import await_death
from tests.commands import Desk, dead, pause, private_bytes, squares, summary_of, until
from tests.fault import tasks
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault


def kill(pid: int, tally: Tally, *rows: str) -> bool:
    """SIGKILL, if it is still there, which is counted for these rows; return whether it was."""
    if dead(pid):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        tally.injected(1, *rows)
        tally.count("real SIGKILLs", 1)
        return True
    return False


def check_whole(desk: Desk, jobs: int, tally: Tally) -> None:
    """Every job succeeded, is recorded once, and has the result a plain loop gives."""
    assert desk.results() == [{"index": i, "state": "succeeded", "result": i * i} for i in range(jobs)]
    (folder,) = (desk.journal / "batches").iterdir()
    journal = BatchJournal(folder)  # Opening folds every record: a job recorded twice is refused.
    try:
        assert journal.facts.done.size == jobs
        assert journal.facts.count(JobState.SUCCEEDED) == jobs
        spans = list(Outcomes(journal).spans(journal.facts.done, journal.facts.generation))
        recorded = Counter(index for span in spans for index in range(span.start, span.stop))
        tally.checked(jobs, lost=jobs - len(recorded), doubled=recorded.total() - len(recorded))
        assert sum(span.stop - span.start for span in spans) == jobs
    finally:
        journal.close()
    assert len(set(desk.attempts())) == len(desk.attempts()), "an attempt number was given twice"


@pytest.mark.covers("S1", "P2")
def test_the_supervisor_is_killed_at_random_moments(desk: Desk, tally: Tally) -> None:
    jobs = 1500
    process = desk.start("run", desk.task("marked_square"), "--range", f"0:{jobs}", "--out", "out.jsonl")
    dice = random.Random(1)
    kills = 0
    while process.poll() is None and kills < 12:
        desk.wait_for_jobs(len(desk.attempts()) + 1, process, may_end=True)  # So many of its lives get on.
        pause(dice.uniform(0.0, 0.05))
        kills += kill(desk.supervisor(), tally)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert kills >= 6, "the batch was over too soon"
    assert "the supervisor died" in err
    check_whole(desk, jobs, tally)


_TRACE = "strace"
_MORE_TIMES = [
    ("fdatasync", (1, 3, 4, 5, 7, 9)),
    ("pwrite64", (1, 2, 3, 5, 8, 14, 21)),
    ("sendto", (1, 2, 3, 4, 5, 6)),
    ("write", (1, 2, 3, 5, 7, 12)),
    ("fdatasync", (2,)),
]


@pytest.mark.skipif(shutil.which(_TRACE) is None, reason="strace is not installed: crash points cannot be enumerated")
@pytest.mark.parametrize(
    ("call", "times"),
    [
        ("write", (9,)),
        *(pytest.param(call, times, marks=pytest.mark.slow) for call, times in _MORE_TIMES),
    ],
)
@pytest.mark.covers("S1")
def test_the_supervisor_is_killed_at_its_nth_system_call(
    desk: Desk, call: str, times: tuple[int, ...], tally: Tally
) -> None:
    """Before, within and after commits, and between a commit and the frames that follow it."""
    jobs, kills = 300, 0
    for number, nth in enumerate(times):
        name = f"round{number}"
        ready, its_ready = os.pipe()
        if not desk.journal.exists():
            desk.run("ls")
            desk.run("run", desk.task("square"), "--range", "0:1", "--name", "first")
        until(lambda: not desk.supervisor(), "no supervisor holds the journal")
        traced = subprocess.Popen(
            [
                *(_TRACE, "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}"),
                *("-e", f"inject={call}:signal=KILL:when={nth}"),
                *(sys.executable, "-m", "batchd.supervisor", str(desk.journal), str(its_ready)),
            ],
            pass_fds=(its_ready,),
            env=desk.environ,
        )
        os.close(its_ready)
        os.read(ready, 64)
        os.close(ready)
        out = f"{name}.jsonl"
        ran = desk.run("run", desk.task("marked_square"), "--range", f"0:{jobs}", "--name", name, "--out", out)
        traced.terminate()  # If there is something left to end: strace dies as the supervisor did.
        kills += traced.wait(60) == -signal.SIGKILL
        assert ran.returncode == 0, ran.stderr
        assert desk.values(out) == squares(jobs)
    assert len(desk.executions()) == jobs
    tally.injected(kills)
    tally.count("crash points enumerated", kills)
    tally.count("real SIGKILLs", kills)
    assert kills == len(times), "a call was never reached"


@pytest.mark.covers("C1")
def test_the_client_is_killed_and_run_again(desk: Desk, tally: Tally) -> None:
    jobs = 1000
    command = ("run", desk.task("marked_square"), "--range", f"0:{jobs}", "--out", "out.jsonl")
    for done in (100, 500):
        process = desk.start(*command)
        desk.wait_for_jobs(done, process)
        process.kill()
        process.communicate()
    ran = desk.run(*command)
    assert ran.returncode == 0, ran.stderr
    assert "were already done" in ran.stderr
    check_whole(desk, jobs, tally)


@pytest.mark.covers("S1", "C1", "P2")
def test_everything_is_killed_together_and_run_again(desk: Desk, tally: Tally) -> None:
    jobs = 1000
    command = ("run", desk.task("marked_square"), "--range", f"0:{jobs}", "--out", "out.jsonl")
    for done in (100, 400, 700):
        process = desk.start(*command)
        desk.wait_for_jobs(done, process)
        process.kill()
        kill(desk.supervisor(), tally, "S1", "P2")
        for pid in desk.processes():
            kill(pid, tally, "P2")
        tally.injected(1, "C1")
        process.communicate()
    assert desk.run(*command).returncode == 0
    check_whole(desk, jobs, tally)
    doubled = [index for index, times in desk.executions().items() if times > 1]
    assert len(doubled) < 3 * 60, "more than what was in flight ran twice"


@pytest.mark.covers("W1", "P2", "P5")
def test_random_workers_are_killed_throughout(desk: Desk, tally: Tally) -> None:
    jobs = 1500
    process = desk.start(
        "run", desk.task("marked_square"), "--range", f"0:{jobs}", "--out", "out.jsonl", "--max-crashes", "1000"
    )
    dice = random.Random(2)
    kills = 0
    until(lambda: len(desk.executions()) > 5, "some jobs ran", process)
    while process.poll() is None and kills < 60:
        desk.wait_for_jobs(len(desk.attempts()) + 10, process, may_end=True)  # Or none would finish a job any more.
        workers = desk.workers()
        if workers:
            kill(dice.choice(workers), tally, "W1", "P2")
            kills += 1
        pause(0.02)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert kills > 10, "nobody was killed"
    tally.injected(1, "P5")
    check_whole(desk, jobs, tally)


@pytest.mark.covers("W1", "P1")
@pytest.mark.slow
def test_whoever_runs_when_its_worker_is_killed_is_charged_and_nobody_else(desk: Desk, tally: Tally) -> None:
    """Each worker is stopped at a random moment, so that its position can be read, and killed there.

    Its neighbours that had ended and were not reported yet run again, as if nothing had been.
    One crash is all that a job may have, so that who was charged is who is quarantined.
    """
    kills_max = 50
    jobs = 400 * kills_max
    command = ("run", desk.task("fast_square"), "--range", f"0:{jobs}", "--out", "out.jsonl", "--keep-going")
    process = desk.start(*command, "-j", "2", "--max-crashes", "1")
    dice, charged, kills = random.Random(3), set(), 0
    until(lambda: len(desk.executions()) > 5, "some jobs ran", process)
    while process.poll() is None and kills < kills_max:
        desk.wait_for_jobs(len(desk.attempts()) + 10, process, may_end=True)
        pause(dice.uniform(0.0, 0.01))
        pid = dice.choice(desk.workers() or [0])
        position = stopped_at(desk, pid) if pid else None
        if position is not None:
            if position.phase is Phase.RUNNING:
                charged.add(position.index)
            kills += kill(pid, tally)
        elif pid:
            with suppress(ProcessLookupError):  # Nobody was left to be stopped.
                os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    lines = desk.results()
    assert len(lines) == jobs
    assert {line["index"] for line in lines if line["state"] != "succeeded"} == charged
    assert {line["error"]["message"] for line in lines if line["state"] == "quarantined"} == {"killed by SIGKILL"}
    assert kills > kills_max // 2, "nobody was killed"
    assert len(charged) > kills // 4, "they were hardly ever killed while they ran a job"
    tally.saw(f"{len(charged)} of {kills} killed workers ran a job: those were charged")


def stopped_at(desk: Desk, worker: int) -> Position | None:
    """Stop a worker and return where it is, None if it has not been anywhere or has just ended."""
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGSTOP)
    until(lambda: dead(worker) or " T " in Path(f"/proc/{worker}/stat").read_text(), "it is stopped")
    recorder = Recorder.open(desk.recorder())
    try:
        slots = [recorder.slot(number) for number in range(recorder.slots)]
        found = [slot.position() for slot in slots if slot.words[PID] == worker]
    finally:
        recorder.close()
    return found[0] if found and not dead(worker) else None


@pytest.mark.covers("P1", "P3", "P5")
def test_a_job_that_kills_its_worker_each_time_is_quarantined_and_costs_nobody_else(desk: Desk) -> None:
    ran = desk.run("run", desk.task("poison_at_500"), "--range", "0:1000", "--out", "out.jsonl")
    assert ran.returncode == 1
    lines = desk.results()
    assert lines[500]["state"] == "quarantined"
    assert lines[500]["error"]["message"] == "killed by SIGKILL"
    assert [line["index"] for line in lines if line["state"] == "succeeded"] == [i for i in range(1000) if i != 500]
    times = desk.executions()
    assert times.pop(500) == 3
    assert set(times.values()) == {1}, "a neighbour of 1 ms ran twice"
    assert [attempt for index, attempt in desk.attempts() if index == 500] == [1, 2, 3]


@pytest.mark.covers("P1", "P3")
def test_fast_neighbours_of_a_poison_job_run_again_only_if_they_were_not_reported(desk: Desk) -> None:
    ran = desk.run("run", desk.task("fast_poison_at_500"), "--range", "0:1000", "--out", "out.jsonl")
    assert ran.returncode == 1
    assert summary_of(desk.run("show", "last", "--json").stdout)["quarantined"] == 1
    times = desk.executions()
    assert times.pop(500) == 3
    again = sorted(index for index, count in times.items() if count > 1)
    assert all(count <= 2 for count in times.values())
    # What ran again stood directly before the poison, in the same report.
    assert again == list(range(500 - len(again), 500))


@pytest.mark.slow
@pytest.mark.covers("X5")
def test_a_job_that_kills_the_supervisor_too_ends_in_quarantine(desk: Desk) -> None:
    ran = desk.run("run", desk.task("supervisor_killer_at_7"), "--range", "0:200", "--out", "out.jsonl")
    assert ran.returncode == 1, ran.stderr
    lines = desk.results()
    assert lines[7]["state"] == "quarantined"
    assert sum(line["state"] == "succeeded" for line in lines) == 199
    attempts = desk.attempts()
    assert len(set(attempts)) == len(attempts)


@pytest.mark.slow
@pytest.mark.covers("X5")
def test_whoever_runs_beside_a_job_that_kills_the_supervisor_is_not_quarantined_with_it(
    desk: Desk, tally: Tally
) -> None:
    """None of them ever ends before it does: with all of them beside each other nobody could tell who it is."""
    command = ("run", f"{tasks.__file__}:kills_supervisor_at_two", "--range", "0:12", "--out", "out.jsonl", "-j", "4")
    ran = desk.run(*command)
    assert ran.returncode == 1, ran.stderr
    lines = desk.results()
    assert [line["index"] for line in lines if line["state"] != "succeeded"] == [2]
    assert lines[2]["state"] == "quarantined"
    assert lines[2]["error"]["message"] == "was running at 5 deaths of the supervisor in a row"
    tally.injected(5)


@pytest.mark.covers("S3")
def test_workers_are_gone_soon_after_their_supervisor(desk: Desk, tally: Tally) -> None:
    process = desk.start("run", desk.task("long_job"), "--range", "0:8")
    until(lambda: len(desk.executions()) >= 2, "jobs run", process)
    workers = [pid for pid in desk.processes() if not dead(pid)]
    process.kill()
    process.communicate()
    began = monotonic()
    kill(desk.supervisor(), tally)
    for pid in workers:
        await_death(pid, 1.0)
    tally.saw(f"gone after {(monotonic() - began) * 1000:.0f} ms")


@pytest.mark.slow
def test_a_million_jobs_that_all_raise_stay_bounded(desk: Desk) -> None:
    process = desk.start("run", desk.task("always_raises"), "--range", "0:1000000", "--keep-going", "--json")
    peak = 0
    while process.poll() is None:
        peak = max(peak, private_bytes(desk.supervisor()))
        pause(0.1)
    out, err = process.communicate()
    assert summary_of(out)["failed"] == 1_000_000, err
    assert peak < 200 << 20, f"the supervisor grew to {peak >> 20} MiB"
