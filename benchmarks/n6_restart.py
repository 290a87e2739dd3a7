"""N6: a supervisor killed when half of a batch is done: how soon after the next one's start a job runs again.

The journal is what real workers made of real jobs. Jobs of 1 ms sleep, so that many more workers than cores get
through ten million of them in minutes. How it grows with the batch is seen with jobs that do not sleep.
"""

import os
import signal
import time
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Final, NamedTuple

import psutil

from batchd.client import Session
from batchd.client.connection import connect
from batchd.core.facts import BatchFacts
from batchd.core.ranges import RangeSet
from batchd.edge.folder import open_folder, remove_journal
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.edge.outcomes import Outcomes
from batchd.formats import tables
from benchmarks.batch import Job, await_gone, blocks_of, cpu_s, new_session, processes
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting, Work
from benchmarks.figures import growing
from benchmarks.n5_scale import FULL_JOBS, QUICK_JOBS

TO_FIRST_JOB: Final = "start to the first job, s"
READY: Final = "start to ready, s"
WORKED: Final = "supervisor's CPU until open, s"
READING: Final = "reading the journal once, s"
_GOAL_S: Final = 1.0
_NAPPERS: Final = 64
_STANDSTILL_S: Final = 120.0
_TRIES: Final = 5
_COUNTED: Final = (
    "from the moment a client asks for a supervisor (no process of the last one is alive) to the first job of the "
    "batch that begins, by the job's own clock. The last supervisor was killed when half of the jobs were done; "
    "right is what came out when every outcome from before its death is still there, as old as it was"
)


class Restarted(NamedTuple):
    """What a restart came to."""

    to_first_job_s: float
    to_ready_s: float
    """Until the supervisor can be asked: interpreter, imports, what the dead one left."""
    to_open_s: float
    """Until the batch is open: its task imported, its journal read."""
    supervisor_cpu_s: float
    """What the supervisor worked for that: without what other programs took meanwhile."""
    replay_s: float
    """Of that, reading the journal once; measured in another process, before."""
    ranges: int
    """How many ranges of finished jobs there were."""
    records: int
    """How many outcome records lay in the journal."""
    jobs_kept: int
    """Outcomes from before that are as they were."""
    jobs_done: int
    """Outcomes there were before."""


