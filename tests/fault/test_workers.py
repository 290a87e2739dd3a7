"""What a job can do to its worker, and what can happen to a worker: it costs that job, and nobody else."""

import os
import re
import shutil
import signal
import subprocess
from array import array
from collections import Counter
from fcntl import ioctl
from pathlib import Path
from random import Random
from termios import FIONREAD
from time import monotonic
from typing import Any

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.job import JobState
from tests.bench import Bench, at_work, await_death, is_alive
from tests.commands import Desk, dead, squares, summary_of, until
from tests.fault import tasks
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault
TASKS = Path(tasks.__file__)
JOBS = 10
STRACE = "strace"
GONE_S = 1.0


def run(desk: Desk, task: str, *args: str, jobs: int = JOBS) -> dict[int, Any]:
    """Run a task of tasks.py and return the lines of the jobs that did not succeed; all others must be right."""
    ran = desk.run("run", f"{TASKS}:{task}", "--range", f"0:{jobs}", "--out", "out.jsonl", "-j", "2", *args)
    lines = desk.results()
    assert len(lines) == jobs, ran.stderr
    bad = {line["index"]: line for line in lines if line["state"] != "succeeded"}
    assert {line["index"]: line["result"] for line in lines if line["index"] not in bad} == {
        index: index * index for index in range(jobs) if index not in bad
    }
    assert ran.returncode == (1 if bad else 0)
    return bad


def failed(desk: Desk, task: str, *args: str) -> tuple[str, str]:
    """Return (type, message) of the one job that fails."""
    bad = run(desk, task, *args)
    assert list(bad) == [tasks.BAD], bad
    return bad[tasks.BAD]["error"]["type"], bad[tasks.BAD]["error"]["message"]


def marked(desk: Desk) -> list[int]:
    """Return the numbers a task wrote down."""
    return [int(word) for word in desk.marks.read_text().split()] if desk.marks.exists() else []


# --- Killed while it writes ------------------------------------------------------------------------------------


@pytest.mark.covers("W2", "P2", "P12")
def test_a_report_that_was_torn_by_a_kill_is_dropped(bench: Bench, tally: Tally) -> None:
    """The pipe takes 64 KiB: a worker with more to say stands in the middle of its frame until somebody reads."""
    worker = at_work(bench, [("work", 0.002, "good"), ("same", "x" * tasks.LARGE_REPORT_BYTES), ("same", "never")])
    number = bench.lease(worker, 0, 3)

    def unread() -> int:
        size = array("i", [0])
        ioctl(worker.reports_fd, FIONREAD, size)
        return size[0]

    until(lambda: unread() > 1 << 15, "half of what the pipe takes is there")
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: dead(worker.pid), "it is dead")  # Before anybody reads, or it could still write on.
    tally.count("real SIGKILLs", 1)
    gone = bench.gone(worker)
    assert [told[:2] for told in bench.told(number)] == [(0, JobState.SUCCEEDED)]
    assert gone.position is not None
    assert gone.position.phase is not ev.Phase.IDLE
    assert not [event for event in bench.events if isinstance(event, ev.LeaseEnded)]


@pytest.mark.covers("W2")
@pytest.mark.skipif(shutil.which(STRACE) is None, reason="strace is not installed")
def test_a_worker_is_killed_at_each_of_its_writes(bench: Bench, tally: Tally) -> None:
    """What was told before is kept, what was not is not made up, and the position names one job of the lease."""
    jobs = 4
    at_work(bench, [("work", 0.002, index) for index in range(jobs)])
    ended = nth = 0
    while not ended:
        nth += 1
        worker = bench.start()
        strace = subprocess.Popen(
            [STRACE, "-p", str(worker.pid), "-e", "trace=write", "-e", f"inject=write:signal=KILL:when={nth}"],
            stderr=subprocess.PIPE,
        )
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        number = bench.lease(worker, 0, jobs, attempt=nth)
        bench.until(
            lambda: any(isinstance(event, ev.WorkerGone | ev.LeaseEnded) for event in bench.events), "it ends"
        )
        told = [each.value for each in bench.told(number)]
        assert told == list(range(len(told)))
        ended = sum(isinstance(event, ev.LeaseEnded) for event in bench.events)
        if ended:
            assert len(told) == jobs
            os.kill(worker.pid, signal.SIGKILL)
        else:
            gone = bench.gone(worker)
            assert gone.cause == "killed by SIGKILL"
            assert gone.position is not None
            assert gone.position.index in {len(told), len(told) - 1}
        bench.events.clear()
        strace.wait()
        strace.stderr.close()
    tally.injected(nth - 1)
    tally.count("crash points enumerated", nth - 1)
    tally.count("real SIGKILLs", nth - 1)
    assert nth > jobs


