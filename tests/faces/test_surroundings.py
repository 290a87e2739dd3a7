"""What a program does beside its jobs: many open files, forks, garbage collection, other programs on its queue."""

import gc
import os
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

import batchd
from batchd.client.connection import Connection
from batchd.errors import UsageError
from tests.commands import Desk, until
from tests.contract.calls import WAIT_S, Door, square
from tests.faces.programs import Programs


def test_more_files_may_be_open_than_select_can_watch(programs: Programs) -> None:
    program = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
print(list(batchd.map(abs, [-1, 2], workers=1)))
with batchd.Executor(1) as executor:
    print(executor.submit(pow, 2, 3).result())
with batchd.Client(workers=1) as client:
    print(client.submit(pow, 2, 4).result())
"""
    assert programs.told(program).splitlines() == ["[1, 2]", "8", "16"]


def test_an_executor_may_be_collected_wherever_its_thread_allocates() -> None:
    executor = batchd.Executor(1)
    assert executor.submit(square, 3).result(WAIT_S) == 9
    engine = executor._engine
    circle: list[object] = [executor]
    circle.append(circle)
    del executor, circle

    def collect() -> None:
        with engine._lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    engine.join()


_FORKED = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer warn of any fork beside threads.

def in_child(call):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(30)
    try:
        call()
    except RuntimeError as error:
        os._exit(3 if "was forked" in str(error) else 4)
    except BaseException:
        os._exit(5)
    os._exit(0)
"""


@pytest.mark.covers("C5")
def test_a_fork_is_told_that_the_executor_is_not_its_own(programs: Programs) -> None:
    program = """
with batchd.Executor(1) as executor:
    future = executor.submit(nap, 0.01, 7)
    with executor._engine._lock:  # Held by another thread, as it seems to the child.
        print(in_child(executor.flush), in_child(executor.kill_workers), in_child(executor.shutdown))
        print(in_child(future.running))
    print(future.result())
"""
    assert programs.told(_FORKED + program).split() == ["3", "3", "0", "0", "7"]


def test_a_fork_during_the_start_of_a_throw_away_journal_makes_its_own(programs: Programs) -> None:
    program = """
from batchd.client import throwaway
list(batchd.map(abs, [1], workers=1))
with throwaway._lock:
    print(in_child(lambda: list(batchd.map(abs, [-1], workers=1))))
"""
    assert programs.told(_FORKED + program).split() == ["0"]


def test_hanging_up_is_noticed_though_a_fork_holds_the_line() -> None:
    ours, theirs = socket.socketpair()
    copy = os.dup(ours.fileno())  # What a forked child has.
    with closing(theirs):
        Connection(ours).close()
        assert theirs.recv(1) == b""
    os.close(copy)


def test_a_fork_that_hangs_up_leaves_its_parents_line_alone() -> None:
    ours, theirs = socket.socketpair()
    with closing(theirs), closing(ours):
        copy = Connection(socket.socket(fileno=os.dup(ours.fileno())))
        copy._pid = -1
        copy.close()
        ours.sendall(b".")
        assert theirs.recv(1) == b"."


def test_a_queue_is_not_run_by_the_rules_of_others(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=1) as client:
        running = client.submit(door.enter, 3)
        with batchd.Client(desk.journal, workers=2) as alike:
            waiting = alike.submit(square, 4)
            with (
                batchd.Client(desk.journal, workers=1, retries=5, timeout=7.5) as other,
                pytest.raises(UsageError, match=r"is open with retries=0, .*asks for retries=5, .*timeout=7\.5"),
            ):
                other.submit(square, 5)
            with batchd.Client(desk.journal, workers=1, retries=5) as another:
                opening = another._queue._attachment
                until(lambda: opening is not None and opening.is_over, "it was refused before anything was submitted")
                with pytest.raises(UsageError, match="asks for retries=5"):
                    another.submit(square, 5)
            door.open()
            assert (running.result(WAIT_S), waiting.result(WAIT_S)) == (3, 16)


@pytest.mark.fault
def test_a_throw_away_supervisor_that_was_told_to_leave_is_named(programs: Programs) -> None:
    program = """
from batchd.client.throwaway import throwaway_folder
from batchd.edge.lock import holder_of

with batchd.Executor(1) as executor:
    futures = [executor.submit(nap, 0.01, x) for x in range(500)]
    futures[0].result()
    os.kill(int(holder_of(throwaway_folder())["pid"]), signal.SIGTERM)
    try:
        print(sum(future.result() for future in futures))
    except BaseException as error:
        print(type(error).__name__, error)
"""
    told = programs.told(program)
    assert told.startswith("BrokenProcessPool the journal ")
    assert "told to leave (SIGTERM)" in told


def test_a_thread_that_opens_at_once_knows_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor may be there, and the thread be done opening before `start` returns."""
    start = threading.Thread.start

    def start_and_let_it_run(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("batchd-"):
            until(lambda: executor._engine._journal is not None or not thread.is_alive(), "it has opened")

    monkeypatch.setattr(threading.Thread, "start", start_and_let_it_run)
    with batchd.Executor(1) as executor:
        assert executor.submit(square, 3).result(WAIT_S) == 9