def contests(setting: Setting) -> list[Contest]:
    """Ten million jobs of 1 ms; and batches of each size."""
    naps = setting.jobs(10_000_000, 100_000)
    sizes = growing(setting.jobs(FULL_JOBS, QUICK_JOBS))
    names = [f"{size:,} jobs" for size in sizes]
    return [
        _contest(
            "jobs of 1 ms, half of them done",
            (_contender(setting, "batchd", range(naps), "nap_ms", _NAPPERS),),
            (Goal("batchd", _GOAL_S, figure=TO_FIRST_JOB, is_maximum=True),),
        ),
        _contest(
            "jobs, half of them done: how a restart grows",
            tuple(
                _contender(setting, name, range(-size // 2, size - size // 2), "nap_if_not_negative", setting.workers)
                for name, size in zip(names, sizes, strict=True)
            ),
            (),
        ),
    ]


def _contest(title: str, contenders: tuple[Contender, ...], goals: tuple[Goal, ...]) -> Contest:
    jobs = contenders[-1].work.jobs if contenders[-1].work else 0
    return Contest(
        number="N6",
        title=title,
        jobs=jobs,
        expected_checksum=0,
        contenders=contenders,
        goals=goals,
        counted=_COUNTED,
        rounds_max=1,
    )


def _contender(setting: Setting, name: str, numbers: range, task: str, workers: int) -> Contender:
    return Contender(name, "disk", partial(_run, setting, numbers, task, workers), Work(len(numbers), 0))


def _run(setting: Setting, numbers: range, task: str, workers: int) -> Sample:
    made = restart(setting.scratch, Job("benchmarks.jobs", task, "disk"), numbers, workers)
    figures = {
        TO_FIRST_JOB: made.to_first_job_s,
        READY: made.to_ready_s,
        "start to open, s": made.to_open_s,
        WORKED: made.supervisor_cpu_s,
        READING: made.replay_s,
        "jobs done before": made.jobs_done,
        "ranges of finished jobs": made.ranges,
        "outcome records": made.records,
    }
    return Sample(made.to_first_job_s, len(numbers), made.jobs_done - made.jobs_kept, figures)


class NothingLeft(Exception):
    """All jobs were done before the supervisor was killed."""


def restart(scratch: Path, job: Job, numbers: range, workers: int) -> Restarted:
    """Run half of a batch, kill its supervisor, start another; wait until it has run a job.

    On a busy machine the kill of a small batch may come too late: then once more.
    """
    for _ in range(_TRIES):
        with suppress(NothingLeft):
            return _restart(scratch, job, numbers, workers)
    raise NothingLeft(f"{len(numbers):,} jobs end before their supervisor can be killed, {_TRIES} times of {_TRIES}")


def _restart(scratch: Path, job: Job, numbers: range, workers: int) -> Restarted:
    folder = open_folder(Path(mkdtemp(dir=scratch)))
    try:
        with new_session(folder, job, workers, "batch", follows=True) as session:
            session.feed(blocks_of(numbers))
            _await(session, len(numbers), len(numbers) // 2)
            kill_supervisor(folder)
            path = session.folder / "batches" / session.batch
            session.close()
            session.is_put_down = True
        since = time.monotonic()
        journal = BatchJournal(path)
        replay_s = time.monotonic() - since
        before = journal.facts
        since = time.monotonic()
        connection = connect(folder)
        ready = time.monotonic()
        with new_session(folder, job, workers, "batch", follows=True) as session:
            opened = time.monotonic()
            supervisor_cpu_s = cpu_s(processes(folder)[0])
            connection.close()
            kept_done = session.progress["done"]  # What transcripts had kept is among it.
            if kept_done == len(numbers):
                raise NothingLeft
            _await(session, len(numbers), kept_done + 1)
        first = _first_run(journal, before, since)
        kept, records = _kept(journal, before.done, since)
        journal.close()
        return Restarted(
            to_first_job_s=first - since,
            to_ready_s=ready - since,
            to_open_s=opened - since,
            supervisor_cpu_s=supervisor_cpu_s,
            replay_s=replay_s,
            ranges=len(before.done),
            records=records,
            jobs_kept=kept,
            jobs_done=before.done.size,
        )
    finally:
        await_gone(folder)
        remove_journal(folder)


def _await(session: Session, size: int, done: int) -> None:
    """Wait until the batch has all its jobs and so many are done."""
    seen, since = -1, time.monotonic()
    while session.progress["size"] < size or session.progress["done"] < done:
        session.pump(0.05)
        now = time.monotonic()
        if session.progress["done"] + session.progress["size"] != seen:
            seen, since = session.progress["done"] + session.progress["size"], now
        if now - since > _STANDSTILL_S:
            raise TimeoutError(f"nothing happened for {_STANDSTILL_S:.0f} s: {session.progress}")


def kill_supervisor(folder: Path) -> None:
    """Kill the supervisor of a journal, and see it and everybody it had started dead."""
    supervisor = psutil.Process(int(holder_of(folder)["pid"]))
    all_of_them = [supervisor, *supervisor.children(recursive=True)]
    os.kill(supervisor.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(all_of_them, timeout=30)
    if alive:
        raise TimeoutError(f"the supervisor was killed and {len(alive)} of its processes are still alive")


def _first_run(journal: BatchJournal, before: BatchFacts, since: float) -> float:
    """When the first job after `since` began whose outcome came after `before`."""
    facts = journal.refresh()
    new = RangeSet(chain.from_iterable(before.done.gaps(start, stop) for start, stop in facts.done))
    spans = Outcomes(journal).spans(new, facts.generation)
    return min(float(began) for span in spans for began in span.values() if began >= since)


def _kept(journal: BatchJournal, done: RangeSet, until: float) -> tuple[int, int]:
    """How many jobs of `done` have an outcome of before `until`, and in how many records outcomes lie."""
    kept = 0
    for span in Outcomes(journal).spans(done, journal.facts.generation):
        kept += sum(1 for began in span.values() if began < until)
    with journal.begin() as txn:
        return kept, int(txn.stat(db=journal.table(tables.OUTCOMES))["entries"])
