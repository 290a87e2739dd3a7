"""Where each nanosecond of an N1 job goes: batchd's own code paths, one at a time, on the same million integers.

Each part runs alone in this process, on the bytes that the part before it made, with as many reports and commits as a
real run made. All figures are CPU time; what the parts do not explain of a process's CPU time is shown as such.
"""

import gc
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import Any, Final

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler
from batchd.edge import control
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.reports import event_of
from batchd.formats.frame import FrameReader
from batchd.formats.segment import header_of, input_blocks, pack_vector, unpack
from batchd.settings import LANES, LEASE_JOBS_MAX, TRANSCRIPT_BYTES
from batchd.sources import open_source
from batchd.worker.calls import Bundle
from batchd.worker.main import Fds, Place, Worker
from batchd.worker.recorder import SLOT_BYTES, Lane, Slot
from batchd.worker.transcript import Transcript
from benchmarks import batch, compiled
from benchmarks.contest import Setting
from benchmarks.jobs import noop

_WARM_JOBS: Final = 10
_END_TO_END_RUNS: Final = 5
_COMPILED_JOBS: Final = 16_384


@dataclass(slots=True)
class Part:
    """What one part costs."""

    process: str
    part: str
    ns: float
    is_sum: bool = False
    """Whether it is a total: of a process, or of everything."""


class _Clock:
    """Times parts, and gives them per job."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.parts: list[Part] = []

    def time(self, process: str, part: str, call: Callable[[], Any]) -> Any:
        """Run and book a part's CPU time; the best of three, because this is about cost and not about luck."""
        found = None
        best_s = float("inf")
        for _ in range(3):
            gc.collect()
            since = thread_time()
            found = call()
            best_s = min(best_s, thread_time() - since)
        self.add(process, part, best_s)
        return found

    def add(self, process: str, part: str, seconds: float) -> None:
        self.parts.append(Part(process, part, seconds / self.jobs * 1e9))

    def sum_of(self, process: str) -> float:
        return sum(part.ns for part in self.parts if part.process == process and not part.is_sum)


