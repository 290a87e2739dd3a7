"""Disks that are full, read-only or without shared memory: told in words, never a signal, and well again later."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchd.settings import RESERVE_BYTES
from tests.commands import Desk, dead, squares, status_of, summary_of, until
from tests.disks import fill, full_disk, remount
from tests.fault import tasks
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault
SLOW = pytest.mark.slow
TASKS = Path(tasks.__file__)
READING = (["ls"], ["show", "b"], ["results", "b"], ["failures", "b"], ["journal", "check"], ["status"])


@pytest.fixture
def on_disk(small_disk: Path, desk: Desk) -> Desk:
    """A journal on a small disk."""
    desk.journal = small_disk / "journal"
    desk.environ["BATCHD_JOURNAL"] = str(desk.journal)
    return desk


def task(jobs: int = 10) -> tuple[str, ...]:
    return ("run", f"{TASKS}:short_work", "--range", f"0:{jobs}", "--name", "b", "--out", "out.jsonl", "-j", "2")


def check_whole(desk: Desk, jobs: int) -> None:
    assert desk.values() == squares(jobs)
    assert len(set(desk.attempts())) == len(desk.attempts())


def gone(desk: Desk) -> bool:
    return dead(desk.supervisor()) and not desk.workers()


@pytest.mark.covers("D2")
@pytest.mark.parametrize("left", [4096, *(pytest.param(each, marks=SLOW) for each in (0, 8192, 40_000, 400_000))])
def test_a_disk_that_is_full_from_the_start_is_told_and_used_when_there_is_space(on_disk: Desk, left: int) -> None:
    disk = on_disk.journal.parent
    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - left)
    ran = on_disk.run(*task())
    assert ran.returncode == 3
    assert "full" in ran.stderr or "No space left" in ran.stderr
    assert "ree some space" in ran.stderr
    assert "Traceback" not in ran.stderr
    filler.unlink()
    ran = on_disk.run(*task())
    assert ran.returncode == 0, ran.stderr
    check_whole(on_disk, 10)


@pytest.mark.slow
@pytest.mark.covers("D2", "J3")
def test_without_lock_files_a_full_disk_can_be_read_and_nobody_dies_of_it(on_disk: Desk, tally: Tally) -> None:
    """As after a restored backup: whoever opens a batch first makes the file, which then has no room."""
    assert on_disk.run(*task()).returncode == 0
    until(lambda: gone(on_disk), "the supervisor is gone")
    (on_disk.journal / "reserve").unlink()
    filler = fill(on_disk.journal.parent)
    for command in (*READING, ["cancel", "b"], [*task(20)]):
        for file in on_disk.journal.glob("batches/*/lock.mdb"):
            file.unlink()
        ran = on_disk.run(*command)
        assert ran.returncode >= 0, f"{command} ended with signal {-ran.returncode}"
        assert "Traceback" not in ran.stderr
        if command in READING:
            assert ran.returncode == 0, ran.stderr
        else:
            assert ran.returncode in {2, 3}, ran.stderr
    tally.injected(len(READING) + 2)
    filler.unlink()
    ran = on_disk.run(*task(20))
    assert ran.returncode == 0, ran.stderr
    check_whole(on_disk, 20)


@pytest.mark.covers("D1", "D2")
@pytest.mark.slow
def test_a_batch_that_was_cut_off_is_readable_on_a_full_disk_and_goes_on_later(on_disk: Desk) -> None:
    """The machine died while it ran; what is left of it in shared memory is lost as well."""
    process = on_disk.start(*task(300))
    on_disk.wait_for_jobs(20, process)
    process.kill()
    process.communicate()
    os.kill(on_disk.supervisor(), signal.SIGKILL)
    until(lambda: gone(on_disk), "all are dead")
    on_disk.recorder().unlink()
    (on_disk.journal / "reserve").unlink()
    filler = fill(on_disk.journal.parent)
    for command in READING:
        assert on_disk.run(*command).returncode == 0
    ran = on_disk.run(*task(300))
    assert ran.returncode == 3
    assert "full" in ran.stderr or "No space left" in ran.stderr
    filler.unlink()
    assert on_disk.run(*task(300)).returncode == 0
    check_whole(on_disk, 300)


@pytest.mark.covers("D1", "J8")
def test_large_results_wait_for_space_as_small_ones_do(on_disk: Desk) -> None:
    """A file that does not fit is taken back, and its value goes where the wait for space is told."""
    command = ("run", f"{TASKS}:large_text", "--range", "0:12", "--name", "b", "--out", "out.jsonl", "-j", "2")
    process = on_disk.start(*command)
    until(lambda: "full" in status_of(on_disk).get("trouble", ""), "it is told")
    remount(on_disk.journal.parent, "size=300m")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert on_disk.values() == [tasks.large_text(index) for index in range(12)]
    files = list(on_disk.journal.glob("batches/*/values/*"))
    assert 0 < len(files) < 12
    assert all(file.stat().st_size > 8 << 20 for file in files)
    assert on_disk.run("journal", "check").returncode == 0


@pytest.mark.covers("D1")
@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 4096, 16_384])
def test_a_batch_that_is_taken_up_again_when_there_is_room_for_little_else(on_disk: Desk, left: int) -> None:
    """The supervisor can start, and not write: no supervisor after the other dies of it."""
    process = on_disk.start(*task(300))
    on_disk.wait_for_jobs(20, process)
    process.kill()
    process.communicate()
    os.kill(on_disk.supervisor(), signal.SIGKILL)
    until(lambda: gone(on_disk), "all are dead")
    on_disk.recorder().unlink()
    filler = fill(on_disk.journal.parent)
    os.truncate(filler, filler.stat().st_size - 4096 - left)
    process = on_disk.start(*task(300))
    until(lambda: process.poll() is not None or status_of(on_disk).get("trouble"), "it is told")
    filler.unlink()
    _, err = process.communicate(timeout=60)
    assert "died" not in err, log_of(on_disk)
    assert "Traceback" not in log_of(on_disk)
    assert on_disk.run(*task(300)).returncode == 0
    check_whole(on_disk, 300)


@pytest.mark.covers("D1", "D2")
def test_on_a_full_disk_a_batch_whose_supervisor_died_can_be_cancelled(on_disk: Desk) -> None:
    """The next one has a little to write before it can hear of that."""
    process = on_disk.start(*task(300))
    on_disk.wait_for_jobs(20, process)
    process.kill()
    process.communicate()
    os.kill(on_disk.supervisor(), signal.SIGKILL)
    until(lambda: gone(on_disk), "all are dead")
    fill(on_disk.journal.parent)
    ran = on_disk.run("cancel", "b")
    assert ran.returncode == 0, ran.stderr
    assert summary_of(on_disk.run("show", "b", "--json").stdout)["state"] == "cancelled"
    reserve = on_disk.journal / "reserve"
    assert 0 < reserve.stat().st_size < RESERVE_BYTES, "the rest is for who cancels or leaves next"
    until(lambda: gone(on_disk), "the supervisor is gone")
    remount(on_disk.journal.parent, "size=300m")
    assert on_disk.run("run", f"{TASKS}:short_work", "--range", "0:3", "--name", "other").returncode == 0
    assert reserve.stat().st_size == RESERVE_BYTES


def log_of(desk: Desk) -> str:
    return (desk.journal / "supervisor.log").read_text("utf-8", "replace")


@pytest.mark.covers("D6")
def test_a_read_only_disk_can_be_read_and_is_refused_in_words_to_who_would_write(on_disk: Desk) -> None:
    assert on_disk.run(*task()).returncode == 0
    until(lambda: gone(on_disk), "the supervisor is gone")
    remount(on_disk.journal.parent, "ro")
    for command in READING:
        ran = on_disk.run(*command)
        assert ran.returncode == 0, (command, ran.stderr)
    ran = on_disk.run(*task(20))
    assert ran.returncode == 3, ran.stderr
    assert "Read-only file system" in ran.stderr
    assert "Traceback" not in ran.stderr
    remount(on_disk.journal.parent, "rw")
    assert on_disk.run(*task(20)).returncode == 0
    check_whole(on_disk, 20)


SHM = """
import sys
from pathlib import Path
from tests.commands import Desk, dead, until
from tests.disks import fill, mounted
desk = Desk(Path(sys.argv[1]))
with mounted(Path("/dev/shm"), "size=4m") as refusal:  # Seen by this process and its children alone.
    assert not refusal
    filler = fill(Path("/dev/shm"))
    import os
    os.truncate(filler, filler.stat().st_size - int(sys.argv[2]))
    ran = desk.run("run", sys.argv[3], "--range", "0:10")
    print(ran.returncode, ran.stderr)
    filler.unlink()
    print(desk.run("run", sys.argv[3], "--range", "0:10").returncode)
    until(lambda: dead(desk.supervisor()), "it is gone")
