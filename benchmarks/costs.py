"""What the pieces of a turn cost on this machine: measured one by one, on the code that really runs.

In a process of its own, because a worker's loop leaves its marks on the process it runs in. CPU time wherever a piece
works, so that other programs do not count; wall time only where it waits.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import EVENT_READ, EpollSelector
from statistics import median
from tempfile import mkdtemp
from time import perf_counter, process_time, sleep, thread_time
from typing import Final, NamedTuple

import psutil

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.gauges import Gauges
from batchd.edge.journal import BatchJournal
from batchd.edge.reports import event_of
from batchd.formats import frame
from batchd.formats.report import ACK, LEASE, NO_FINGERPRINT, Report
from batchd.formats.segment import header_of, input_blocks, pack_vector
from batchd.settings import ACK_INTERVAL_S, LANES, TRANSCRIPT_BYTES
from batchd.worker import output
from batchd.worker.calls import Bundle
from batchd.worker.main import Fds, Place, Worker
from batchd.worker.recorder import SLOT_BYTES, STARTED, Lane, Slot
from batchd.worker.transcript import Transcript

_REPEATS: Final = 7
_PIPES: Final = 64
_TRIPS: Final = 300
_PAUSE_S: Final = 0.001
_COMMITS: Final = 40
_GROUP: Final = 200
"""Entries of a large commit."""
_JOBS: Final = 100


class Costs(NamedTuple):
    """Seconds, each."""

    wake_s: float
    """CPU: to sleep and be woken by another process."""
    hop_s: float
    """Wall: from one process's write until another one runs."""
    report_s: float
    """CPU: to read and parse a report of one job."""
    grant_s: float
    """CPU: to describe a lease in the recorder and send it."""
    commit_s: float
    """CPU: a commit."""
    entry_s: float
    """CPU: each entry in it."""
    disk_s: float
    """Wall: what a commit waits for the disk."""
    job_s: float
    """A worker's own time a job, with its report."""
    lease_s: float
    """A worker's own time a lease."""
    gauge_s: float
    """CPU: to read what one worker uses."""
    observe_s: float
    """CPU: to read where it is."""


