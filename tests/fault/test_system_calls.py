"""Each system call of a supervisor that runs a small batch: killed there, failing there, or slow there."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.settings import DISK_RESERVE_BYTES, UNSAVED_BYTES_MAX
from tests.bench import await_death
from tests.commands import Desk, dead, pause, private_bytes, squares, status_of, summary_of, until
from tests.disks import fill, full_disk
from tests.fault import tasks
from tests.fault.ledger import Tally
from tests.fault.tasks import LARGE_REPORT_BYTES
from tests.fault.tracing import STRACE, Traced, needs_strace, ready_supervisor, traced_later, traced_supervisor

pytestmark = [pytest.mark.fault, needs_strace]
TASKS = Path(tasks.__file__)
JOBS = 3
JOURNAL = ["fdatasync", "fsync", "pwrite64", "writev", "ftruncate", "rename"]
SOCKETS_AND_PIPES = ["write", "sendto", "sendmsg", "recvfrom", "read", "accept4", "unlink"]
FILES_AND_PROCESSES = ["mkdir", "openat", "fallocate", "pipe2", "socketpair", "clone3", "vfork"]
AT_ITS_START = [
    *(*JOURNAL, "write", "unlink", "renameat", "fallocate", "flock"),
    *("pipe2", "bind", "listen", "clone3"),
]
"""It reads modules then; what it says to clients and hears of them comes later."""
OF_A_BATCH_THAT_IS_THERE = ["fdatasync", "pwrite64", "writev", "write", "sendto", "read"]
"""strace counts the calls of each thread by itself: those of the one that makes a batch would hide the loop's."""
SWEEP = 16
"""It looks for what a worker left in the environments and limits of all processes there are, which is to open and to
read a few hundred files in a row, and nothing changes between them: where so many are of that kind it is killed at
the last alone."""
LOOKED_AT = re.compile(r"/proc/\d+/(environ|limits)")
SLOW = [
    pytest.param(call, from_the_start, is_made, marks=pytest.mark.slow)
    for calls, from_the_start, is_made in (
        (JOURNAL + SOCKETS_AND_PIPES + FILES_AND_PROCESSES, False, False),
        (OF_A_BATCH_THAT_IS_THERE, False, True),
        (AT_ITS_START, True, False),
    )
    for call in calls
]


