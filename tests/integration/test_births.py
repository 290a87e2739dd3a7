"""A worker is nobody's before its birth was announced: its template may die first, and then nobody sees its end."""

import os
import signal
from array import array
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.edge.orphans import tagged
from batchd.worker.template import tag
from tests.bench import Bench, key_spec

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
