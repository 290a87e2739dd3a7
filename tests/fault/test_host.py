"""The machine runs short: of processes, descriptors, memory, CPU; or it was started anew."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from batchd.client import request
from batchd.core.events import Phase
from batchd.edge import orphans
from batchd.edge.folder import open_folder
from batchd.edge.lock import boot_id
from batchd.supervisor import recovery
from batchd.worker.recorder import POSITION, Lane, Recorder, phase_word
from tests.bench import House, await_death, pump_until
from tests.cgroups import Group, cgroup
from tests.commands import Desk, dead, squares, until
from tests.fault import tasks
from tests.fault.ledger import Tally
from tests.fault.tracing import ready_supervisor

pytestmark = pytest.mark.fault
TASKS = Path(tasks.__file__)


def task(name: str, jobs: int, *args: str) -> tuple[str, ...]:
    return ("run", f"{TASKS}:{name}", "--range", f"0:{jobs}", "--out", "out.jsonl", "--name", "b", *args)


@contextmanager
def supervisor_in(desk: Desk, group: Group) -> Iterator[int]:
    """Run the supervisor of `desk`, and all that it starts, in a control group."""
    open_folder(desk.journal)
    enter = f'echo 1000 > /proc/self/oom_score_adj; echo $$ > {group.place}/cgroup.procs && exec "$@"'
    process = ready_supervisor(desk, "/bin/sh", "-c", enter, "sh")
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.covers("H1", "P29")
def test_where_no_more_processes_are_allowed_fewer_workers_do_the_work(desk: Desk, tally: Tally) -> None:
    """16 workers are asked for, the supervisor and all it starts may be 10 threads, and no job is done so soon."""
    jobs = 12
    with cgroup("pids", 10) as group, supervisor_in(desk, group) as pid:
        ran = desk.run(*task("takes_a_second", jobs, "-j", "16"))
        assert ran.returncode == 0, ran.stderr
        assert "died" not in ran.stderr
        assert ran.stderr.count("going on with the workers that could be started") == 1
        until(lambda: dead(pid), "it leaves")
    assert desk.values() == squares(jobs)
    assert {attempt for _, attempt in desk.attempts()} == {1}, "somebody was charged"


@pytest.mark.covers("H1", "P29")
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who has no other process")
def test_a_user_who_may_start_no_more_processes_gets_fewer_workers(desk: Desk) -> None:
    """RLIMIT_NPROC, which root is not held to: the command and all it starts run as somebody else."""
    uid = 60_000 + os.getpid() % 5_000
    rights = "+dac_override,+dac_read_search"  # To read what is installed for the user who runs the tests.
    become = [
        *("/usr/bin/setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
        *(f"--inh-caps={rights}", f"--ambient-caps={rights}", "/usr/bin/prlimit", "--nproc=12"),
    ]
    if not all(Path(name).exists() for name in (become[0], become[-2])):
        pytest.skip("setpriv or prlimit is not installed: nobody else can be become")
    desk.folder.chmod(0o755)
    desk.marks.touch()
    for path in (desk.folder, desk.marks):
        os.chown(path, uid, uid)
    command = [*become, sys.executable, "-m", "batchd", *task("short_work", 200, "-j", "16")]
    ran = subprocess.run(
        command, env=desk.environ, cwd=desk.folder, capture_output=True, text=True, check=False, timeout=90
    )
    assert ran.returncode == 0, ran.stderr
    assert "died" not in ran.stderr
    assert ran.stderr.count("going on with the workers that could be started") == 1
    assert desk.journal.stat().st_uid == uid
    assert desk.values() == squares(200)
    assert {attempt for _, attempt in desk.attempts()} == {1}, "somebody was charged"


@pytest.mark.covers("H1", "P29")
@pytest.mark.parametrize("allowed", [pytest.param(150, marks=pytest.mark.slow), 80])
def test_where_no_more_descriptors_are_allowed_fewer_workers_do_the_work(
    desk: Desk, allowed: int, tally: Tally
) -> None:
    """60 workers are asked for at once, and each takes one more descriptor when it is born.

    Of 80 they cannot have the numbers that they take where there are more.
    """
    jobs = 60
    open_folder(desk.journal)
    process = ready_supervisor(desk, "/bin/sh", "-c", f'ulimit -n {allowed} && exec "$@"', "sh")
    try:
        ran = desk.run(*task("short_work", jobs, "-j", "60"))
        assert ran.returncode == 0, ran.stderr
        assert "died" not in ran.stderr
        assert ran.stderr.count("going on with the workers that could be started") == 1
        until(lambda: dead(process.pid), "it leaves")
    finally:
        process.kill()
        process.wait()
    assert desk.values() == squares(jobs)
    assert {attempt for _, attempt in desk.attempts()} == {1}, "somebody was charged"


GREEDY = """
import sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
held = []
while True:
    held.append(b"x" * (1 << 20))
