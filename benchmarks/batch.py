"""batchd as a contender: one batch through a real session and supervisor, its results read back from the journal.

The clock starts when the workers are up and a few jobs of the same batch went through them, as the pools that it is
compared with are warm too. It stops when every result was read and added up. Starting and leaving are not in it.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, NamedTuple

import psutil

from batchd.client import Session, batch_id
from batchd.core.events import Options
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.edge.outcomes import Outcomes
from batchd.edge.template import KeySpec
from batchd.formats import tables
from batchd.sources.source import BLOCK_ITEMS, Block, Checkpoint

_READY_S: Final = 30.0
_WATCH_S: Final = 0.01
_SETTLE_S: Final = 0.1
"""Between the birth of the last worker and the start of the clock: it is then waiting for its first lease."""


class Job(NamedTuple):
    """What every job of a batch calls, and how safe its result must be."""

    module: str
    name: str
    durability: str


class Outcome(NamedTuple):
    """What a batch did."""

    seconds: float
    values: list[list[Any]]
    """Results in order, in the runs in which they were read. Empty where `reduce` was given."""
    reduced: Any
    results: int
    """How many came back."""
    supervisor_cpu_s: float
    """Like the next, of those that lived to the end."""
    workers_cpu_s: float
    client_cpu_s: float
    disk_bytes: int
    blocks: int
    """Outcome blocks: reports of workers."""
    records: int
    commits: int


def run_batch(
    scratch: Path,
    job: Job,
    items: Sequence[Any],
    *,
    workers: int,
    warm: Sequence[Any],
    reduce: Callable[[Any, list[Any]], Any] | None = None,
    watch: Callable[[Path], object] | None = None,
) -> Outcome:
    """Run `items` through batchd; give every result, or what `reduce` folded them to, starting from 0.

    `watch` is called with the journal's folder, again and again while jobs run.
    """
    folder = open_folder(Path(mkdtemp(dir=scratch)) / "journal")
    go = threading.Event()
    try:
        with _session(folder, job, workers) as session:
            session.feed(_blocks(items, warm, go))
            _await_warm(session, len(warm), workers)
            pids = processes(folder)
            before = {pid: cpu_s(pid) for pid in pids}
            client_s = time.process_time()
            since = time.perf_counter()
            go.set()
            journal = BatchJournal(session.folder / "batches" / session.batch)
            values, reduced, count = _read(session, journal, len(warm), reduce, watch)
            seconds = time.perf_counter() - since
            client_s = time.process_time() - client_s
            used = {pid: cpu_s(pid) - before[pid] for pid in pids if psutil.pid_exists(pid)}
            supervisor_s = used.pop(pids[0], 0.0)
            journal.close()
            blocks, records, commits, disk_bytes = _sizes(journal.folder)
        return Outcome(
            seconds=seconds,
            values=values,
            reduced=reduced,
            results=count,
            supervisor_cpu_s=supervisor_s,
            workers_cpu_s=sum(used.values()),
            client_cpu_s=client_s,
            disk_bytes=disk_bytes,
            blocks=blocks,
            records=records,
            commits=commits,
        )
    finally:
        go.set()  # A feed that still waits would keep its thread for ever.
        await_gone(folder)
        shutil.rmtree(folder.parent, ignore_errors=True)


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of any process, to the nanosecond: /proc counts in steps of 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)  # What clock_getcpuclockid(3) answers on Linux.


@contextmanager
def _session(folder: Path, job: Job, workers: int) -> Iterator[Session]:
    key_spec = KeySpec((job.module, job.name), tuple(sys.path), str(Path.cwd()), dict(os.environ), sys.executable)
    session = Session(
        folder,
        batch_id(os.urandom(8).hex()),
        spec={"task": key_spec.task, "args": {}, "durability": job.durability, "name": job.name},
        options=Options(workers=workers),
        key_spec=key_spec,
        digest="",
        note=lambda text: print(f"batchd: {text}", file=sys.stderr),
        follows=True,
    )
    session.open()
    try:
        yield session
        session.leave(at_once=False)
        while not session.is_put_down:
            session.pump(0.25)
    finally:
        session.close()


def _blocks(items: Sequence[Any], warm: Sequence[Any], go: threading.Event) -> Iterator[Block]:
    given = len(warm)
    yield Block(list(warm), Checkpoint(given, given, ""))
    go.wait()
    for at in range(0, len(items), BLOCK_ITEMS[-1]):
        part = items[at : at + BLOCK_ITEMS[-1]]
        given += len(part)
        yield Block(part, Checkpoint(given, given, ""))


def _await_warm(session: Session, jobs: int, workers: int) -> None:
    deadline = time.monotonic() + _READY_S
    while session.progress.get("done", 0) < jobs or session.progress.get("workers", 0) < workers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the workers were not up after {_READY_S:.0f} s: {session.progress}")
        session.pump(0.05)
    time.sleep(_SETTLE_S)


def processes(folder: Path) -> list[int]:
    """The supervisor first, then its children: the template and the workers."""
    supervisor = psutil.Process(int(holder_of(folder)["pid"]))
    return [supervisor.pid, *(child.pid for child in supervisor.children())]


def _read(
    session: Session,
    journal: BatchJournal,
    warm: int,
    reduce: Callable[[Any, list[Any]], Any] | None,
    watch: Callable[[Path], object] | None,
) -> tuple[list[list[Any]], Any, int]:
    """Read every result as soon as it is durable, beside the run."""
    outcomes = Outcomes(journal)
    parts: list[tuple[int, list[Any]]] = []
    reduced: Any = 0
    count = 0
    seen = RangeSet()
    while session.recorded or not session.is_over:
        if not session.recorded:
            session.pump(0.25 if watch is None else _WATCH_S)
            if watch is not None:
                watch(session.folder)
        recorded, session.recorded = session.recorded, RangeSet()
        for start, stop in seen:  # After a supervisor's death everything is told again.
            recorded.remove(start, stop)
        for start, stop in recorded:
            seen.add(start, stop)
        for span in outcomes.spans(recorded, session.progress["generation"], warm):
            if span.state is not JobState.SUCCEEDED:
                continue
            values = span.values()
            count += len(values)
            if reduce is None:
                parts.append((span.start, values))
            else:
                reduced = reduce(reduced, values)
    return [values for _, values in sorted(parts, key=itemgetter(0))], reduced, count


def _sizes(folder: Path) -> tuple[int, int, int, int]:
    """How many outcome blocks a batch has, how many records they lie in, how many commits made it, and its bytes."""
    journal = BatchJournal(folder)
    facts = journal.facts
    blocks = sum(1 for _ in Outcomes(journal).spans(facts.done, facts.generation))
    with journal.begin() as txn:
        records, commits = int(txn.stat(db=journal.table(tables.OUTCOMES))["entries"]), int(txn.id())
    disk_bytes = journal.bytes_used()
    journal.close()
    return blocks, records, commits, disk_bytes


def await_gone(folder: Path) -> None:
    """Wait for the supervisor to leave, so that it takes no time from whoever is measured next."""
    pid = holder_of(folder).get("pid")
    try:
        if pid is not None:
            psutil.Process(int(pid)).wait(10.0)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass


def concat(parts: Iterable[list[Any]]) -> list[Any]:
    """All results in one list."""
    return [value for part in parts for value in part]
