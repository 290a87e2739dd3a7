"""Supervisors that are stopped, signalled, thrown at and killed while jobs run long."""

import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

import pytest

from batchd.client import connect, request
from batchd.client.connection import SupervisorGone
from batchd.edge.journal import BatchJournal
from tests.bench import ROOT, House, await_death, pump_until
from tests.commands import Desk, dead, pause, squares, until
from tests.fault import tasks
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault
TASKS = Path(tasks.__file__)
GONE_S = 1.0


def task(name: str, jobs: int, *args: str) -> tuple[str, ...]:
    return ("run", f"{TASKS}:{name}", "--range", f"0:{jobs}", "--out", "out.jsonl", "-j", "2", *args)


# --- Stopped ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("S2")
@pytest.mark.parametrize("stopped_s", [1.5, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_supervisor_that_was_stopped_ends_nobody_for_it(desk: Desk, stopped_s: float, tally: Tally) -> None:
    """Jobs of 1 s with a limit of 1.4 s: whoever is judged by the supervisor's clock alone would be over it."""
    process = desk.start(*task("takes_a_second", 6, "--timeout", "1.4s"))
    desk.wait_for_jobs(1, process)
    supervisor = desk.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    pause(stopped_s)
    os.kill(supervisor, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert desk.values() == squares(6)
    assert [attempt for _, attempt in desk.attempts()] == [1] * 6
    tally.saw(f"stopped for {stopped_s:g} s")


# --- Signals ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("S7")
def test_a_storm_of_signals_changes_nothing(desk: Desk, tally: Tally) -> None:
    process = desk.start(*task("short_work", 300))
    desk.wait_for_jobs(5, process)
    supervisor = desk.supervisor()
    for _ in range(250):
        os.kill(supervisor, signal.SIGCHLD)
        os.kill(supervisor, signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "died" not in err
    assert desk.values() == squares(300)
    tally.injected(500)


@pytest.mark.covers("H3")
@pytest.mark.parametrize("is_supervisor_first", [True, False], ids=["supervisor first", "workers first"])
def test_a_unit_that_is_stopped_charges_nobody(desk: Desk, *, is_supervisor_first: bool) -> None:
    """SIGTERM to everybody, as systemd does it. A crash that was charged would quarantine the job at once."""
    desk.environ["GO"] = str(desk.folder / "go")
    command = (*task("waits_for_go", 4), "--max-crashes", "1")
    process = desk.start(*command)
    desk.wait_for_jobs(2, process)
    orders = [[desk.supervisor()], desk.processes()]
    stop_unit(desk, process, orders if is_supervisor_first else orders[::-1])
    again = desk.run(*command)
    assert again.returncode == 0, again.stderr
    assert desk.values() == squares(4)


@pytest.mark.covers("H3")
def test_a_unit_that_is_stopped_fails_no_command_that_hears_of_it_first(desk: Desk) -> None:
    words = f"/bin/sh -c 'until [ -e {desk.folder}/go ]; do sleep 0.02; done; echo {{}}'"
    command = ("exec", words, "--range", "0:4", "--out", "out.jsonl", "-j", "2")
    process = desk.start(*command)

    def is_command(pid: int) -> bool:
        with suppress(OSError):  # One of the others ended just now.
            return Path(f"/proc/{pid}/comm").read_text() == "sh\n"
        return False

    def commands() -> list[int]:
        return list(filter(is_command, desk.processes()))

    until(lambda: len(commands()) == 2, "both run", process)
    stop_unit(desk, process, [commands(), desk.workers(), [desk.supervisor()]])
    again = desk.run(*command)
    assert again.returncode == 0, again.stderr
    assert desk.values() == ["0", "1", "2", "3"]


def stop_unit(desk: Desk, process: "subprocess.Popen[str]", orders: list[list[int]]) -> None:
    """Terminate some, see them dead or leaving, then others; nobody is charged. Then let jobs end."""
    for pids in orders:
        for pid in pids:
            with suppress(ProcessLookupError):  # Ended with what came before.
                os.kill(pid, signal.SIGTERM)
        if pids != [desk.supervisor()]:
            until(lambda pids=pids: all(map(dead, pids)), "they are dead")  # type: ignore[misc]  # Of lambdas.
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    journal = BatchJournal(next((desk.journal / "batches").iterdir()))
    begun = [history for _, _, history in journal.facts.histories.spans(0, 4) if history.attempts]
    assert {(each.failures, each.crashes, each.interruptions) for each in begun} == {(0, 0, 0)}
    assert journal.facts.done.size == 0
    journal.close()
    (desk.folder / "go").touch()


@pytest.mark.covers("S7", "H3")
@pytest.mark.slow
def test_terminated_it_lets_what_runs_finish_and_is_gone_in_time(desk: Desk, tally: Tally) -> None:
    process = desk.start(*task("takes_a_second", 50))
    desk.wait_for_jobs(2, process)
    supervisor, began = desk.supervisor(), monotonic()
    os.kill(supervisor, signal.SIGTERM)
    await_death(supervisor, 10.0)
    tally.saw(f"gone {monotonic() - began:.1f} s after SIGTERM")
    process.communicate(timeout=60)
    assert process.returncode == 4
    begun = desk.attempts()
    assert desk.run(*task("takes_a_second", 50)[:-2], "-j", "25").returncode == 0
    assert desk.values() == squares(50)
    assert len(desk.attempts()) == 50, f"of {len(begun)} jobs that had begun some ran again"


# --- Thrown at -------------------------------------------------------------------------------------------------

FLAWED = """
import sys
from pathlib import Path
from batchd.supervisor.loop import Supervisor
from batchd.supervisor.recovery import recover

supervisor = Supervisor(recover(Path(sys.argv[1])))
answer = supervisor.clients.answer

def flawed(client, message):
    if message.fields.get("do") == "cancel":
        raise ZeroDivisionError("a bug")
    answer(client, message)

supervisor.clients.answer = flawed
print("ready", flush=True)
sys.exit(supervisor.run())
"""


@pytest.mark.covers("S6")
def test_a_bug_in_one_request_costs_that_connection(house: House) -> None:
    flawed = subprocess.Popen(
        [sys.executable, "-c", FLAWED, str(house.folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert flawed.stdout is not None
    assert flawed.stdout.readline() == b"ready\n"
    session = house.start([("work", 0.01, index) for index in range(100)])
    pump_until(session, lambda: session.progress["done"] > 5, "it runs")
    line = connect(house.folder)
    with pytest.raises(SupervisorGone):
        line.ask("cancel", batch="b", reason="none")
    line.close()
    assert request(house.folder, "status")["pid"] == flawed.pid
    house.finish(session)
    assert house.outcomes() == {index: index for index in range(100)}
    _, said = flawed.communicate(timeout=30)
    assert flawed.returncode == 0
    assert b"ZeroDivisionError: a bug" in said


FAULTY = """
import sys
from pathlib import Path
from batchd.supervisor.loop import Supervisor
from batchd.supervisor.recovery import recover
from batchd.testing.faults import FaultyPool

supervisor = Supervisor(recover(Path(sys.argv[1])), pool=FaultyPool)
supervisor.pool.faults.at("GrantLease", 6, ZeroDivisionError("a bug"))
print("ready", flush=True)
sys.exit(supervisor.run())
"""


@pytest.mark.covers("S6", "S1")
def test_a_bug_in_the_loop_costs_the_supervisor_and_no_job(house: House) -> None:
    """What it was about to do is unknown then: the next one replays, as after any death."""
    faulty = subprocess.Popen(
        [sys.executable, "-c", FAULTY, str(house.folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert faulty.stdout is not None
    assert faulty.stdout.readline() == b"ready\n"
    assert house.run([("work", 0.005, index) for index in range(100)]) == {index: index for index in range(100)}
    _, said = faulty.communicate(timeout=30)
    assert faulty.returncode == 1
    assert b"ZeroDivisionError: a bug" in said
    assert len(house.notes) == 1
    assert "the supervisor died; started another" in house.notes[0]


# --- Killed while jobs run -------------------------------------------------------------------------------------


@pytest.mark.covers("P10", "S3")
def test_nothing_is_run_again_while_an_old_worker_lives(desk: Desk, tally: Tally) -> None:
    """The old worker is stopped, so that it could go on later; the supervisor dies; another one starts at once."""
    command = task("waits_long_once", 2, "--name", "b")
    process = desk.start(*command)
    desk.wait_for_jobs(2, process)
    old = desk.workers()
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    os.kill(desk.supervisor(), signal.SIGKILL)
    desk.wait_for_jobs(3, process)
    assert all(dead(pid) for pid in old), "a job runs again while its first worker could go on"
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert desk.values() == squares(2)
    assert sorted(desk.attempts()) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    tally.count("real SIGKILLs", 1)


@pytest.mark.covers("P10", "S3")
def test_an_old_worker_that_hears_nothing_of_the_death_is_killed_before_the_replay(desk: Desk, tally: Tally) -> None:
    """Nothing but the next supervisor ends it: it has closed its end of the lifeline."""
    process = desk.start(*task("deaf_once", 2, "--name", "b"))
    desk.wait_for_jobs(2, process)
    old = desk.workers()
    assert len(old) == 2
    os.kill(desk.supervisor(), signal.SIGKILL)
    desk.wait_for_jobs(3, process)
    assert all(dead(pid) for pid in old), "a job runs again beside its first worker"
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert desk.values() == squares(2)
    assert sorted(desk.attempts()) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    tally.count("real SIGKILLs", 1)


CALLS = {"x86_64": ("0", "1"), "aarch64": ("63", "64"), "riscv64": ("63", "64"), "s390x": ("3", "4")}
READ, WRITE = CALLS.get(platform.machine(), ("", ""))
needs_numbers = pytest.mark.skipif(not READ, reason="what number read() has on this machine is not known here")


def stopped(desk: Desk, process: "subprocess.Popen[str]", call: str) -> tuple[int, list[int]]:
    """Stop the supervisor; return it and its workers once they all stand in that system call because of it.

    Whether a worker waits for orders or for room in its pipe depends on how many jobs it had left. When one waits for
    the other thing, the supervisor goes on and is stopped again.
    """
    supervisor = desk.supervisor()
    while True:
        os.kill(supervisor, signal.SIGSTOP)
        workers = desk.workers()
        until(partial(all_wait_in, workers, {READ, WRITE}), "they wait")
        if all_wait_in(workers, {call}):
            return supervisor, workers
        begun = len(desk.attempts())
        os.kill(supervisor, signal.SIGCONT)
        desk.wait_for_jobs(begun + 1, process)


def all_wait_in(processes: list[int], calls: set[str]) -> bool:
    """Whether each process is blocked in one of these system calls."""
    return all(Path(f"/proc/{pid}/syscall").read_text().split()[0] in calls for pid in processes)


@needs_numbers
@pytest.mark.covers("S9")
def test_what_was_reported_to_a_supervisor_that_read_nothing_is_not_run_again(desk: Desk, tally: Tally) -> None:
    """It is stopped, so that reports stay in their pipes; when the workers have run all they had, it is killed."""
    process = desk.start(*task("short_work", 300, "--name", "b"))
    desk.wait_for_jobs(20, process)
    supervisor, _ = stopped(desk, process, READ)
    unread = len(desk.attempts())
    os.kill(supervisor, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert desk.values() == squares(300)
    assert unread < 300, "nothing was left to do"
    assert sorted(desk.attempts()) == [(index, 1) for index in range(300)]
    tally.saw(f"{unread} jobs begun before, run again: 0")
    tally.count("real SIGKILLs", 1)


@needs_numbers
@pytest.mark.covers("P9", "S3")
def test_workers_that_cannot_get_rid_of_their_results_are_gone_as_soon(desk: Desk, tally: Tally) -> None:
    """The supervisor is stopped, so nobody reads: the workers stand in write(); then it is killed."""
    process = desk.start(*task("large_result_soon", 200, "--name", "b"))
    desk.wait_for_jobs(2, process)
    supervisor, workers = stopped(desk, process, WRITE)
    process.kill()
    process.communicate()
    began = monotonic()
    os.kill(supervisor, signal.SIGKILL)
    for pid in workers:
        await_death(pid, GONE_S)
    tally.saw(f"gone after {(monotonic() - began) * 1000:.0f} ms")
    tally.count("real SIGKILLs", 2)


@pytest.mark.covers("S3")
@pytest.mark.slow
def test_long_jobs_are_gone_within_a_second_each_time(desk: Desk, tally: Tally) -> None:
    latest = 0.0
    for turn in range(20):
        process = desk.start(*task("waits_600", 2, "--name", f"turn{turn}"))
        until(lambda: len(desk.workers()) == 2, "they run", process)
        workers = desk.processes()
        process.kill()
        process.communicate()
        began = monotonic()
        os.kill(desk.supervisor(), signal.SIGKILL)
        for pid in workers:
            await_death(pid, GONE_S)
        latest = max(latest, monotonic() - began)
        tally.count("real SIGKILLs", 2)
    tally.injected(20)
    tally.saw(f"all gone after at most {latest * 1000:.0f} ms")
