"""A bench for workers, a real pool that the test drives, and a house with real supervisors, whose client it is."""

import ctypes
import heapq
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from select import POLLIN, poll, select
from selectors import DefaultSelector
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from batchd.client import Session
from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.events import Options
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.edge.folder import journal_id, open_folder, recorder_path
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.edge.orphans import become_subreaper, tagged
from batchd.edge.outcomes import Outcomes
from batchd.edge.pool import Pool
from batchd.edge.template import Home, KeySpec
from batchd.edge.workerprocess import WorkerProcess
from batchd.formats.report import Failure
from batchd.formats.segment import unpack
from batchd.sources.source import Block, Checkpoint
from batchd.worker.recorder import Recorder
from tests.author import submission

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36

EventT = TypeVar("EventT", bound=ev.Event)


def key_spec(
    task: str = "tests.jobs:act",
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path = ROOT,
    is_fresh: bool = False,
) -> KeySpec:
    """Return how workers of a task start, with nothing of this process's environment but the path."""
    module, _, name = task.rpartition(":")
    return KeySpec(
        task=(module, name),
        sys_path=(str(cwd), *dict.fromkeys([str(ROOT), *filter(None, sys.path)])),
        cwd=str(cwd),
        environ={"PATH": os.environ["PATH"], **(environ or {})},
        executable=sys.executable,
        is_fresh=is_fresh,
    )


class Told(NamedTuple):
    """What became of one job."""

    job: int
    state: JobState
    value: Any
    """The result, or the Failure."""