def dissect(setting: Setting) -> dict[str, Any]:
    """Measure an end-to-end run, then every part of it; return both in JSON's types."""
    jobs = setting.jobs(1_000_000, 200_000)
    runs = [_end_to_end(setting, jobs) for _ in range(_END_TO_END_RUNS)]
    whole = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    clock = _Clock(jobs)
    scratch = Path(tempfile.mkdtemp(dir=setting.scratch))
    bodies = _client_parts(clock, jobs)
    segments = _socket_parts(clock, bodies)
    wire = _worker_parts(clock, _inputs(scratch, segments), scratch, jobs)
    acks = _report_parts(clock, wire)
    _scheduler_part(clock, jobs, max(1, jobs // max(1, whole.blocks)))
    _read_part(clock, _journal_part(clock, scratch, segments, acks, max(1, whole.commits)))
    return _told(clock, whole, jobs, len(acks), compiled.loop_s(scratch, noop, range(_COMPILED_JOBS)))


def rows(anatomy: dict[str, Any]) -> list[list[str]]:
    """The table of `dissect`."""
    table = [["process", "part", "ns a job", "of end to end"]]
    for part in anatomy["parts"]:
        share = f"{100 * part['ns'] / anatomy['end_to_end_ns']:.0f} %"
        table.append([part["process"], part["part"], f"{part['ns']:.0f}", share])
    return table


def _end_to_end(setting: Setting, jobs: int) -> batch.Outcome:
    return batch.run_batch(
        setting.scratch,
        batch.Job("benchmarks.jobs", "noop", "disk"),
        range(jobs),
        workers=setting.workers,
        warm=range(_WARM_JOBS),
        reduce=lambda total, part: total + sum(part),
    )


# --- Client and socket ---------------------------------------------------------------------------------------------


def _client_parts(clock: _Clock, jobs: int) -> list[tuple[str, bytes]]:
    def read() -> list[Any]:
        return [(block.items, block.checkpoint) for block in open_source([], range_spec=f"0:{jobs}").blocks()]

    def encode() -> list[tuple[str, bytes]]:
        return [
            (json.dumps(checkpoint.to_json()), b"".join(segment for _, segment in input_blocks(items)))
            for items, checkpoint in blocks
        ]

    blocks = clock.time("client", "read the source", read)
    found: list[tuple[str, bytes]] = clock.time("client", "encode input blocks", encode)
    return found


def _socket_parts(clock: _Clock, bodies: list[tuple[str, bytes]]) -> list[list[bytes]]:
    """Send as client.Connection does, receive and cut as supervisor.Clients does, each timed by itself."""

    def frames() -> Iterator[tuple[bytes, bytes]]:
        for number, (checkpoint, body) in enumerate(bodies):
            fields = {"do": "submit", "number": number, "batch": "b", "client": "c", "sequence": number}
            yield control.encode(control.REQUEST, fields | {"checkpoint": checkpoint}, len(body)), body

    def send() -> None:
        near, far = socket.socketpair()
        drain = threading.Thread(target=_drain, args=(far,))
        drain.start()
        for head, body in frames():
            near.sendall(head)
            near.sendall(body)
        near.close()
        drain.join()

    def receive() -> list[list[bytes]]:
        reader, found = FrameReader(), []
        for at in range(0, len(stream), 1 << 20):
            messages = control.decode(reader.feed(stream[at : at + (1 << 20)]))
            found += [list(_cut(message.body)) for message in messages]
        return found

    clock.time("client", "send (socket)", send)
    stream = b"".join(part for pair in frames() for part in pair)
    segments: list[list[bytes]] = clock.time("supervisor", "parse and cut submissions", receive)
    return segments


def _drain(line: socket.socket) -> None:
    while line.recv(1 << 20):
        pass
    line.close()


def _cut(body: bytes) -> Iterator[bytes]:
    view, at = memoryview(body), 0
    while at < len(view):
        length = header_of(view, at)[3]
        yield bytes(view[at : at + length])
        at += length


def _inputs(scratch: Path, segments: list[list[bytes]]) -> Path:
    """A batch for the worker to read, made before its clock starts."""
    journal = BatchJournal.create(scratch / os.urandom(4).hex(), {"durability": "process"})
    journal.commit(_submissions(journal.folder.name, segments))
    journal.close()
    return journal.folder


# --- Worker --------------------------------------------------------------------------------------------------------


def _worker_parts(clock: _Clock, folder: Path, scratch: Path, jobs: int) -> bytes:
    """Run the real worker loop on a slot in plain memory; return every frame it sent."""
    wire_fd = os.open(scratch / "wire", os.O_RDWR | os.O_CREAT, 0o600)
    capture_fd = os.memfd_create("capture")
    slot = Slot(memoryview(bytearray(SLOT_BYTES)).cast("Q"))
    place = Place(slot, Transcript(memoryview(bytearray(TRANSCRIPT_BYTES))))
    worker = Worker(Bundle(noop), Fds(-1, wire_fd, -1, capture_fd), place, folder.parent)

    def lease_all() -> None:
        os.ftruncate(wire_fd, 0)
        os.lseek(wire_fd, 0, os.SEEK_SET)
        for number, first in enumerate(range(0, jobs, LEASE_JOBS_MAX)):
            stop = min(jobs, first + LEASE_JOBS_MAX)
            lane = Lane(number + 1, first, stop, 1, is_timed=False, batch=folder.name, reach=stop)
            slot.write_lane(number % LANES, lane)
            worker._run_lease(number % LANES)  # noqa: SLF001  (the path that is measured)

    inputs = worker._inputs.batch(Lane(0, 0, 0, 1, is_timed=False, batch=folder.name, reach=0))  # noqa: SLF001

    def decode() -> list[Sequence[Any]]:
        found, index = [], 0
        while index < jobs:
            _, block = inputs.block(index)
            found.append(inputs.plain(block))
            index += block.count
        return found

    # Decoding first: it is inside the whole, and is taken off what is called the loop.
    blocks = clock.time("workers", "read and decode inputs", decode)
    clock.time("workers", "call the task (bare loop)", lambda: [[noop(item) for item in block] for block in blocks])
    clock.time("workers", "everything", lease_all)
    wire = os.pread(wire_fd, os.fstat(wire_fd).st_size, 0)
    results = [
        block.values() for frame in FrameReader().feed(wire) if frame.kind == 2 for block in unpack(frame.body)
    ]
    clock.time("workers", "encode outcomes", lambda: [pack_vector(0, 3, values) for values in results])
    parts = {part.part: part for part in clock.parts if part.process == "workers"}
    whole = parts["everything"]
    clock.parts.remove(whole)
    rest = whole.ns - sum(part.ns for name, part in parts.items() if name != "everything")
    clock.parts.append(Part("workers", "the loop around the call, flushes, writes", rest))
    inputs.close()  # An environment is opened once in a process, and the journal is next.
    os.close(wire_fd)
    os.close(capture_fd)
    return wire


# --- Supervisor ----------------------------------------------------------------------------------------------------


def _report_parts(clock: _Clock, wire: bytes) -> list[ev.JobsAcked]:
    sizes = [len(frame.meta) + len(frame.body) + 20 for frame in FrameReader().feed(wire)]

    def take_in() -> list[ev.Event]:
        reader, found, at = FrameReader(), [], 0
        for size in sizes:
            found += [event_of(1, "", frame) for frame in reader.feed(wire[at : at + size])]
            at += size
        return found

    events = clock.time("supervisor", "parse reports, check CRC", take_in)
    return [event for event in events if isinstance(event, ev.JobsAcked)]


def _scheduler_part(clock: _Clock, jobs: int, report_jobs: int) -> None:
    def play() -> None:
        scheduler = Scheduler(lambda: 0.5)
        scheduler.step([ev.BatchAttached(BatchFacts("b"), ev.Options(workers=2), "k", 1)], 0.0)
        turn = scheduler.step([ev.SegmentsReceived("b", jobs, (), "c", 1, ""), ev.SealRequested("b")], 0.0)
        turn = scheduler.step([ev.Committed(turn.number)], 0.0)
        workers = [order.worker for order in turn.commands if isinstance(order, c.StartWorker)]
        turn = scheduler.step([ev.WorkerReady(worker) for worker in workers], 0.0)
        grants = [order for order in turn.commands if isinstance(order, c.GrantLease)]
        done = 0
        while done < jobs:
            lease = grants.pop(0)
            for first in range(lease.first, lease.stop, report_jobs):
                count = min(report_jobs, lease.stop - first)
                ack = ev.JobsAcked(lease.worker, lease.lease, first, count, JobState.SUCCEEDED, b"", count * 5e-7)
                turn = scheduler.step([ack], 0.0)
                done += count
                grants += [order for order in turn.commands if isinstance(order, c.GrantLease)]
            turn = scheduler.step(
                [ev.LeaseEnded(lease.worker, lease.lease, lease.stop), ev.Committed(turn.number)], 0.0
            )
            grants += [order for order in turn.commands if isinstance(order, c.GrantLease)]

    clock.time("supervisor", "scheduler steps", play)


def _journal_part(
    clock: _Clock, scratch: Path, segments: list[list[bytes]], acks: list[ev.JobsAcked], commits: int
) -> Path:
    """Write all inputs and outcomes in as many commits as the real run made; return the batch's folder."""
    lag = 1 + commits // 8  # All inputs come first: workers are slower than the client.
    span = max(1, commits - lag)

    def write() -> Path:
        journal = BatchJournal.create(scratch / os.urandom(4).hex(), {"durability": "disk"})
        name = journal.folder.name
        given = _submissions(name, segments)
        made: list[e.Entry] = [e.Recorded(name, ack.first, ack.count, ack.state, ack.block) for ack in acks]
        for number in range(commits):
            journal.commit(_share(given, number, lag) + _share(made, number - lag, span))
        journal.close()
        return journal.folder

    folder: Path = clock.time("supervisor", f"write inputs and outcomes ({commits} commits)", write)
    return folder


def _submissions(name: str, segments: list[list[bytes]]) -> list[e.Entry]:
    first, entries = 0, list[e.Entry]()
    for sequence, part in enumerate(segments, 1):
        count = sum(header_of(segment)[1] for segment in part)
        entries.append(e.Submitted(name, first, count, tuple(part), "c", sequence, ""))
        first += count
    return entries


def _share(entries: list[e.Entry], number: int, of: int) -> list[e.Entry]:
    if not 0 <= number < of:
        return []
    return entries[len(entries) * number // of : len(entries) * (number + 1) // of]


def _read_part(clock: _Clock, folder: Path) -> None:
    journal = BatchJournal(folder)
    facts = journal.facts
    clock.time(
        "client",
        "read results back, decode, add up",
        lambda: sum(sum(span.values()) for span in Outcomes(journal).spans(facts.done, facts.generation)),
    )
    journal.close()


# --- What is told --------------------------------------------------------------------------------------------------


def _told(clock: _Clock, whole: batch.Outcome, jobs: int, reports: int, compiled_s: float | None) -> dict[str, Any]:
    used = {
        "client": whole.client_cpu_s,
        "supervisor": whole.supervisor_cpu_s,
        "workers": whole.workers_cpu_s,
    }
    parts: list[Part] = []
    for process, seconds in used.items():
        ns = seconds / jobs * 1e9
        parts += sorted((part for part in clock.parts if part.process == process), key=lambda part: -part.ns)
        parts.append(Part(process, "not explained by these parts", ns - clock.sum_of(process)))
        parts.append(Part(process, "CPU time in the real run", ns, is_sum=True))
    end_ns = whole.seconds / jobs * 1e9
    parts.append(Part("all", "CPU time in the real run", sum(used.values()) / jobs * 1e9, is_sum=True))
    parts.append(Part("all", "end to end, wall", end_ns, is_sum=True))
    return {
        "jobs": jobs,
        "end_to_end_ns": end_ns,
        "explained": [
            f"End to end {whole.seconds:.3f} s (median of {_END_TO_END_RUNS} runs): {whole.blocks:,} reports,",
            f"{whole.records:,} records, {whole.commits:,} commits; the worker's loop alone made {reports:,}.",
            "Figures are CPU time. Processes run side by side, so that shares add up to more than 100 %.",
            _compiled(compiled_s),
        ],
        "parts": [{"process": p.process, "part": p.part, "ns": p.ns, "is_sum": p.is_sum} for p in parts],
    }


def _compiled(seconds: float | None) -> str:
    if seconds is None:
        return (
            "What the worker's loop compiled from C would take is not known: no C compiler, or no headers of Python."
        )
    return (
        f"Compiled from C, the worker's loop and the call in it take {seconds / _COMPILED_JOBS * 1e9:.0f} ns a job."
    )