@pytest.mark.covers("W1", "P2", "P4")
@pytest.mark.parametrize("kills", [60, pytest.param(2_500, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_no_doubt(bench: Bench, kills: int, tally: Tally) -> None:
    """What was told is a beginning of the lease, with the right values; the position names a job right behind it.

    Short and long jobs, and results that fill the pipe; whoever should read them sometimes does, sometimes does not.
    """
    dice = Random(kills)
    sizes = [dice.choice((0, 10, 3_000, 70_000, 400_000)) for _ in range(24)]
    at_work(bench, [("work", dice.choice((0.0, 0.0, 0.0005, 0.002)), "x" * size) for size in sizes])
    phases: Counter[ev.Phase | None] = Counter()
    for nth in range(1, kills + 1):
        worker = bench.start()
        number = bench.lease(worker, 0, len(sizes), attempt=nth, reports_each=True)
        until_s = monotonic() + dice.expovariate(1 / 0.006)
        while monotonic() < until_s:
            if dice.random() < 0.7:
                bench.turn()
        os.kill(worker.pid, signal.SIGKILL)
        gone = bench.gone(worker)
        told = bench.told(number)
        assert [(each.job, len(each.value)) for each in told] == list(enumerate(sizes[: len(told)]))
        assert gone.cause == "killed by SIGKILL"
        position = gone.position
        phases[position.phase if position else None] += 1
        if position is None or position.lease != number:
            assert told == []
        elif position.phase is ev.Phase.IDLE:
            assert (position.index, len(told)) == (len(sizes) - 1, len(sizes)), "not all that it said was heard"
        else:
            assert len(told) <= position.index + 1, "more was told than had begun"
            unheard = [index for index in range(len(told), position.index) if sizes[index] > 3_000]
            assert len(unheard) <= 1, "large results were kept back"
        bench.pool.perform(c.ForgetWorker(worker.number))
        bench.events.clear()
    tally.injected(kills, "W1", "P2")
    tally.injected(1, "P4")  # All by one cause.
    tally.count("real SIGKILLs", kills)
    assert phases[ev.Phase.RUNNING] > kills // 20
    assert phases[ev.Phase.REPORTING], phases


@pytest.mark.covers("W14")
def test_a_result_that_was_on_its_way_when_the_time_was_up_counts(bench: Bench) -> None:
    """The order to kill meets a worker that has reported: the report is told first, and the death blames nobody."""
    worker = at_work(bench, [("same", "in time")])
    number = bench.lease(worker, 0, 1)

    def is_idle() -> bool:
        position = worker.slot.position()
        return position is not None and (position.lease, position.phase) == (number, ev.Phase.IDLE)

    until(is_idle, "it has reported")
    assert bench.told(number) == []  # The report lies in the pipe.
    bench.pool.perform(c.KillWorker(worker.number, "timed out after 1.0 s"))
    gone = bench.gone(worker)
    assert [told.value for told in bench.told(number)] == ["in time"]
    assert gone.position is not None
    assert gone.position.phase is ev.Phase.IDLE
    kinds = [type(event) for event in bench.events]
    assert kinds.index(ev.JobsAcked) < kinds.index(ev.WorkerGone)


# --- Stopped, or held ------------------------------------------------------------------------------------------


@pytest.mark.covers("W8", "P15")
def test_a_worker_that_is_stopped_is_ended_by_the_time_limit_and_its_job_runs_again(desk: Desk) -> None:
    assert run(desk, "stops_itself_once", "--timeout", "1s", "--retries", "1") == {}
    assert desk.attempts() == [(tasks.BAD, 1), (tasks.BAD, 2)]


@pytest.mark.covers("W8", "P15")
def test_a_worker_that_is_stopped_without_a_limit_is_slow_and_not_dead(desk: Desk) -> None:
    command = ("run", f"{TASKS}:stops_itself_and_tells", "--range", "0:100", "--out", "out.jsonl", "-j", "2")
    process = desk.start(*command)
    (stopped,) = until(lambda: marked(desk), "a job is stopped", process)
    until(lambda: done(desk) >= 99 - tasks.BAD, "the others go on", process)
    assert is_alive(stopped)
    os.kill(stopped, signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert desk.values() == squares(100)


def done(desk: Desk) -> int:
    """Return how many jobs of the only batch are done."""
    told = summary_of(desk.run("show", "last", "--json").stdout)
    return int(told["succeeded"])


@pytest.mark.covers("W9")
def test_a_job_that_holds_the_gil_is_busy_and_not_dead(desk: Desk) -> None:
    assert run(desk, "holds_the_gil", "--timeout", "20s", jobs=4) == {}


@pytest.mark.covers("W9", "P7")
def test_a_native_loop_that_holds_the_gil_is_ended_by_its_time_limit(desk: Desk) -> None:
    kind, message = failed(desk, "computes_for_ever", "--timeout", "1s")
    assert kind == "JobTimeout"
    assert message.startswith("timed out after 1.")


@pytest.mark.covers("X2", "P7")
def test_a_job_that_ignores_every_signal_is_ended_with_its_children(desk: Desk, tally: Tally) -> None:
    kind, message = failed(desk, "ignores_the_end", "--timeout", "1s")
    assert kind == "JobTimeout"
    assert re.fullmatch(r"timed out after \d+\.\d s", message)
    pids = marked(desk)
    assert len(pids) == 2
    for pid in pids:
        await_death(pid, GONE_S)


@pytest.mark.covers("P8", "W7")
def test_children_of_every_kind_die_with_their_job(desk: Desk, tally: Tally) -> None:
    """In its group, in a session of their own, forked twice: by the time the job is told to have failed."""
    kind, message = failed(desk, "leaves_children")
    assert (kind, message) == ("JobCrashed", "killed by SIGKILL")
    children = marked(desk)
    assert len(children) == 3 * 3, "three children of each of three attempts"
    for pid in children:
        await_death(pid, GONE_S)
    tally.injected(len(children))


@pytest.mark.covers("P8", "W7")
@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_children_that_were_given_another_environment_die_with_their_job(
    desk: Desk, start: str, tally: Tally
) -> None:
    kind, message = failed(desk, "leaves_strangers", "--start", start)
    assert (kind, message) == ("JobCrashed", "killed by SIGKILL")
    strangers = marked(desk)
    assert len(strangers) == 3 * 2, "two of each of three attempts"
    for pid in strangers:
        await_death(pid, GONE_S)
    tally.injected(len(strangers))


@pytest.mark.covers("W7")
def test_only_the_children_of_the_worker_that_died_are_killed(desk: Desk) -> None:
    """And when their supervisor is killed, the next one ends those that nobody else could find."""
    process = desk.start("run", f"{TASKS}:waits_with_a_stranger", "--range", "0:2", "-j", "2", "--max-crashes", "1")
    one, other = until(lambda: marked(desk) if len(marked(desk)) == 2 else [], "both run", process)
    worker = int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    await_death(one, GONE_S)
    assert is_alive(other)
    os.kill(desk.supervisor(), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert is_alive(other), "nobody could know"
    desk.run("run", f"{TASKS}:short_work", "--range", "0:1")
    await_death(other, GONE_S)


@pytest.mark.covers("P8")
def test_children_die_with_a_worker_that_is_killed_from_outside(desk: Desk) -> None:
    command = ("run", f"{TASKS}:waits_with_a_child", "--range", "0:1", "-j", "1", "--max-crashes", "1")
    process = desk.start(*command)
    worker, own, alone = until(lambda: marked(desk) if len(marked(desk)) == 3 else [], "it runs", process)
    os.kill(worker, signal.SIGKILL)
    for pid in (own, alone):
        await_death(pid, GONE_S)
    process.communicate(timeout=30)


# --- Descriptors, output, recursion ----------------------------------------------------------------------------


@pytest.mark.covers("W12")
def test_a_job_that_takes_every_descriptor_fails_alone(desk: Desk) -> None:
    kind, message = failed(desk, "leaks_descriptors")
    assert kind == "OSError"
    assert "Too many open files" in message


@pytest.mark.covers("W10")
def test_a_fast_job_that_closes_what_its_worker_reports_by_is_found_among_its_neighbours(desk: Desk) -> None:
    """The worker dies with its next report, so nobody is blamed the first time."""
    assert failed(desk, "closes_descriptors") == ("JobCrashed", "closed descriptors it did not open")


@pytest.mark.covers("X1", "P12", "W10")
def test_garbage_on_descriptors_1_to_20_changes_what_was_printed_and_nothing_else(desk: Desk, tally: Tally) -> None:
    assert failed(desk, "writes_garbage") == ("ValueError", "wrote garbage")
    assert "the end of the garbage" in desk.run("failures", "last").stdout
    assert desk.run("journal", "check").returncode == 0
    tally.injected(20)


@pytest.mark.covers("X3", "P27")
def test_of_100_mb_that_were_printed_the_last_lines_are_kept(desk: Desk) -> None:
    """And nearly all memory of the others is given back while their job runs on, which waits for that."""
    assert failed(desk, "prints_100_mb", "--timeout", "30s") == ("ValueError", "printed enough")
    (group,) = summary_of(desk.run("failures", "last", "--json").stdout)["causes"]
    output = str(group)
    assert "the last line" in output
    assert len(output) < 20_000


@pytest.mark.covers("X4")
def test_recursion_without_end_is_an_error_of_its_job(desk: Desk) -> None:
    assert failed(desk, "recurses") == ("RecursionError", "maximum recursion depth exceeded")


@pytest.mark.covers("X4", "W4")
def test_recursion_in_c_is_a_crash_that_names_its_signal(desk: Desk) -> None:
    assert failed(desk, "recurses_in_c", "--max-crashes", "1") == ("JobCrashed", "killed by SIGSEGV")


@pytest.mark.covers("P27")
def test_a_crash_in_c_shows_where_python_was(desk: Desk) -> None:
    failed(desk, "recurses_in_c", "--max-crashes", "1")
    assert re.search(r'tasks\.py", line \d+.* in recurses_in_c', desk.run("failures", "last").stdout)


@pytest.mark.covers("P20")
def test_workers_are_killed_for_memory_before_their_supervisor(desk: Desk) -> None:
    ran = desk.run("run", f"{TASKS}:oom_scores", "--range", "0:4", "--out", "out.jsonl", "-j", "1")
    assert ran.returncode == 0
    for line in desk.results():
        worker, supervisor = line["result"]
        assert worker > supervisor


@pytest.mark.covers("P22")
def test_a_worker_has_one_thread_and_no_descriptor_of_the_supervisor(desk: Desk) -> None:
    ran = desk.run("run", f"{TASKS}:threads_and_descriptors", "--range", "0:2", "--out", "out.jsonl", "-j", "1")
    assert ran.returncode == 0
    for line in desk.results():
        threads, names = line["result"]
        assert threads == 1
        own = [name for name in names if not name.endswith(("data.mdb", "lock.mdb")) and "/proc/" not in name]
        assert own == ["/dev/null", *["/memfd:batchd-output (deleted)"] * 2]
    assert all(dead(pid) for pid in desk.workers())