"""


@pytest.mark.covers("S5", "S1")
def test_a_supervisor_that_the_kernel_kills_for_memory_is_replaced(desk: Desk) -> None:
    """It shares a control group with somebody greedy, and is the kernel's first choice. Its workers do not."""
    with cgroup("memory", 256 << 20) as group, supervisor_in(desk, group) as pid:
        process = desk.start(*task("short_work", 400, "-j", "2"))
        desk.wait_for_jobs(5, process)
        for other in (group.place / "cgroup.procs").read_text().split():
            if int(other) != pid:
                with suppress(OSError):
                    (group.outside / "cgroup.procs").write_text(other)
        for worker in desk.workers():  # Or they might be done before.
            os.kill(worker, signal.SIGSTOP)
        greedy = subprocess.Popen([sys.executable, "-c", GREEDY, str(group.place)])
        try:
            until(lambda: dead(pid), "the kernel kills the supervisor")
        finally:
            greedy.kill()
            greedy.wait()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "the supervisor died" in err
    assert desk.values() == squares(400)


HOG = "while True: pass"


@pytest.mark.covers("H2")
@pytest.mark.parametrize("hogs", [pytest.param(10, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.slow)])
def test_nobody_is_killed_for_being_slow(desk: Desk, hogs: int, tally: Tally) -> None:
    """Supervisor, workers and hogs share one CPU. Jobs of 10 ms have a limit of 60 s, and all come through."""
    pin = ["/usr/bin/taskset", "-c", "0"]
    if not Path(pin[0]).exists():
        pytest.skip("taskset is not installed: processes cannot be put on one CPU")
    others = [subprocess.Popen([*pin, sys.executable, "-c", HOG]) for _ in range(hogs)]
    open_folder(desk.journal)
    supervisor = ready_supervisor(desk, *pin)
    try:
        ran = desk.run(*task("short_work", 60, "-j", "2", "--timeout", "60s"))
    finally:
        for each in others:
            each.kill()
        for each in (*others, supervisor):
            each.wait()
    assert ran.returncode == 0, ran.stderr
    assert "died" not in ran.stderr
    assert desk.values() == squares(60)
    assert {attempt for _, attempt in desk.attempts()} == {1}
    tally.injected(hogs)


@pytest.mark.covers("T3")
@pytest.mark.parametrize("is_this_boot", [True, False])  # The first shows that it would be charged.
def test_a_recorder_of_another_boot_charges_nobody(house: House, *, is_this_boot: bool) -> None:
    """It says that job 0 had begun. After a reboot it cannot be of this supervisor, whatever its numbers say."""
    session = house.start([("work", 600, index) for index in range(3)])
    pump_until(session, lambda: session.progress["size"] == 3, "the jobs are durable")
    supervisor = request(house.folder, "status")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    await_death(supervisor)
    session.close()
    orphans.sweep(house.journal_id)
    house.recorder.unlink()
    stint = house.facts().stint
    boot = boot_id() if is_this_boot else "another boot"
    recorder = Recorder.create(house.recorder, boot_id=boot, journal_id=house.journal_id, epoch=1, slots=2)
    slot = recorder.slot(0)
    slot.write_lane(0, Lane(7, 0, 3, 1, False, "b", reach=3, stint=stint))
    slot.words[POSITION] = phase_word(Phase.RUNNING, 0)
    recorder.close()
    recovery._charge_begun(house.folder, house.recorder, house.journal_id)
    assert (recovery._earlier(house.recorder, house.journal_id) is not None) == is_this_boot
    assert house.facts().attempts_max == int(is_this_boot)