class Bench:
    """The outside of a pool."""

    def __init__(self, folder: Path, slots: int = 8, pool: type[Pool] = Pool) -> None:
        self.folder = open_folder(folder / "journal")
        self.selector = DefaultSelector()
        self.events: list[ev.Event] = []
        self.recorder = Recorder.create(folder / "recorder", boot_id="b", journal_id="j", epoch=1, slots=slots)
        self._lifeline_read, self.lifeline = os.pipe2(os.O_CLOEXEC)
        self._log_fd = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._leases = 0
        self._workers = 0
        self.journal_id = journal_id(self.folder)
        home = Home(self.folder / "batches", self.journal_id, 1, self.recorder.fd, self._lifeline_read)
        become_subreaper()
        self.pool = pool(self.selector, home, self.recorder, self.events.append, self._later, self._log_fd)

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (monotonic() + delay_s, len(self._timers), call))

    def close(self) -> None:
        """End every process and give back every descriptor."""
        self.pool.close()
        for worker in list(self.pool.workers.values()):
            self.pool._close(worker)
        self.selector.close()
        for fd in (self._lifeline_read, self.lifeline, self._log_fd):
            if fd >= 0:
                os.close(fd)
        self.recorder.close()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    # --- Orders ------------------------------------------------------------------------------------------------

    def batch(self, items: list[Any], name: str = "b", **spec: Any) -> str:
        """Write a batch of these inputs."""
        journal = BatchJournal.create(self.folder / "batches" / name, spec)
        journal.commit([submission(journal.facts, items)])
        journal.close()
        return name

    def add_key(self, spec: KeySpec, key: str = "k") -> str:
        """Import a key's task, and take a batch of it up; return '' or why that cannot be."""
        reasons: list[str] = []
        self.pool.add_key(key, spec, reasons.append)
        self.until(lambda: reasons, "the task is imported")
        if not reasons[0]:
            self.pool.take_up(f"of-{key}", key, spec)
        return reasons[0]

    def start(self, key: str = "k") -> WorkerProcess:
        """Start a worker and wait until it is ready."""
        self._workers += 1
        number = self._workers
        self.pool.perform(c.StartWorker(number, key))
        self.await_event(ev.WorkerReady, lambda event: event.worker == number)
        worker = self.pool.workers[number]
        self.until(lambda: worker.pid, "its birth is announced")  # Which may come later than its first word.
        return worker

    def lease(
        self,
        worker: WorkerProcess,
        first: int,
        stop: int,
        *,
        batch: str = "b",
        stint: int = 1,
        attempt: int = 1,
        lane: int = 0,
        is_timed: bool = False,
        reports_each: bool = False,
    ) -> int:
        """Grant a lease and return its number."""
        self._leases += 1
        number = worker.number
        self.pool.perform(
            c.GrantLease(number, self._leases, lane, batch, stint, first, stop, attempt, is_timed, reports_each)
        )
        return self._leases

    # --- Waiting -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Handle what is ready, or due, or wait a moment for it."""
        due_s = self._timers[0][0] - monotonic() if self._timers else 0.2
        # Backwards, because nothing may depend on the order in which descriptors are found ready.
        for key, _ in reversed(self.selector.select(max(0.0, min(0.2, due_s)))):
            key.data()
        while self._timers and self._timers[0][0] <= monotonic():
            heapq.heappop(self._timers)[2]()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Turn until `condition` is true. Fails after a deadline."""
        deadline = monotonic() + WAIT_S
        while not condition():
            assert monotonic() < deadline, f"never: {what}; {self.events}"
            self.turn()

    def await_event(self, kind: type[EventT], matches: Callable[[EventT], bool] = lambda _: True) -> EventT:
        """Turn until an event of that kind is there and return it."""
        found: list[EventT] = []

        def look() -> bool:
            found[:] = [event for event in self.events if isinstance(event, kind) and matches(event)]
            return bool(found)

        self.until(look, kind.__name__)
        return found[0]

    def run(self, worker: WorkerProcess, first: int, stop: int, **lease: Any) -> list[Told]:
        """Run a lease to its end, which must come, and return what became of the jobs."""
        number = self.lease(worker, first, stop, **lease)
        ended = self.await_event(ev.LeaseEnded, lambda event: event.lease == number)
        assert ended.stop == stop
        return self.told(number)

    def gone(self, worker: WorkerProcess) -> ev.WorkerGone:
        """Wait for a worker's end."""
        number = worker.number
        return self.await_event(ev.WorkerGone, lambda event: event.worker == number)

    def told(self, lease: int) -> list[Told]:
        """Return what the acks of a lease say so far, in the order they came."""
        found: list[Told] = []
        for event in self.events:
            if isinstance(event, ev.JobsAcked) and event.lease == lease:
                (block,) = unpack(event.block)
                assert (block.first, block.count, block.state) == (event.first, event.count, event.state)
                if event.state is JobState.SUCCEEDED:
                    values: list[Any] = block.values()
                else:
                    values = [Failure.decode(payload) for payload in block.payloads()]
                found += [Told(event.first + at, event.state, value) for at, value in enumerate(values)]
        return found


def at_work(
    bench: Bench, items: list[Any], *, environ: Mapping[str, str] | None = None, is_fresh: bool = False
) -> WorkerProcess:
    """Return a ready worker of a batch of these jobs."""
    bench.batch(items)
    assert bench.add_key(key_spec(environ=environ, is_fresh=is_fresh)) == ""
    return bench.start()


@contextmanager
def listening(path: Path) -> Iterator[Callable[..., list[int]]]:
    """Make a FIFO at `path`; give a function that waits for a line on it and returns the numbers in it.

    A session that is given to the function is kept going meanwhile.
    """
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # Also for writing, so that it never ends.
    unread = b""

    def hear(session: Session | None = None) -> list[int]:
        nonlocal unread
        deadline = monotonic() + WAIT_S
        while b"\n" not in unread:
            assert monotonic() < deadline, f"nobody writes to {path}"
            if session is not None:
                session.pump(0.05, [fd])
            if select([fd], [], [], 0.0 if session is not None else 0.2)[0]:
                unread += os.read(fd, 4096)
        line, _, unread = unread.partition(b"\n")
        return [int(number) for number in line.split()]

    try:
        yield hear
    finally:
        os.close(fd)


