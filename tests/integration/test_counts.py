"""No slow path by accident: what more jobs cost, counted instead of timed.

Every process of two runs counts its calls of Python functions, the kernel its reads and writes, strace the
supervisor's system calls. What the larger run needed more is the price of its further jobs: starting, importing and
leaving cancel out. A bound is about 1.5 times what was counted on a busy machine, which does the same work in more
turns; where little is counted, and so half of it is chance, it is more.
"""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

import batchd
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from tests.commands import WAIT_S, Desk, pause, until
from tests.contract.calls import Door
from tests.faces.jobs import enter_first, nap_or_enter
from tests.fault.tracing import STRACE, needs_strace, ready_supervisor

_COUNTER = """
import atexit, os, sys, threading

command = " ".join(sys.orig_argv)
if "COUNTS" in os.environ and "batchd" in command:
    role = next((name for name in ("supervisor", "worker") if "batchd." + name in command), "client")
    role = "template" if role == "worker" else role
    calls = 0

    def count(frame, event, arg):
        global calls
        calls += event == "call"

    def begin_as_worker():
        global role, calls
        role, calls = "worker", 0

    def tell():
        sys.setprofile(None)
        with open("/proc/self/io") as file:
            seen = dict(line.split(": ") for line in file)
        numbers = calls, int(seen["syscr"]), int(seen["syscw"]), int(seen["wchar"])
        path = os.path.join(os.environ["COUNTS"], f"{role}.{os.getpid()}")
        with open(path + "~", "w") as file:
            print(*numbers, file=file)
        os.rename(path + "~", path)

    def leave(code, leave=os._exit):
        tell()
        leave(code)

    os._exit = leave
    os.register_at_fork(after_in_child=begin_as_worker)
    atexit.register(tell)
    threading.setprofile(count)
    sys.setprofile(count)
"""
"""A sitecustomize: Python imports it before anything else in every process that finds it."""

_TASKS = """
import time

def number(n):
    return -n

def nap(n):
    time.sleep(0.001)
    return n

def row(fields):
    return {**fields, "seen": True}
"""

_ONE_BY_ONE = """
import sys, batchd

with batchd.Executor(int(sys.argv[3]), journal=sys.argv[1]) as executor:
    futures = [executor.submit(abs, number) for number in range(int(sys.argv[2]))]
    assert [future.result() for future in futures] == list(range(int(sys.argv[2])))
"""


_TURNS = "trace=epoll_wait,epoll_ctl,futex,write,writev,pwrite64,sendto,recvfrom,fdatasync"
"""What turns and commits are made of. Not what gauges and the search for orphans read: that is the machine's size."""
_LOOK_S = 0.01
_WORKERS = 2
_LEFT = ["client", "supervisor", *2 * _WORKERS * ["worker"]]
"""Who writes down its counts. A worker is forked by a child of the template, which leaves and counts with it."""


class Count(NamedTuple):
    """What the processes of one role did, or what a thousand jobs cost them."""

    calls: float
    """Of Python functions."""
    reads: float
    writes: float
    written_bytes: float


class Price(NamedTuple):
    """What a run took, or what a thousand further jobs cost."""

    by_role: dict[str, Count]
    commits: float
    journal_bytes: float


