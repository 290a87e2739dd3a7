"""A worker is nobody's before its birth was announced: its template may die first, and then nobody sees its end."""

import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from termios import FIONREAD

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.edge.orphans import kill_tagged, tagged
from batchd.worker.template import TAG, mark, tag
from tests.bench import ROOT, WAIT_S, Bench, await_death, is_alive, key_spec, open_descriptors
from tests.commands import until

# The template forks a process that forks the worker: when that has done so, it stops the template before it answers.
STOPS_ITS_TEMPLATE = """
import os, signal
TEMPLATE = os.getpid()
def stop():
    if os.getpid() != TEMPLATE:
        os.kill(TEMPLATE, signal.SIGSTOP)
os.register_at_fork(after_in_parent=stop)
def run(item):
    return item
"""


@pytest.fixture
def unborn(bench: Bench, tmp_path: Path) -> int:
    """The pid of a stopped template, whose worker lives and has spoken, and was not announced."""
    source = tmp_path / "mine.py"
    source.write_text(STOPS_ITS_TEMPLATE)
    assert bench.add_key(key_spec(f"{source}:run")) == ""
    template = bench.pool._templates["k"].process.pid
    bench.pool.perform(c.StartWorker(1, "k"))
    bench.until(lambda: has_spoken(bench), "the worker is ready")
    return template


def has_spoken(bench: Bench) -> bool:
    if any(isinstance(event, ev.WorkerReady) for event in bench.events):
        return True
    unread = array("i", [0])
    ioctl(bench.pool.workers[1].reports_fd, FIONREAD, unread)
    return bool(unread[0])


def test_a_worker_is_ready_when_its_birth_was_announced(bench: Bench, unborn: int) -> None:
    for _ in range(3):
        bench.turn()
    assert bench.events == []
    os.kill(unborn, signal.SIGCONT)
    bench.await_event(ev.WorkerReady)
    assert bench.pool.workers[1].pid > 0


@pytest.mark.covers("W3", "P11")
def test_a_worker_whose_template_died_before_it_was_announced_never_was(bench: Bench, unborn: int) -> None:
    for number in (2, 3):  # They wait for the same template.
        bench.pool.perform(c.StartWorker(number, "k"))
    os.kill(unborn, signal.SIGKILL)
    bench.until(lambda: len(bench.events) == 3, "all three are gone")
    gone = [event for event in bench.events if isinstance(event, ev.WorkerGone)]
    assert [event.worker for event in gone] == [1, 2, 3]
    assert [event.position for event in gone] == [None] * 3
    assert [bool(event.cause) for event in gone] == [True, False, False]
    bench.until(lambda: not list(tagged(tag(bench.journal_id, 1, 1))), "it ends as soon as it looks for work")


@pytest.mark.covers("P29")
def test_a_worker_that_there_is_no_descriptor_to_watch_with_is_killed_at_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.add_key(key_spec()) == ""
    bench.pool.perform(c.StartWorker(1, "k"))
    worker = bench.pool.workers[1]
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        bench.until(lambda: worker.pidfd >= 0, "it is watched")
    assert is_alive(worker.pid)
    bench.close()
    assert not is_alive(worker.pid)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    taken: list[int] = []
    soft, hard = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (len(open_descriptors()) + 50, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@pytest.mark.covers("P29")
def test_however_many_are_to_be_killed_few_descriptors_are_enough() -> None:
    environ = {**os.environ, TAG: tag("someone-elses-one", 1, 1)}
    processes = [subprocess.Popen(["/bin/sleep", "600"], env=environ) for _ in range(40)]
    until(
        lambda: len(list(tagged(environ[TAG]))) == 40, "all are marked"
    )  # The kernel shows what it was given a moment later.
    soft, hard = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (max(int(entry.split()[0]) for entry in open_descriptors()) + 20, hard))
    try:
        assert kill_tagged(environ[TAG], wait_s=WAIT_S) == 40
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
        for process in processes:
            process.kill()
    assert {process.wait() for process in processes} == {-signal.SIGKILL}


MARKED = """
import resource, sys
from pathlib import Path
from batchd.client import connect
from batchd.edge.folder import open_folder
resource.setrlimit(resource.RLIMIT_RTTIME, (int(sys.argv[2]), resource.RLIM_INFINITY))
print(connect(open_folder(Path(sys.argv[1]))).ask("hello")["pid"], flush=True)
input()
"""


@pytest.mark.covers("W7")
def test_a_supervisor_that_a_job_starts_does_not_end_with_its_worker(tmp_path: Path) -> None:
    outer = tag("someone-elses-one", 1, 1)
    command = [sys.executable, "-c", MARKED, str(tmp_path / "journal"), str(mark(outer))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        supervisor = int(job.stdout.readline())
        assert job.pid in tagged(outer)
        assert supervisor not in tagged(outer)
        job.communicate("\n")
    await_death(supervisor)
