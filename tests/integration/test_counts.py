"""No slow path by accident: what more jobs cost, counted instead of timed.

Every process of two runs counts its calls of Python functions, and the kernel its reads and writes. What the larger
run needed more is the price of its further jobs: starting, importing and leaving cancel out. The bounds lie above
what a busy machine needs, which does the same work in more turns, and below one of anything a job.
"""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from batchd.edge.journal import BatchJournal
from tests.commands import WAIT_S, Desk, until

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

_ONE_BY_ONE = """
import sys, batchd

with batchd.Executor(int(sys.argv[3]), journal=sys.argv[1]) as executor:
    futures = [executor.submit(abs, number) for number in range(int(sys.argv[2]))]
    assert [future.result() for future in futures] == list(range(int(sys.argv[2])))
"""


_WORKERS = 2
_LEFT = ["client", "supervisor", *2 * _WORKERS * ["worker"]]
"""Who writes down its counts. A worker is forked by a child of the template, which leaves and counts with it."""


class Count(NamedTuple):
    """What the processes of one role did, or what a job costs them."""

    calls: float
    reads: float
    writes: float
    written_bytes: float


class Price(NamedTuple):
    """What one further job costs."""

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


def per_job(few: Price, many: Price, jobs: int) -> Price:
    """Return what each of the `jobs` more of the larger run cost."""
    by_role = {
        role: Count(*((b - a) / jobs for a, b in zip(few.by_role[role], many.by_role[role], strict=True)))
        for role in many.by_role
    }
    return Price(by_role, (many.commits - few.commits) / jobs, (many.journal_bytes - few.journal_bytes) / jobs)


def test_a_job_of_a_bulk_batch_costs_nobody_but_its_worker_a_call(tmp_path_factory: pytest.TempPathFactory) -> None:
    few, more = 10_000, 200_000

    def run(jobs: int) -> Price:
        folder = tmp_path_factory.mktemp("bulk")
        return counted(
            folder, jobs, ["-m", "batchd", "run", "operator:neg", "--range", f"0:{jobs}", "-j", str(_WORKERS)]
        )

    price = per_job(run(few), run(few + more), more)
    supervisor, worker, client = (price.by_role[role] for role in ("supervisor", "worker", "client"))
    assert supervisor.calls < 1.0
    assert supervisor.reads + supervisor.writes < 0.02
    assert supervisor.written_bytes < 60
    assert worker.calls < 0.1
    assert worker.reads + worker.writes < 0.01
    assert worker.written_bytes < 8
    assert client.calls < 0.1
    assert client.reads + client.writes < 0.005
    assert price.commits < 0.002
    assert price.journal_bytes < 14


def test_jobs_handed_over_one_by_one_share_messages_and_commits(tmp_path_factory: pytest.TempPathFactory) -> None:
    few, more = 500, 4_000

    def run(jobs: int) -> Price:
        folder = tmp_path_factory.mktemp("single")
        return counted(folder, jobs, ["-c", _ONE_BY_ONE, str(folder / "journal"), str(jobs), str(_WORKERS)])

    price = per_job(run(few), run(few + more), more)
    supervisor, worker, client = (price.by_role[role] for role in ("supervisor", "worker", "client"))
    assert supervisor.calls < 10
    assert supervisor.reads + supervisor.writes < 0.2
    assert worker.calls < 2
    assert worker.reads + worker.writes < 0.1
    assert client.calls < 80
    assert client.reads + client.writes < 1
    assert price.commits < 0.05
    assert price.journal_bytes < 40