"""


@pytest.mark.covers("D2")
@pytest.mark.parametrize("left", [4096, *(pytest.param(each, marks=SLOW) for each in (0, 1 << 20))])
def test_full_shared_memory_is_named_and_no_signal(tmp_path: Path, left: int) -> None:
    """The flight recorder lies there; containers often have little of it."""
    command = ["/usr/bin/unshare", "--mount", sys.executable, "-c", SHM, str(tmp_path), str(left)]
    ran = subprocess.run([*command, f"{TASKS}:short_work"], capture_output=True, text=True, check=False)
    if "unshare failed" in ran.stderr or not Path(command[0]).exists():
        pytest.skip(f"no /dev/shm of one's own can be had here: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr
    first, *_, last = ran.stdout.splitlines()
    assert first.startswith("3 batchd: the disk under /dev/shm is full: free some space there")
    assert last == "0"


@pytest.mark.covers("D1", "X8")
def test_on_a_full_disk_prune_makes_room(on_disk: Desk) -> None:
    assert on_disk.run(*task()).returncode == 0
    until(lambda: gone(on_disk), "the supervisor is gone")
    fill(on_disk.journal.parent)
    ran = on_disk.run("prune", "b", "--yes")
    assert ran.returncode == 0, ran.stderr
    assert list((on_disk.journal / "batches").iterdir()) == []


# --- Giving up -------------------------------------------------------------------------------------------------

SPACE_S = 20.0
"""Whoever gives up on a full disk is let go within seconds; so long on a machine that has much else to do."""
JOBS = {"short_work": 600, "wide_text": 30}
WORK = [
    pytest.param("short_work", True, id="small", marks=SLOW),
    pytest.param("wide_text", False, id="large"),
    pytest.param("wide_text", True, id="large and nothing left", marks=SLOW),
]


class Stuck:
    """A batch that waits for space, and another that is finished."""

    def __init__(self, desk: Desk, work: str, *, is_filled: bool, others: int = 1) -> None:
        self.desk, self.jobs = desk, JOBS[work]
        self.command = ("run", f"{TASKS}:{work}", "--range", f"0:{self.jobs}", "--name", "b", "-j", "2")
        other = desk.run("run", f"{TASKS}:large_text", "--range", f"0:{others}", "--name", "other")
        assert other.returncode == 0, other.stderr
        self.process = desk.start(*self.command)
        desk.wait_for_jobs(3, self.process)
        self.filler = fill(desk.journal.parent) if is_filled else None
        until(lambda: status_of(desk).get("trouble"), "it is told", self.process)
        assert full_disk(desk.journal).fullmatch(status_of(desk)["trouble"])
        self.done = self.shown()["done"]

    def shown(self) -> dict[str, Any]:
        """Return how the batch stands, as the journal has it."""
        return summary_of(self.desk.run("show", "b", "--json").stdout)

    def ended(self) -> str:
        """Wait until command and supervisor are gone; return what the command told."""
        _, err = self.process.communicate(timeout=SPACE_S)
        until(lambda: gone(self.desk), "the supervisor is gone")
        assert self.shown()["done"] >= self.done, "something durable is lost"
        return err

    def make_space(self) -> None:
        """Let everything fit."""
        if self.filler is not None:
            self.filler.unlink()
        remount(self.desk.journal.parent, "size=300m")

    def check(self) -> None:
        """It is whole now, and no attempt was given twice."""
        assert self.shown()["succeeded"] == self.jobs
        assert len(set(self.desk.attempts())) == len(self.desk.attempts())
        assert self.desk.run("journal", "check").returncode == 0


@pytest.mark.covers("D1")
@pytest.mark.parametrize(("work", "is_filled"), WORK)
def test_on_a_full_disk_a_running_batch_can_be_cancelled(on_disk: Desk, work: str, *, is_filled: bool) -> None:
    stuck = Stuck(on_disk, work, is_filled=is_filled)
    ran = on_disk.run("cancel", "b")
    assert ran.returncode == 0, ran.stderr
    assert full_disk(on_disk.journal).search(ran.stderr)
    err = stuck.ended()
    assert stuck.process.returncode == 1, err
    found = stuck.shown()
    assert (found["shown_state"], found["done"]) == ("cancelled", stuck.jobs)
    stuck.make_space()
    assert on_disk.run("retry", "b", "--cancelled").returncode == 0
    stuck.check()


@pytest.mark.slow
@pytest.mark.covers("D1")
@pytest.mark.parametrize("code", [4, 130])
@pytest.mark.parametrize(("work", "is_filled"), WORK)
def test_on_a_full_disk_a_run_can_be_stopped(on_disk: Desk, work: str, code: int, *, is_filled: bool) -> None:
    """With one Ctrl-C, and with the second one."""
    stuck = Stuck(on_disk, work, is_filled=is_filled)
    stuck.process.send_signal(signal.SIGINT)
    if code == 130:
        assert stuck.process.stderr is not None
        while "stopping" not in stuck.process.stderr.readline():
            pass
        stuck.process.send_signal(signal.SIGINT)
    err = stuck.ended()
    assert stuck.process.returncode == code, err
    stuck.make_space()
    assert on_disk.run(*stuck.command).returncode == 0
    stuck.check()


@pytest.mark.slow
@pytest.mark.covers("D1")
@pytest.mark.parametrize(("work", "is_filled"), WORK)
def test_on_a_full_disk_the_supervisor_can_be_told_to_leave(on_disk: Desk, work: str, *, is_filled: bool) -> None:
    stuck = Stuck(on_disk, work, is_filled=is_filled)
    os.kill(on_disk.supervisor(), signal.SIGTERM)
    err = stuck.ended()
    assert stuck.process.returncode == 4, err
    stuck.make_space()
    assert on_disk.run(*stuck.command).returncode == 0
    stuck.check()


@pytest.mark.slow
@pytest.mark.covers("D1")
def test_on_a_full_disk_retry_tells_what_it_waits_for(on_disk: Desk) -> None:
    """Also with --json, whose answer comes at the end."""
    for name in ("one", "two"):
        failed = on_disk.run("run", f"{TASKS}:writes_garbage", "--range", "0:5", "--name", name)
        assert failed.returncode == 1, failed.stderr
    stuck = Stuck(on_disk, "wide_text", is_filled=False)
    retries = [on_disk.start("retry", *more, "--failed") for more in (["one"], ["two", "--json"])]
    for retry in retries:
        assert retry.stderr is not None
        assert full_disk(on_disk.journal).search(retry.stderr.readline())
    stuck.make_space()
    for process in (*retries, stuck.process):
        _, err = process.communicate(timeout=60)
        assert process.returncode in {0, 1}, err
        assert "Traceback" not in err
    stuck.check()


@pytest.mark.slow
@pytest.mark.covers("D1")
def test_on_a_full_disk_nobody_stays_behind_a_client_that_was_killed(on_disk: Desk) -> None:
    stuck = Stuck(on_disk, "wide_text", is_filled=False)
    stuck.process.kill()
    stuck.ended()
    stuck.make_space()
    assert on_disk.run(*stuck.command).returncode == 0
    stuck.check()


@pytest.mark.slow
@pytest.mark.covers("D1", "X8")
@pytest.mark.parametrize(("work", "is_filled"), WORK)
def test_on_a_full_disk_another_batch_can_be_pruned(on_disk: Desk, work: str, *, is_filled: bool) -> None:
    """And if that makes enough room, what waits goes on by itself."""
    stuck = Stuck(on_disk, work, is_filled=is_filled, others=2)
    ran = on_disk.run("prune", "other", "--yes")
    assert ran.returncode == 0, ran.stderr
    if work != "short_work":
        until(lambda: is_filled or stuck.shown()["done"] > stuck.done, "it goes on with the room there is")
        stuck.make_space()
    _, err = stuck.process.communicate(timeout=60)
    assert stuck.process.returncode == 0, err
    assert "died" not in err
    stuck.check()