def measured(scratch: Path) -> Costs:
    """Measure, in another process."""
    command = [sys.executable, "-m", "benchmarks.costs", str(scratch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return Costs(**json.loads(done.stdout))


def _measure(scratch: Path) -> Costs:
    wake_s, hop_s = _wake()  # First: it forks.
    commit_s, entry_s, disk_s = _commit(scratch)
    job_s, lease_s = _worker(scratch)
    pids = psutil.pids()[:_PIPES]
    gauges = Gauges()
    gauges.sample(pids)
    return Costs(
        wake_s=wake_s,
        hop_s=hop_s,
        report_s=_report(),
        grant_s=_grant(),
        commit_s=commit_s,
        entry_s=entry_s,
        disk_s=disk_s,
        job_s=job_s,
        lease_s=lease_s,
        gauge_s=_best(lambda: gauges.sample(pids)) / len(pids),
        observe_s=_observe(),
    )


def _best(call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The least CPU time of several tries."""
    found = []
    for _ in range(_REPEATS):
        before()
        since = thread_time()
        call()
        found.append(thread_time() - since)
    return min(found)


def _wake() -> tuple[float, float]:
    """Be woken by another process, again and again after a pause, as a supervisor is."""
    wake, its_wake = os.pipe()
    child = os.fork()
    if child == 0:
        for _ in range(_TRIPS):
            sleep(_PAUSE_S)
            os.write(its_wake, struct.pack("d", perf_counter()))
        os._exit(0)
    selector = EpollSelector()
    selector.register(wake, EVENT_READ)
    hops = []
    cpu_s = process_time()
    for _ in range(_TRIPS):
        selector.select(None)
        (sent,) = struct.unpack("d", os.read(wake, 8))
        hops.append(perf_counter() - sent)
    cpu_s = (process_time() - cpu_s) / _TRIPS
    os.waitpid(child, 0)
    os.close(wake)
    os.close(its_wake)
    return cpu_s, median(hops)


def _report() -> float:
    block = pack_vector(1_000_000, JobState.SUCCEEDED, [1.0])
    sent = frame.encode(Report.ACK, ACK.pack(1, 1_000_000, NO_FINGERPRINT), len(block)) + block
    selector = EpollSelector()
    pipes = [os.pipe() for _ in range(_PIPES)]

    def take(fd: int, reader: frame.FrameReader) -> None:
        for each in reader.feed(os.read(fd, 1 << 20)):
            event_of(1, "", each)

    for fd, _ in pipes:
        reader = frame.FrameReader()
        selector.register(fd, EVENT_READ, lambda fd=fd, reader=reader: take(fd, reader))

    def send() -> None:
        for _, fd in pipes:
            os.write(fd, sent)

    def take_all() -> None:
        for key, _ in selector.select(0):
            key.data()

    return _best(take_all, send) / _PIPES


def _grant() -> float:
    slot = Slot(memoryview(bytearray(SLOT_BYTES)).cast("Q"))
    drain, fd = os.pipe()
    os.set_blocking(drain, False)

    def grant() -> None:
        for number in range(_PIPES):
            slot.write_lane(number % LANES, Lane(number, 0, 75, 1, is_timed=False, batch="0123456", reach=75))
            os.write(fd, LEASE.pack(number, number % LANES))

    return _best(grant, lambda: _drain(drain)) / _PIPES


def _drain(fd: int) -> None:
    try:
        os.read(fd, 1 << 16)
    except BlockingIOError:
        pass


def _observe() -> float:
    slot = Slot(memoryview(bytearray(SLOT_BYTES)).cast("Q"))
    capture_fd = os.memfd_create("capture")

    def observe() -> None:
        for _ in range(_PIPES):
            slot.position()
            slot.position()
            output.free_head(capture_fd)
            slot.words[STARTED]

    return _best(observe) / _PIPES


def _batch(scratch: Path, jobs: int) -> BatchJournal:
    journal = BatchJournal.create(scratch / os.urandom(4).hex(), {"durability": "disk"})
    segments = tuple(segment for _, segment in input_blocks(list(range(jobs))))
    assert sum(header_of(segment)[1] for segment in segments) == jobs
    journal.commit([e.Submitted(journal.folder.name, 0, jobs, segments, "c", 1, "")])
    return journal


def _commit(scratch: Path) -> tuple[float, float, float]:
    journal = _batch(scratch, _COMMITS * (1 + _GROUP))
    name, at = journal.folder.name, 0

    def entries(count: int) -> Iterator[e.Entry]:
        nonlocal at
        for first in range(at, at + count):
            yield e.Recorded(name, first, 1, JobState.SUCCEEDED, pack_vector(first, JobState.SUCCEEDED, [1.0]))
        at += count

    found: dict[int, tuple[float, float]] = {}
    for size in (1, _GROUP):
        cpu, wall = [], []
        for _ in range(_COMMITS):
            made = list(entries(size))
            since, cpu_since = perf_counter(), process_time()
            journal.commit(made)
            cpu.append(process_time() - cpu_since)
            wall.append(perf_counter() - since)
        found[size] = median(cpu), median(wall)
    journal.close()
    entry_s = max(0.0, (found[_GROUP][0] - found[1][0]) / (_GROUP - 1))
    return found[1][0], entry_s, max(0.0, found[1][1] - found[1][0])


def _worker(scratch: Path) -> tuple[float, float]:
    """Run the real worker's loop on jobs that are long enough to be reported one by one."""
    inside: list[float] = []

    def job(_: int) -> float:
        since = thread_time()
        until = perf_counter() + ACK_INTERVAL_S
        while perf_counter() < until:
            pass
        inside.append(thread_time() - since)
        return since

    journal = _batch(scratch, 2 * _JOBS)
    journal.close()
    drain, wire = os.pipe()
    os.set_blocking(drain, False)
    slot = Slot(memoryview(bytearray(SLOT_BYTES)).cast("Q"))
    place = Place(slot, Transcript(memoryview(bytearray(TRANSCRIPT_BYTES))))
    worker = Worker(Bundle(job), Fds(-1, wire, -1, os.memfd_create("capture")), place, journal.folder.parent)

    def outside(leases: int) -> float:
        inside.clear()
        since = thread_time()
        size = _JOBS // leases
        for number in range(leases):
            first = number * size
            lane = Lane(
                number + 1, first, first + size, 1, is_timed=False, batch=journal.folder.name, reach=first + size
            )
            slot.write_lane(number % LANES, lane)
            worker._run_lease(number % LANES)  # noqa: SLF001  (the path that is measured)
        spent = thread_time() - since - sum(inside)
        _drain(drain)
        return spent

    outside(1)  # Opens the journal.
    one = min(outside(1) for _ in range(3))
    many = min(outside(_JOBS) for _ in range(3))
    return one / _JOBS, max(0.0, many - one) / (_JOBS - 1)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(mkdtemp(dir=sys.argv[1])))._asdict()))
