"""What a worker does for the job it runs, when that asks: worker/context.py has the job's side.

Nothing here is called by the worker's loop per job. That a job asks for itself, and not for the one before or from a
child that it forked, is checked each time.
"""

from collections.abc import Callable
from pathlib import Path

from batchd.formats import frame
from batchd.formats.report import ENDED, Report
from batchd.worker import joblog
from batchd.worker.context import CurrentJob
from batchd.worker.inputs import JournalInputs
from batchd.worker.recorder import OFFSET_MASK, POSITION, Lane, Slot


class Service:
    """The `Host` of a worker's jobs."""

    def __init__(self, slot: Slot, batches: Path, inputs: JournalInputs, send: Callable[[list[bytes]], None]) -> None:
        self.is_forked = False
        """Whether this process is a job's child."""
        self._slot = slot
        self._batches = batches
        self._inputs = inputs
        self._send = send
        self._lane = Lane(0, 0, 0, 1, False, "", 0)
        self._kept: tuple[int, bytes] | None = None
        """The last checkpoint of the lease, and of which job it is: it may not be durable yet."""

    def begin(self, lane: Lane) -> None:
        """Serve the jobs of a lease."""
        self._lane, self._kept = lane, None

    def tell_progress(self, job: CurrentJob, fraction: float) -> None:
        """Store it where the supervisor looks when somebody asks."""
        self._slot.tell_progress(self._lease_of(job), job.index, fraction)

    def log(self, job: CurrentJob, text: str) -> None:
        """Write it into the batch's folder."""
        self._lease_of(job)
        joblog.append(self._batches / job.batch, job.index, job.attempt, text)

    def keep(self, job: CurrentJob, payload: bytes) -> None:
        """Send it to the supervisor."""
        meta = ENDED.pack(self._lease_of(job), job.index)
        self._send([frame.encode(Report.CHECKPOINT, meta, len(payload)), payload])
        self._kept = job.index, payload

    def kept(self, job: CurrentJob) -> bytes | None:
        """Return what this attempt left, else what the journal holds."""
        self._lease_of(job)
        if self._kept is not None and self._kept[0] == job.index:
            return self._kept[1]
        return self._inputs.batch(self._lane).note(job.index)

    def is_ending(self, job: CurrentJob) -> bool:
        """Say that the job looks, then look: whoever ends it either sees that, or is seen here."""
        lease = self._lease_of(job)
        self._slot.watch(lease, job.index)
        return self._slot.is_ending(lease)

    def _lease_of(self, job: CurrentJob) -> int:
        """Return the lease under which the job runs, now and here. Raises RuntimeError."""
        if self.is_forked:
            raise RuntimeError(
                "a process that a job forked cannot speak for the job: call this in the job's own process"
            )
        lane = self._lane
        index = lane.first + (self._slot.words[POSITION] & OFFSET_MASK)
        if (job.batch, job.index, job.attempt) != (lane.batch, index, lane.attempt):
            raise RuntimeError(f"job {job.batch}:{job.index} has ended: ask current_job() in the one that runs")
        return lane.lease