def run(desk: Desk, name: str, *args: str, jobs: int = JOBS) -> str:
    """Run the small batch, which must end well, and return what the command told."""
    ran = desk.run(
        *("run", f"{TASKS}:short_work", "--range", f"0:{jobs}", "--name", name, "--out", f"{name}.jsonl"),
        *("-j", "1", "--max-crashes", "1000", *args),
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def batch_id(desk: Desk, name: str) -> str:
    return str(summary_of(desk.run("show", name, "--json").stdout)["batch"])


def check(desk: Desk, name: str, tally: Tally, jobs: int = JOBS) -> None:
    """Every job has the one right outcome, and no attempt number was given twice."""
    assert desk.values(f"{name}.jsonl") == squares(jobs)
    journal = BatchJournal(
        desk.journal / "batches" / batch_id(desk, name)
    )  # Folds every record: a double one is refused.
    try:
        spans = Outcomes(journal).spans(journal.facts.done, journal.facts.generation)
        recorded = Counter(index for span in spans for index in range(span.start, span.stop))
    finally:
        journal.close()
    tally.checked(jobs, lost=jobs - len(recorded), doubled=recorded.total() - len(recorded))
    assert recorded == Counter(range(jobs))
    attempts = desk.attempts()
    assert len(set(attempts)) == len(attempts)
    desk.marks.unlink()


@pytest.mark.covers("S1", "P2")
@pytest.mark.parametrize(("call", "from_the_start", "is_made"), SLOW)
def test_it_is_killed_at_every_call(
    desk: Desk, call: str, tally: Tally, *, from_the_start: bool, is_made: bool
) -> None:
    """The n-th call of each of its threads, for every n until it ends by itself; see `SWEEP` for what is left out."""
    kills = 0

    def kill_at(nth: int) -> list[str]:
        """Return what the thread had called that was killed, [] if none came so far."""
        name = f"{call}-{nth}"
        if is_made:
            run(desk, name, jobs=0)
        with traced_supervisor(desk, f"{call}:signal=KILL:when={nth}", from_the_start=from_the_start) as traced:
            run(desk, name)
            is_over = traced.end() == 0
            calls = [] if is_over else traced.calls(nth)
        check(desk, name, tally)
        nonlocal kills
        kills += not is_over
        assert is_over or len(calls) == nth
        return calls

    tried = survived = 0
    while survived < 2:
        block = range(tried + 1, tried + 1 + (SWEEP if call in {"read", "openat"} else 1))
        last = kill_at(block[-1])
        is_sweep = bool(last) and all(LOOKED_AT.search(made) for made in last[-len(block) :])
        for nth in block[-1:] if is_sweep else block:
            survived = 0 if (last if nth == block[-1] else kill_at(nth)) else survived + 1
            if survived == 2:
                break
        tried = block[-1]
    tally.injected(kills)
    tally.count("crash points enumerated", kills)
    tally.count("real SIGKILLs", kills)
    assert kills, "no thread of it ever makes that call"


@pytest.mark.covers("S1")
@pytest.mark.slow
def test_it_is_killed_when_it_opens_what_it_makes_at_its_start(desk: Desk, tally: Tally) -> None:
    """By the names of the files: it opens hundreds of modules before."""
    open_folder(desk.journal)
    for path in (desk.journal / "supervisor.lock", desk.recorder(), desk.journal / "reserve"):
        (desk.journal / "reserve").unlink(missing_ok=True)
        with traced_supervisor(desk, "openat:signal=KILL:when=1", from_the_start=True, only=path) as traced:
            assert traced.end() == -signal.SIGKILL, path
        run(desk, path.name)
        check(desk, path.name, tally)
        tally.count("crash points enumerated", 1)
        tally.count("real SIGKILLs", 1)
    tally.injected(3)


@pytest.mark.covers("S1")
@pytest.mark.parametrize(("call", "nth"), [("fdatasync", 3), ("pwrite64", 4), ("recvfrom", 5), ("write", 2)])
def test_it_is_killed_at_a_call_of_each_kind(desk: Desk, call: str, nth: int, tally: Tally) -> None:
    with traced_supervisor(desk, f"{call}:signal=KILL:when={nth}") as traced:
        run(desk, "b")
        assert traced.end() == -signal.SIGKILL
    check(desk, "b", tally)
    tally.count("crash points enumerated", 1)
    tally.count("real SIGKILLs", 1)


@pytest.mark.covers("C1")
@pytest.mark.slow
@pytest.mark.parametrize("call", ["sendto", "recvfrom"])
def test_a_client_is_killed_at_every_call_and_run_again(desk: Desk, call: str, tally: Tally) -> None:
    nth = kills = 0
    code = -signal.SIGKILL
    while code:
        nth += 1
        name = f"{call}-{nth}"
        command = ["run", f"{TASKS}:short_work", "--range", f"0:{JOBS}", "--name", name, "--out", f"{name}.jsonl"]
        injected = [STRACE, "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={nth}"]
        code = subprocess.run(
            [*injected, sys.executable, "-m", "batchd", *command, "-j", "1"],
            env=desk.environ,
            cwd=desk.folder,
            capture_output=True,
            check=False,
        ).returncode
        assert code in {0, -signal.SIGKILL}
        kills += code != 0
        run(desk, name)
        check(desk, name, tally)
    tally.injected(kills)
    tally.count("crash points enumerated", kills)
    tally.count("real SIGKILLs", kills)
    assert kills > 2


# --- Errors ----------------------------------------------------------------------------------------------------


def run_until_well(desk: Desk, name: str) -> str:
    """Run the small batch; where it was refused in words, run it again, as its user would."""
    args = ["--range", f"0:{JOBS}", "--name", name, "--out", f"{name}.jsonl", "-j", "1"]
    ran = desk.run("run", f"{TASKS}:short_work", *args)
    told = ran.stderr
    assert "Traceback" not in told
    if ran.returncode:
        assert ran.returncode == 3, told
        assert "Input/output error" in told or "Read-only file system" in told, told
        until(lambda: dead(desk.supervisor()), "the supervisor that cannot write is gone")
        assert desk.run("run", f"{TASKS}:short_work", *args).returncode == 0
    return told


@pytest.mark.covers("D3", "D6")
@pytest.mark.parametrize(
    ("call", "error", "is_made"),
    [
        pytest.param(call, error, is_made, marks=pytest.mark.slow)
        for calls, is_made in (
            (["fdatasync", "pwrite64", "writev", "fsync", "ftruncate"], False),
            (["fdatasync", "pwrite64", "writev"], True),  # A file that is there has its size and its name already.
        )
        for call in calls
        for error in ("EIO", "EROFS")
    ],
)
def test_each_write_fails_once(desk: Desk, call: str, error: str, tally: Tally, *, is_made: bool) -> None:
    """Whatever fails, nothing is told to be recorded that is not; in the end all is there, once."""
    nth = failed = 0
    while True:
        nth += 1
        name = f"{call}-{nth}"
        if is_made:
            run(desk, name, jobs=0)
        with traced_supervisor(desk, f"{call}:error={error}:when={nth}") as traced:
            run_until_well(desk, name)
            traced.end()
            has_failed = traced.injected()
        check(desk, name, tally)
        if not has_failed:
            break
        failed += 1
    tally.injected(failed, "D3" if error == "EIO" else "D6")
    assert failed, "that call is never made"


@pytest.mark.covers("D3")
@pytest.mark.parametrize("first", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_keeps_failing_is_told_and_not_tried_for_ever(desk: Desk, first: int, tally: Tally) -> None:
    """The batch cannot be made, or what was recorded is unknown: told in words, and the same command goes on."""
    with traced_supervisor(desk, f"fdatasync:error=EIO:when={first}+") as traced:
        told = run_until_well(desk, "b")
        traced.end()
        assert traced.injected()
    assert "Input/output error" in told or "the supervisor died" in told
    check(desk, "b", tally)


@pytest.mark.covers("D1", "D3")
@pytest.mark.slow
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_a_write_error_in_one_batch_stops_no_other(desk: Desk, call: str, tally: Tally) -> None:
    """Two batches share a supervisor, and every write to the file of one of them fails from some moment on."""
    for name in ("ill", "well"):
        run(desk, name)
        check(desk, name, tally)
    data = desk.journal / "batches" / batch_id(desk, "ill") / "data.mdb"
    with traced_supervisor(desk, f"{call}:error=EIO:when=6+", only=data) as traced:
        ill, well = (
            desk.start(
                *("run", f"{TASKS}:short_work", "--range", "0:100", "--name", name, "--out", f"{name}.jsonl"),
                *("-j", "1", "--max-crashes", "1000"),
            )
            for name in ("ill", "well")
        )
        _, err = well.communicate(timeout=60)
        assert well.returncode == 0, err
        ill.communicate(timeout=60)
        traced.end()
        assert traced.injected()
    if ill.returncode:
        run(desk, "ill", jobs=100)
    for name in ("ill", "well"):
        assert desk.values(f"{name}.jsonl") == squares(100)


@contextmanager
def failing_in_the_middle(desk: Desk) -> Iterator[tuple["subprocess.Popen[str]", Traced, Callable[[], None]]]:
    """A batch some of whose jobs are recorded, and from now on each write to its file is an EIO; the rest may go."""
    go = desk.folder / "go"
    desk.environ["GO"] = str(go)
    open_folder(desk.journal)
    supervisor = ready_supervisor(desk)
    try:
        command = ["--range", f"0:{JOBS * 10}", "--name", "b", "--out", "b.jsonl", "-j", "2"]
        process = desk.start("run", f"{TASKS}:short_work_in_time", *command)
        until(lambda: [True for each in status_of(desk)["batches"].values() if each["done"] == tasks.BAD], "some ran")
        data = desk.journal / "batches" / batch_id(desk, "b") / "data.mdb"
        failing = [f"{call}:error=EIO:when=1+" for call in ("pwrite64", "writev")]
        with traced_later(desk, supervisor, *failing, only=data) as traced:
            yield process, traced, go.touch
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.covers("D8")
def test_a_write_error_on_a_disk_that_is_nearly_full_pauses_the_batch(
    desk: Desk, small_disk: Path, tally: Tally
) -> None:
    """LMDB makes an EIO of a write that was cut short; whoever pauses goes on when there is space."""
    desk.journal = small_disk / "journal"
    desk.environ["BATCHD_JOURNAL"] = str(desk.journal)
    with failing_in_the_middle(desk) as (process, traced, go):
        supervisor = desk.supervisor()
        filler = fill(small_disk)
        os.truncate(filler, filler.stat().st_size - DISK_RESERVE_BYTES // 2)
        go()
        until(lambda: "full" in status_of(desk)["trouble"], "it is told", process)
        assert traced.injected()
        fill(small_disk)
        traced.let_go()
        filler.unlink()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert full_disk(desk.journal).search(err)
        assert desk.supervisor() in {supervisor, 0}
    assert "died" not in err
    check(desk, "b", tally, JOBS * 10)


@pytest.mark.covers("D8", "D3")
def test_a_write_error_on_a_disk_with_space_is_one(desk: Desk, tally: Tally) -> None:
    with failing_in_the_middle(desk) as (process, traced, go):
        go()
        _, err = process.communicate(timeout=60)
        assert traced.injected()
    assert "full" not in err
    assert process.returncode == 0, err
    assert "the supervisor died" in err
    check(desk, "b", tally, JOBS * 10)


# --- Slowness --------------------------------------------------------------------------------------------------


@pytest.mark.covers("D5")
@pytest.mark.slow
def test_a_slow_disk_delays_answers_and_neither_status_nor_signals_nor_time_limits(desk: Desk, tally: Tally) -> None:
    """Each flush takes 5 s: jobs are ended by their limit of 1 s, while another batch is made and a SIGTERM comes."""
    slow = [f"{call}:delay_enter=5000000" for call in ("fdatasync", "fsync")]
    with traced_supervisor(desk, *slow) as traced:
        process = desk.start(
            *("run", f"{TASKS}:waits_600", "--range", "0:2", "-j", "2", "--timeout", "1s", "--out", "out.jsonl")
        )
        until(lambda: desk.marks.exists() and len(desk.marks.read_text().split()) == 2, "both jobs run", process)
        began, pids = monotonic(), [int(word) for word in desk.marks.read_text().split()]
        other = desk.start("run", f"{TASKS}:short_work", "--range", "0:1", "--name", "other")
        for pid in pids:
            await_death(pid, 4.0)  # The limit, and nothing of the 5 s that an answer takes.
        tally.saw(f"ended {monotonic() - began:.2f} s after they began")
        until(lambda: drafts(desk), "another batch is being made", other)
        asked = monotonic()
        assert summary_of(desk.run("status", "--json").stdout)["batchd"] == 1
        tally.saw(f"status answered in {monotonic() - asked:.2f} s")
        assert drafts(desk), "the answer came when the batch was made"
        assert process.poll() is None, "the first batch is over: no commit is under way"
        os.kill(desk.supervisor(), signal.SIGTERM)
        refused = desk.run("run", f"{TASKS}:short_work", "--range", "0:1", "--name", "after")
        assert "the supervisor was asked to stop" in refused.stderr
        assert process.poll() is None, "nothing shows that the signal was heard while the disk was slow"
        assert process.wait(90) in {1, 4}
        assert other.wait(90) in {0, 3}  # Refused, or served by the next supervisor.
        assert traced.injected()
    for each in (process, other):
        each.communicate()
    assert desk.run("run", f"{TASKS}:waits_600", "--range", "0:2", "--timeout", "1s", "--out", "out.jsonl").returncode
    messages = [line["error"]["message"] for line in desk.results()]
    assert len(messages) == 2
    assert all(re.fullmatch(r"timed out after \d+\.\d s", message) for message in messages), messages


def drafts(desk: Desk) -> list[Path]:
    """Return batches that are being made."""
    return list((desk.journal / "batches").glob(".new-*"))


@pytest.mark.covers("W15")
@pytest.mark.slow
def test_a_flood_of_large_results_onto_a_slow_disk_makes_workers_wait(desk: Desk, tally: Tally) -> None:
    """Each flush takes two seconds. What gathers meanwhile is bounded, however much more there will be."""
    jobs, workers = 200, 2
    desk.run("run", f"{TASKS}:short_work", "--range", "0:1", "--name", "before")
    desk.marks.unlink()
    with traced_supervisor(desk, "fdatasync:delay_enter=2000000") as traced:
        process = desk.start(
            *("run", f"{TASKS}:large_result_soon", "--range", f"0:{jobs}", "-j", f"{workers}", "--name", "flood")
        )
        ahead_most = memory_most = 0
        while process.poll() is None:
            begun = len(desk.attempts())
            for flood in status_of(desk).get("batches", {}).values():  # None at first, and when all is over.
                ahead_most = max(ahead_most, begun - flood["done"])
            memory_most = max(memory_most, private_bytes(desk.supervisor()))
            pause(0.01)
        _, err = process.communicate()
        assert traced.injected()
    assert process.returncode == 0, err
    assert f"{jobs} succeeded" in err
    tally.saw(f"at most {ahead_most} of {jobs} results not recorded, {memory_most >> 20} MiB in the supervisor")
    filled = UNSAVED_BYTES_MAX // LARGE_REPORT_BYTES
    assert ahead_most > filled, "the disk was never behind"
    # Of each worker: one read, one in the pipe, one half in it, one that runs.
    assert ahead_most < 3 * filled + 4 * workers, "more than what is written, and what gathers behind it"
    assert memory_most < 10 * UNSAVED_BYTES_MAX
