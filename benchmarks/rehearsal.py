"""A rehearsal: the real scheduler before workers that only count time, to see how evenly a batch of known jobs ends.

Nothing here reads a clock: the same jobs come to the same end on every machine. What a turn, a message, a commit and
a cut take is set to what they take on a small machine.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.assignment import rest_s
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler
from batchd.settings import ACK_INTERVAL_S, CUT_WAIT_S, REST_S_MIN

_TURN_S: Final = 150e-6
_MESSAGE_S: Final = 50e-6
_COMMIT_S: Final = 2e-3
_BATCH: Final = "b"


def list_schedule_s(lengths_s: Sequence[float], workers: int) -> float:
    """When the last job ends if each worker takes the next of the list whenever it is free.

    >>> list_schedule_s([1.0, 1.0, 4.0], 2), list_schedule_s(sorted([1.0, 1.0, 4.0], reverse=True), 2)
    (5.0, 4.0)
    """
    free_at = [0.0] * workers
    heapify(free_at)
    for length_s in lengths_s:
        heapreplace(free_at, free_at[0] + length_s)
    return max(free_at)


class _Worker:
    """A worker with its pipe: leases in order, jobs one by one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.leases: list[c.GrantLease] = []
        self.limits: dict[int, int] = {}
        self.index = 0
        self.is_running = False
        self.unsent = 0
        self.unsent_s = 0.0


class Rehearsal:
    """One batch of jobs of these lengths before so many workers, all there from the beginning."""

    def __init__(self, lengths_s: Sequence[float], workers: int, costs: Sequence[float] = ()) -> None:
        self.now = 0.0
        self._lengths_s = lengths_s
        self._agenda: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._written = 0
        self._inbox: list[ev.Event] = []
        self._step_at: float | None = None
        self._free_at = 0.0
        """When the supervisor is through with its last turn, and its rest."""
        self._workers: dict[int, _Worker] = {}
        self._scheduler = Scheduler(jitter=lambda: 0.0)
        self._is_committing = False
        self._uncommitted = 0
        self._left = len(lengths_s)
        options = ev.Options(workers=workers)
        self._tell(ev.BatchAttached(BatchFacts(_BATCH), options, "key", 1))
        told = tuple(enumerate(costs))
        self._tell(ev.SegmentsReceived(_BATCH, len(lengths_s), (), "client", 1, "", costs=told))
        self._tell(ev.SealRequested(_BATCH))

    def run(self) -> float:
        """Return when the last job has ended."""
        while self._left:
            self.now, _, call, args = heappop(self._agenda)
            call(*args)
        return self.now

    def _after(self, delay_s: float, call: Any, *args: Any) -> None:
        self._written += 1
        heappush(self._agenda, (self.now + delay_s, self._written, call, args))

    # --- The supervisor --------------------------------------------------------------------------------------

    def _tell(self, event: ev.Event) -> None:
        self._inbox.append(event)
        is_report = isinstance(event, ev.JobsAcked | ev.LeaseEnded)
        due = max(self.now, self._free_at) if is_report else self.now
        if self._step_at is None or due < self._step_at:
            self._step_at = due
            self._after(due - self.now, self._step, due)

    def _step(self, due: float) -> None:
        if self._step_at != due:
            return
        self._step_at = None
        events, self._inbox = self._inbox, []
        turn = self._scheduler.step(events, self.now)
        if turn.entries:
            self._uncommitted = turn.number
            self._commit()
        for command in turn.commands:
            self._after(_TURN_S, self._perform, command)
        rest = rest_s(self._scheduler.workers.values(), self._scheduler.batches)
        self._free_at = self.now + max(_TURN_S, rest if rest >= REST_S_MIN else 0.0)

    def _commit(self) -> None:
        if not self._is_committing and self._uncommitted:
            self._is_committing = True
            self._after(_COMMIT_S, self._committed, self._uncommitted)
            self._uncommitted = 0

    def _committed(self, turn: int) -> None:
        self._is_committing = False
        self._tell(ev.Committed(turn))
        self._commit()

    def _perform(self, command: c.Command) -> None:
        match command:
            case c.StartWorker(worker=number):
                self._workers[number] = _Worker(number)
                self._tell(ev.WorkerReady(number))
            case c.GrantLease(worker=number):
                worker = self._workers[number]
                worker.limits[command.lease] = command.stop
                self._after(_MESSAGE_S, self._receive, worker, command)
            case c.CutLease():
                worker = self._workers[command.worker]
                worker.limits[command.lease] = min(command.stop, worker.limits[command.lease])
                self._after(CUT_WAIT_S, self._read_again, worker, command)
            case _:
                pass

    def _read_again(self, worker: _Worker, cut: c.CutLease) -> None:
        lease = next((lease for lease in worker.leases if lease.lease == cut.lease), None)
        if lease is None:
            return  # It is through with it, or has it still in the pipe, which here comes to the same delay.
        is_first = lease is worker.leases[0]
        stop = max(cut.stop, worker.index + 1) if is_first else cut.stop
        worker.limits[cut.lease] = min(stop, lease.stop)
        self._tell(ev.LeaseCut(worker.number, cut.lease, stop))

    # --- Workers ---------------------------------------------------------------------------------------------

    def _receive(self, worker: _Worker, lease: c.GrantLease) -> None:
        worker.leases.append(lease)
        if not worker.is_running:
            worker.index = lease.first
            self._begin(worker)

    def _begin(self, worker: _Worker) -> None:
        worker.is_running = True
        lease = worker.leases[0]
        if worker.index < worker.limits[lease.lease]:
            length_s = self._lengths_s[worker.index]
            self._after(length_s, self._end, worker, length_s)
            return
        self._report(worker, lease)
        self._after(_MESSAGE_S, self._tell, ev.LeaseEnded(worker.number, lease.lease, worker.index))
        worker.leases.pop(0)
        worker.is_running = bool(worker.leases)
        if worker.leases:
            worker.index = worker.leases[0].first
            self._begin(worker)

    def _end(self, worker: _Worker, length_s: float) -> None:
        self._left -= 1
        worker.index += 1
        worker.unsent += 1
        worker.unsent_s += length_s
        if worker.unsent_s >= ACK_INTERVAL_S:
            self._report(worker, worker.leases[0])
        self._begin(worker)

    def _report(self, worker: _Worker, lease: c.GrantLease) -> None:
        if worker.unsent:
            first = worker.index - worker.unsent
            done = (worker.number, lease.lease, first, worker.unsent, JobState.SUCCEEDED, b"", worker.unsent_s)
            self._after(_MESSAGE_S, self._tell, ev.JobsAcked(*done))
            worker.unsent, worker.unsent_s = 0, 0.0