def counted(folder: Path, jobs: int, command: list[str]) -> Price:
    """Run a command on a new journal; return what it took in all."""
    counts = folder / "counts"
    counts.mkdir()
    (folder / "sitecustomize.py").write_text(_COUNTER, "utf-8")
    desk = Desk(folder)
    environ = {**desk.environ, "COUNTS": str(counts), "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run(
        [sys.executable, *command],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    until(lambda: sorted(role_of(path) for path in counts.glob("[!t]*[0-9]")) == _LEFT, "everybody left")
    by_role: dict[str, Count] = defaultdict(lambda: Count(0, 0, 0, 0))
    for path in counts.glob("[!t]*[0-9]"):
        numbers = [int(word) for word in path.read_text("ascii").split()]
        role = role_of(path)
        by_role[role] = Count(*(a + b for a, b in zip(by_role[role], numbers, strict=True)))
    # The kernel adds what a process read and wrote to whoever collects its exit.
    (_, *workers), (calls, *supervisor) = by_role["worker"], by_role["supervisor"]
    by_role["supervisor"] = Count(calls, *(all_ - theirs for all_, theirs in zip(supervisor, workers, strict=True)))
    (batch,) = (desk.journal / "batches").iterdir()
    journal = BatchJournal(batch)
    assert journal.facts.done.size == jobs
    with journal.begin() as txn:
        commits = int(txn.id())
    journal_bytes = journal.bytes_used()
    journal.close()
    return Price(by_role, commits, journal_bytes)


def role_of(path: Path) -> str:
    """Return whose counts a file holds."""
    return path.name.partition(".")[0]


def per_thousand(few: Price, many: Price, jobs: int) -> Price:
    """Return what each thousand of the `jobs` more of the larger run cost."""
    thousands = jobs / 1_000
    by_role = {
        role: Count(*((b - a) / thousands for a, b in zip(few.by_role[role], many.by_role[role], strict=True)))
        for role in many.by_role
    }
    commits, journal_bytes = many.commits - few.commits, many.journal_bytes - few.journal_bytes
    return Price(by_role, commits / thousands, journal_bytes / thousands)


class Kind(NamedTuple):
    """Jobs of one kind, and what a thousand of them may cost."""

    task: str
    few: int
    """Jobs of the smaller run."""
    more: int
    """Jobs that the larger one has more."""
    bound: Price
    system_calls: float
    """Of the supervisor, all its threads."""

    def command(self, folder: Path, jobs: int) -> list[str]:
        """Return what runs so many of them."""
        (folder / "tasks.py").write_text(_TASKS, "utf-8")
        given = ["--range", f"0:{jobs}"]
        if self.task == "row":
            rows = (json.dumps({"id": number, "name": f"row {number}"}) for number in range(jobs))
            (folder / "rows.jsonl").write_text("\n".join(rows), "utf-8")
            given = ["rows.jsonl"]
        return ["run", f"tasks.py:{self.task}", *given, "-j", str(_WORKERS)]


KINDS = {
    "integers in bulk": Kind(
        task="number",
        few=10_000,
        more=200_000,
        bound=Price(
            by_role={
                "client": Count(calls=4, reads=0.2, writes=0.1, written_bytes=2),
                "supervisor": Count(calls=120, reads=2, writes=1, written_bytes=10_000),
                "worker": Count(calls=1_520, reads=0.2, writes=1.4, written_bytes=7_600),
            },
            commits=0.15,
            journal_bytes=8_300,
        ),
        system_calls=2.8,
    ),
    "a millisecond each": Kind(
        task="nap",
        few=500,
        more=4_000,
        bound=Price(
            by_role={
                "client": Count(calls=400, reads=12, writes=0.5, written_bytes=10),
                "supervisor": Count(calls=84_000, reads=90, writes=130, written_bytes=450_000),
                "worker": Count(calls=19_000, reads=18, writes=1_520, written_bytes=130_000),
            },
            commits=20,
            journal_bytes=120_000,
        ),
        system_calls=400,
    ),
    "objects": Kind(
        task="row",
        few=2_000,
        more=40_000,
        bound=Price(
            by_role={
                "client": Count(calls=9_100, reads=2, writes=0.5, written_bytes=10),
                "supervisor": Count(calls=2_700, reads=17, writes=29, written_bytes=207_000),
                "worker": Count(calls=28_500, reads=7.5, writes=21, written_bytes=84_000),
            },
            commits=3,
            journal_bytes=162_000,
        ),
        system_calls=23,
    ),
}
SINGLE = Price(
    by_role={
        "client": Count(calls=76_000, reads=700, writes=700, written_bytes=5_600),
        "supervisor": Count(calls=6_000, reads=100, writes=100, written_bytes=70_000),
        "worker": Count(calls=1_750, reads=10, writes=10, written_bytes=5_200),
    },
    commits=10,
    journal_bytes=30_000,
)
"""Of calls of `abs` that are handed over one by one. How many share a message, and wake whom, is chance."""


def exceeded(price: Price, bound: Price) -> list[str]:
    """Return what cost more than it may, with both figures."""
    rows = [
        (f"{role}: {name}", getattr(price.by_role[role], name), getattr(count, name))
        for role, count in bound.by_role.items()
        for name in Count._fields
    ]
    rows += [("commits", price.commits, bound.commits), ("journal bytes", price.journal_bytes, bound.journal_bytes)]
    return [f"{name}: {found:,.2f} > {most:,.2f} per 1,000 jobs" for name, found, most in rows if found > most]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_thousand_more_jobs_cost_what_they_must(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    def run(jobs: int) -> Price:
        folder = tmp_path_factory.mktemp(kind.task)
        return counted(folder, jobs, ["-m", "batchd", *kind.command(folder, jobs)])

    price = per_thousand(run(kind.few), run(kind.few + kind.more), kind.more)
    assert exceeded(price, kind.bound) == []


@needs_strace
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_thousand_more_jobs_make_few_system_calls(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    def run(jobs: int) -> int:
        folder = tmp_path_factory.mktemp(kind.task)
        return system_calls(Desk(folder), kind.command(folder, jobs))

    made = (run(kind.few + kind.more) - run(kind.few)) / (kind.more / 1_000)
    assert made <= kind.system_calls, f"{made:,.1f} system calls of the supervisor per 1,000 jobs"


def system_calls(desk: Desk, command: list[str]) -> int:
    """Run a command on a supervisor under strace; return how many system calls its threads made."""
    open_folder(desk.journal)
    log = desk.folder / "strace.log"
    supervisor = ready_supervisor(desk, STRACE, "-f", "-qq", "--seccomp-bpf", "-e", _TURNS, "-o", str(log))
    tasks = Path(f"/proc/{desk.supervisor()}/task")
    threads: set[str] = set()
    client = desk.start(*command)
    while client.poll() is None:
        threads |= {task.name for task in tasks.iterdir()}
        with suppress(subprocess.TimeoutExpired):
            client.wait(_LOOK_S)
    _, complaint = client.communicate()
    assert client.returncode == 0, complaint
    assert supervisor.wait(WAIT_S) == 0
    lines = [line.partition(" ")[::2] for line in log.read_text("utf-8", "replace").splitlines()]
    return sum(1 for thread, call in lines if thread in threads and "resumed>" not in call)


@pytest.mark.parametrize("again", ["retried", "interrupted"])
def test_a_second_attempt_is_reported_in_groups_as_the_first_is(desk: Desk, tmp_path: Path, again: str) -> None:
    """Nobody suspects jobs that were given up before they began, or that may have run when the machine died."""
    jobs, door = 20_000, Door(tmp_path)
    with batchd.Client(desk.journal, workers=2) as client:
        batch = client.submit_batch(partial(enter_first, door), range(jobs), name="n")
        until((tmp_path / "came").exists, "the first wait")
        if again == "retried":
            batch.cancel()
            assert batch.wait(WAIT_S).cancelled == jobs
            door.open()
            assert batch.retry(cancelled=True) == jobs
        else:
            desk.recorder().unlink()
            os.kill(desk.supervisor(), signal.SIGKILL)
            door.open()
        assert batch.wait(WAIT_S).succeeded == jobs
        assert list(batch.results()) == list(range(jobs))
    journal = BatchJournal(desk.journal / "batches" / batch.id)
    outcomes = Outcomes(journal)
    reports = {span.block.first for span in outcomes.spans(journal.facts.done, journal.facts.generation)}
    assert journal.facts.attempts_max >= 1
    journal.close()
    assert len(reports) < jobs / 20


def test_a_supervisor_whose_workers_are_all_in_long_jobs_is_at_rest(desk: Desk, tmp_path: Path) -> None:
    """Behind them wait jobs that take a millisecond each, as far as anybody knows."""
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=2) as client:
        batch = client.submit_batch(partial(nap_or_enter, door), range(300), name="n")
        until(lambda: len(door.came()) == 2, "all workers wait")
        pause(0.5)  # Until what was done before is told, and what can be taken back is.
        before = switches(desk.supervisor())
        pause(1.0)
        made = switches(desk.supervisor()) - before
        door.open()
        assert batch.wait(WAIT_S).succeeded == 300
    assert made < 60, f"it woke up {made} times in a second"


def switches(pid: int) -> int:
    """Return how often the threads of a process have waited for something."""
    statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(
        int(line.split()[1]) for each in statuses for line in each.splitlines() if line.startswith("voluntary")
    )


def test_jobs_handed_over_one_by_one_share_messages_and_commits(tmp_path_factory: pytest.TempPathFactory) -> None:
    few, more = 500, 4_000

    def run(jobs: int) -> Price:
        folder = tmp_path_factory.mktemp("single")
        return counted(folder, jobs, ["-c", _ONE_BY_ONE, str(folder / "journal"), str(jobs), str(_WORKERS)])

    price = per_thousand(run(few), run(few + more), more)
    assert exceeded(price, SINGLE) == []
