"""Forks of a process that reads batches: who forks and who reads wait for each other; no child harms its parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest

from batchd.edge.environment import readers
from batchd.edge.journal import BatchJournal
from batchd.errors import JournalError
from batchd.formats import tables
from batchd.worker.gate import gate
from tests.commands import until
from tests.contract.calls import WAIT_S

pytestmark = [
    pytest.mark.covers("C5"),
    # Python 3.12 and newer warn of any fork beside threads.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[BatchJournal]:
    """A batch that this process reads."""
    BatchJournal.create(tmp_path / "b", {"name": "n"}).close()
    journal = BatchJournal(tmp_path / "b")
    yield journal
    journal.close()


def threads_inside() -> list[int]:
    return [thread for thread in list(gate._locks) if gate._is_inside(thread)]


def is_idle() -> bool:
    return (threads_inside(), gate._forks) == ([], [])


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """No fork of these tests is late and passes all the same."""
    assert is_idle(), "an earlier test left something"
    usual, gate.wait_s = gate.wait_s, 1_000.0
    yield
    gate.wait_s = usual


def in_child(call: Callable[[], bool]) -> int:
    """Return how a forked child ended that made the call: 0 when that gave true, 1 when not, 2 when it raised."""
    pid = os.fork()
    if not pid:
        signal.alarm(int(WAIT_S))
        code = 2
        try:
            code = 0 if call() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def readers_of(journal: BatchJournal) -> list[str]:
    """Return the transactions that LMDB's reader table protects."""
    lines = [line.split() for line in journal._env.readers().splitlines()]
    return [transaction for pid, _, transaction in lines[1:] if pid == str(os.getpid())]


def reads(journal: BatchJournal) -> bool:
    """Whether the batch can be opened and read, and the table of readers says so."""
    other = BatchJournal(journal.folder)
    with other.begin() as txn:
        return other.spec == {"name": "n"} and readers_of(other) == [str(txn.id())]


@pytest.fixture
def reader(journal: BatchJournal) -> Iterator[Event]:
    """Another thread in a read transaction, until this is set."""
    came, leave = Event(), Event()

    def read() -> None:
        with journal.begin():
            came.set()
            leave.wait(WAIT_S)

    thread = Thread(target=read)
    thread.start()
    assert came.wait(WAIT_S)
    yield leave
    leave.set()
    thread.join(WAIT_S)


def test_a_fork_waits_for_who_reads_and_a_reader_for_who_forks(journal: BatchJournal, reader: Event) -> None:
    codes: list[int] = []
    found: list[bool] = []
    fork, other = (Thread(target=lambda: codes.append(in_child(lambda: reads(journal)))) for _ in range(2))
    fork.start()
    until(lambda: gate._forks, "it waits")
    late = Thread(target=lambda: found.append(reads(journal)))
    late.start()
    until(lambda: late.ident in gate._locks, "the late reader waits")
    other.start()  # It may wait for locks of other libraries, which whoever forks has.
    assert (codes, found) == ([], [])
    reader.set()
    for thread in (fork, other, late):
        thread.join(WAIT_S)
    assert (codes, found) == ([0, 0], [True])
    assert is_idle()
    assert gate._forking == set()


def test_who_reads_may_read_on_while_a_fork_waits(journal: BatchJournal) -> None:
    codes: list[int] = []
    with journal.begin():
        fork = Thread(target=lambda: codes.append(in_child(lambda: reads(journal))))
        fork.start()
        until(lambda: gate._forks, "it waits")
        assert journal.known_key(b"?") is None
        assert codes == []
    fork.join(WAIT_S)
    assert codes == [0]


