"""batchd as a contender: one batch through a real session and supervisor, its results read back from the journal.

The clock starts when the workers are up and a few jobs of the same batch went through them, as the pools that it is
compared with are warm too. It stops when every result was read and added up. Starting and leaving are not in it.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, NamedTuple

import psutil

from batchd.client import Session, batch_id
from batchd.client.costing import Costing, CostOf
from batchd.core.events import Options
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.folder import open_folder, remove_journal
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.edge.outcomes import Outcomes
from batchd.edge.template import KeySpec
from batchd.formats import tables
from batchd.sources.source import BLOCK_ITEMS, Block, Checkpoint

_READY_S: Final = 30.0
_MEANWHILE_S: Final = 0.01
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
    workers_cpu_s: float
    client_cpu_s: float
    disk_bytes: int
    blocks: int
    """Outcome blocks: reports of workers."""
    records: int
    commits: int
    encoded_bytes: int
    """Of all input blocks and outcome blocks."""


def run_batch(
    scratch: Path,
    job: Job,
    items: Sequence[Any],
    *,
    workers: int,
    warm: Sequence[Any],
    reduce: Callable[[Any, list[Any]], Any] | None = None,
    watch: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    meanwhile: Callable[[Path], object] | None = None,
    cost: CostOf | None = None,
) -> Outcome:
    """Run `items` through batchd; give every result, or what `reduce` folded them to, starting from 0.

    `watch` is given the supervisor's pid and entered while the batch runs; `meanwhile` is called with the journal's
    folder, again and again until it is over.
    """
    folder = open_folder(Path(mkdtemp(dir=scratch)))
    go = threading.Event()
    try:
        with new_session(folder, job, workers, follows=reduce is not None) as session:
            session.feed(_blocks(items, warm, go, cost))
            _await_warm(session, len(warm), workers)
            pids = processes(folder)
            before = {pid: cpu_s(pid) for pid in pids}
            client_s = time.process_time()
            since = time.perf_counter()
            go.set()
            journal = BatchJournal(session.folder / "batches" / session.batch)
            with watch(pids[0]):
                values, reduced, count = _read(session, journal, len(warm), reduce, meanwhile)
            seconds = time.perf_counter() - since
            client_s = time.process_time() - client_s
            used = {pid: cpu_s(pid) - before[pid] for pid in pids if psutil.pid_exists(pid)}
            supervisor_s = used.pop(pids[0], 0.0)
            journal.close()
            sizes = _sizes(journal.folder)
        return Outcome(
            seconds=seconds,
            values=values,
            reduced=reduced,
            results=count,
            supervisor_cpu_s=supervisor_s,
            workers_cpu_s=sum(used.values()),
            client_cpu_s=client_s,
            **sizes,
        )
    finally:
        go.set()  # A feed that still waits would keep its thread for ever.
        await_gone(folder)
        remove_journal(folder)


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of any process, to the nanosecond: /proc counts in steps of 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)  # What clock_getcpuclockid(3) answers on Linux.


@contextmanager
def new_session(folder: Path, job: Job, workers: int, name: str = "", *, follows: bool = False) -> Iterator[Session]:
    """A batch of one job's task: a new one, or that of a name it was given before."""
    key_spec = KeySpec((job.module, job.name), tuple(sys.path), str(Path.cwd()), dict(os.environ), sys.executable)
    session = Session(
        folder,
        batch_id(name or os.urandom(8).hex()),
        spec={"task": key_spec.task, "args": {}, "durability": job.durability, "name": job.name},
        options=Options(workers=workers),
        key_spec=key_spec,
        digest="",
        note=lambda text: print(f"batchd: {text}", file=sys.stderr),
        follows=follows,
    )
    session.open()
    try:
        yield session
        session.leave(at_once=False)
        while not session.is_put_down:
            session.pump(0.25)
    finally:
        session.close()


def _blocks(items: Sequence[Any], warm: Sequence[Any], go: threading.Event, cost: CostOf | None) -> Iterator[Block]:
    yield Block(list(warm), Checkpoint(len(warm), len(warm), ""))
    go.wait()
    yield from blocks_of(items, len(warm), cost)


def blocks_of(items: Sequence[Any], given: int = 0, cost: CostOf | None = None) -> Iterator[Block]:
    """The items as a source gives them, after `given` others."""
    costing = None if cost is None else Costing(cost, "cost")
    for at in range(0, len(items), BLOCK_ITEMS[-1]):
        part = items[at : at + BLOCK_ITEMS[-1]]
        costs = costing.costly(given, costing.read(part, given)) if costing else ()
        given += len(part)
        yield Block(part, Checkpoint(given, given, ""), costs)


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
    meanwhile: Callable[[Path], object] | None,
) -> tuple[list[list[Any]], Any, int]:
    """Read every result: what is to be reduced as soon as it is durable, beside the run; the others at its end."""
    outcomes = Outcomes(journal)
    parts: list[list[Any]] = []
    reduced: Any = 0
    count = 0
    seen = RangeSet()
    while session.recorded or not session.is_over:
        if not session.recorded:
            session.pump(0.25 if meanwhile is None else _MEANWHILE_S)
            if meanwhile is not None:
                meanwhile(session.folder)
        if reduce is None and session.is_over:
            session.recorded = RangeSet([(warm, session.progress["size"])])
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
                parts.append(values)
            else:
                reduced = reduce(reduced, values)
    return parts, reduced, count


def _sizes(folder: Path) -> dict[str, int]:
    """What a batch came to on the disk, as Outcome has it."""
    journal = BatchJournal(folder)
    facts = journal.facts
    blocks = sum(1 for _ in Outcomes(journal).spans(facts.done, facts.generation))
    encoded_bytes = 0
    with journal.begin() as txn:
        for table in (tables.INPUTS, tables.OUTCOMES):
            encoded_bytes += sum(map(len, txn.cursor(db=journal.table(table)).iternext(keys=False)))
        records, commits = int(txn.stat(db=journal.table(tables.OUTCOMES))["entries"]), int(txn.id())
    disk_bytes = journal.bytes_used()
    journal.close()
    return {
        "blocks": blocks,
        "records": records,
        "commits": commits,
        "disk_bytes": disk_bytes,
        "encoded_bytes": encoded_bytes,
    }


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