def await_death(pid: int, wait_s: float = WAIT_S) -> None:
    """Wait until a process is dead. Fails after a deadline."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    watch = poll()
    watch.register(pidfd, POLLIN)
    dead = watch.poll(wait_s * 1000)
    os.close(pidfd)
    assert dead, f"process {pid} does not die"


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def open_descriptors() -> set[str]:
    """Return what this process holds open, but for mapped recorders, which go with the last view of them."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except OSError:
            continue  # The one that lists the others.
    return {entry for entry in found if not entry.endswith("/recorder")}


class House:
    """A journal with real supervisors, and this process as their client."""

    def __init__(self, folder: Path) -> None:
        self.folder = open_folder(folder)
        self.journal_id = journal_id(self.folder)
        self.recorder = recorder_path(self.folder, self.journal_id)
        self.notes: list[str] = []
        self.sessions: list[Session] = []

    @property
    def supervisor(self) -> int:
        """The supervisor's pid; fails when it is dead."""
        pid = int(holder_of(self.folder)["pid"])
        assert is_alive(pid)
        return pid

    def session(self, batch: str = "b", *, spec: dict[str, Any] | None = None, **options: Any) -> Session:
        """Return a session that is not open yet."""
        given = Options(**{"workers": 2, **options})
        made = Session(
            self.folder,
            batch,
            spec={"durability": "process"} if spec is None else spec,
            options=given,
            key_spec=key_spec(),
            digest="",
            note=self.notes.append,
        )
        self.sessions.append(made)
        return made

    def start(self, items: list[Any], batch: str = "b", **options: Any) -> Session:
        """Open a session and feed it."""
        session = self.session(batch, **options)
        session.open()
        session.feed(blocks_of(items))
        return session

    def finish(self, session: Session) -> None:
        """Follow a session to its end and hang up."""
        pump_until(session, lambda: session.is_over, "it is over")
        session.leave(at_once=False)
        pump_until(session, lambda: session.is_put_down, "it is put down")
        session.close()

    def run(self, items: list[Any], batch: str = "b", **options: Any) -> dict[int, Any]:
        """Run a batch to its end and return its outcomes."""
        self.finish(self.start(items, batch, **options))
        return self.outcomes(batch)

    def facts(self, batch: str = "b") -> BatchFacts:
        """Return what is durable about a batch."""
        journal = BatchJournal(self.folder / "batches" / batch)
        journal.close()
        return journal.facts

    def outcomes(self, batch: str = "b") -> dict[int, Any]:
        """Return every job's result, or its Failure."""
        journal = BatchJournal(self.folder / "batches" / batch)
        found: dict[int, Any] = {}
        for span in Outcomes(journal).spans(journal.facts.done, journal.facts.generation):
            is_good = span.state is JobState.SUCCEEDED
            found |= dict(
                zip(range(span.start, span.stop), span.values(), strict=True) if is_good else span.failures()
            )
        journal.close()
        return found

    def close(self) -> None:
        """Hang up, and see everything of this journal dead."""
        for session in self.sessions:
            session.close()
        pid = int(holder_of(self.folder).get("pid", 0))
        if pid and is_alive(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await_death(pid)
        for worker in tagged(self.journal_id):
            await_death(worker)
        self.recorder.unlink(missing_ok=True)


def blocks_of(items: list[Any], size: int = 500) -> Iterator[Block]:
    """Give input as a source does."""
    for at in range(0, len(items), size):
        part = items[at : at + size]
        yield Block(part, Checkpoint(at + len(part), at + len(part), "digest"))


def pump_until(session: Session, condition: Callable[[], Any], what: str) -> None:
    """Pump until `condition` is true. Fails after a deadline."""
    deadline = monotonic() + WAIT_S
    while not condition():
        assert monotonic() < deadline, f"never: {what}; {session.progress}"
        session.pump(0.05)