@pytest.mark.parametrize("is_opened", [True, False])
def test_a_fork_waits_for_a_batch_that_is_opened_or_closed(journal: BatchJournal, is_opened: bool) -> None:
    way = partial(readers.acquire, journal.folder) if is_opened else partial(readers.release, journal._env)
    codes: list[int] = []
    with readers._lock:
        other = Thread(target=way)
        other.start()
        until(threads_inside, "it waits for the lock")
        fork = Thread(target=lambda: codes.append(in_child(lambda: reads(journal))))
        fork.start()
        until(lambda: gate._forks, "this waits for that")
        assert codes == []
    other.join(WAIT_S)
    fork.join(WAIT_S)
    assert codes == [0]
    if is_opened:
        readers.release(journal._env)
    else:
        journal._env = readers.acquire(journal.folder)


def test_a_transaction_that_somebody_still_names_harms_none_after_a_fork(journal: BatchJournal) -> None:
    for _ in range(3):
        with journal.begin() as txn:
            cursor = txn.cursor(db=journal.table(tables.META))
            assert readers_of(journal) == [str(txn.id())]
        assert in_child(lambda: reads(journal)) == 0
        with journal.begin() as later:
            assert readers_of(journal) == [str(later.id())]
        assert readers_of(journal) == []
        with pytest.raises(ReferenceError):
            txn.id()
        del cursor


def is_refused(journal: BatchJournal) -> bool:
    with pytest.raises(JournalError, match=r"forked while it was read; use batchd in a process .* \(multiproc"):
        BatchJournal(journal.folder)
    return True


def test_a_fork_within_a_read_of_its_own_thread_harms_none(journal: BatchJournal) -> None:
    """As a signal's handler may do."""
    with journal.begin() as txn:
        assert in_child(lambda: is_refused(journal)) == 0
        assert in_child(lambda: in_child(lambda: is_refused(journal)) == 0) == 0
        assert readers_of(journal) == [str(txn.id())]
        assert txn.stat(db=journal.table(tables.META))["entries"] == 2
    assert in_child(lambda: reads(journal)) == 0


def test_a_fork_does_not_wait_for_ever(journal: BatchJournal, reader: Event) -> None:
    gate.wait_s = 0.01
    assert in_child(lambda: is_refused(journal)) == 0
    (transaction,) = readers_of(journal)
    assert transaction != "-"
    gate.wait_s = WAIT_S
    reader.set()
    assert in_child(lambda: reads(journal)) == 0


_INTERRUPTED = """
import os, random, signal, sys, threading
from functools import partial

# Comes behind the gate's hook, so the interrupt is there when fork() returns.
os.register_at_fork(before=partial(signal.setitimer, signal.ITIMER_REAL, 1e-6))

import lmdb
from batchd.worker.gate import begin, gate

gate.wait_s = 1_000.0  # No fork is late and passes all the same.
env = lmdb.open(sys.argv[1], max_spare_txns=0)
unheard, codes = [], []
sys.unraisablehook = lambda found: unheard.append(found.exc_type)

def fork():
    child = os.fork()
    if not child:
        os._exit(gate.was_held)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def read(times):
    for _ in range(times):
        with begin(env) as txn:
            txn.get(b"k")

def both():
    read(1)
    codes.append(fork())

def interrupted(call):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() / 10_000)
        call()
    except KeyboardInterrupt:
        return True
    return False

signal.signal(signal.SIGALRM, signal.default_int_handler)  # As Ctrl-C, but as often as one likes.
heard = sum([interrupted(WHAT) for _ in range(TIMES)])
signal.signal(signal.SIGALRM, signal.SIG_IGN)
assert heard + len(unheard) > TIMES / 2, (heard, unheard)
other = threading.Thread(target=both, daemon=True)
other.start()
other.join(20)
if codes:
    both()
print(codes, gate._forks, {*unheard} <= {KeyboardInterrupt}, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("what", "times"), [("fork", 50), ("partial(read, 1_000)", 3_000)], ids=["forks", "reads"])
def test_interrupts_leave_nobody_who_waits(tmp_path: Path, what: str, times: int) -> None:
    text = _INTERRUPTED.replace("WHAT", what).replace("TIMES", str(times))
    command = [sys.executable, "-c", text, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * WAIT_S, check=False)
    assert (ended.stdout, ended.returncode) == ("[0, 0] [] True\n", 0), ended.stderr
