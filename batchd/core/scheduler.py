"""The scheduler: events in, entries and commands out. It decides everything and touches nothing.

Law: what an entry frees (a job that was charged, new input, a recorder lane) is used only after `Committed` says
that the entry is durable. What needs no entry (a first lease, a kill) leaves at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.books import Held, Kill, LiveBatch, Worker, WorkerState
from batchd.core.crew import Crew
from batchd.core.facts import apply
from batchd.core.job import Cause, History, JobState, Verdict, after
from batchd.core.lease import Lease, reach
from batchd.core.ranges import Range
from batchd.core.restart import RestartIntensity
from batchd.core.retry import bucket, delay_s
from batchd.core.stopping import reason_to_stop
from batchd.settings import SHORT_S
from batchd.units import format_size

_CHANGES_NOTHING = (
    *(ev.JobsAcked, ev.CauseExplained, ev.CheckpointReceived, ev.WorkerObserved, ev.Committed),
    *(ev.SegmentsReceived, ev.FunctionReceived, ev.TrimRequested),  # Their jobs are held until they are durable.
    ev.ClientLeft,
)
"""Events that by themselves give nobody work and free nobody: most steps are made of these alone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step decided. `entries` must be durable before what they free is used."""

    number: int
    entries: list[e.Entry]
    commands: list[c.Command]


class Scheduler:
    """The books of all live batches and workers, and `step`, the only way to change them."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.batches: dict[str, LiveBatch] = {}
        self.crew = Crew(self.batches)
        self.workers = self.crew.workers
        self._jitter = jitter
        self._intensity: dict[str, RestartIntensity] = {}
        """Of the keys of live batches, which are all it could stop."""
        self._turn = 0
        self._entry_turn = 0
        """The last turn that had entries: what waits for durability waits for this one."""
        self._committed = 0
        self._is_paused = False
        """Whether the disk is full: nothing more begins, for its outcome could only wait in memory."""
        self._retired: list[tuple[int, int]] = []
        """(turn, worker): gone workers to forget once the turn is durable."""
        self._entries: list[e.Entry] = []

    @property
    def scaled(self) -> int | None:
        """The worker count somebody ordered, None when the batches decide."""
        return self.crew.scaled

    # --- The one door ---------------------------------------------------------------------------------------

    def step(self, events: Iterable[ev.Event], now: float) -> Turn:
        """Take in what happened by `now` (monotonic seconds) and return what follows."""
        self._turn += 1
        self._entries, self.crew.orders = [], []
        changes_assignment = self._is_paused  # It may be over with this step.
        for event in events:
            changes_assignment |= not isinstance(event, _CHANGES_NOTHING)
            self._on(event, now)
        for batch in list(self.batches.values()):
            self._finish_leaving(batch)
        changes_assignment |= self._release()
        for batch in self.batches.values():
            changes_assignment |= batch.wake(now)
        changes_assignment |= self.crew.wake(now)
        if changes_assignment:
            self.crew.balance(now)
        if changes_assignment and not self._is_paused:
            self.crew.grant_leases(now)
        self.crew.steal(now)  # A lease may turn out slow at any report.
        return Turn(self._turn, self._entries, self.crew.orders)

    def next_due(self) -> float | None:
        """Return when the next backoff ends, None when nothing waits."""
        short = [] if self.crew.short_until is None else [self.crew.short_until]
        return min((*short, *(due for batch in self.batches.values() for due in batch.waiting)), default=None)

    def check(self) -> None:
        """Assert the invariants; for tests and simulations."""
        held = {lease.number for worker in self.workers.values() for lease in worker.leases}
        for batch in self.batches.values():
            batch.check()
            assert set(batch.leases) <= held, "a lease without a worker"
        assert self._intensity.keys() == {batch.key for batch in self.batches.values()}
        self.crew.check()

    def _on(self, event: ev.Event, now: float) -> None:
        match event:
            case ev.JobsAcked():
                self._on_acked(event, now)
            case ev.LeaseEnded() | ev.LeaseCut():
                self._on_lease_stop(event)
            case ev.WorkerReady(worker=number):
                if number in self.workers and self.workers[number].state is WorkerState.STARTING:
                    self.workers[number].state = WorkerState.READY
            case ev.WorkerGone():
                self._on_gone(event, now)
            case ev.WorkerObserved():
                self._on_observed(event)
            case ev.CauseExplained():
                self._on_explained(event)
            case ev.CheckpointReceived():
                self._on_checkpoint(event)
            case ev.Committed(turn=turn):
                self._committed, self._is_paused = turn, False
            case ev.DiskFilled():
                self._is_paused = True
            case ev.ScaleRequested(workers=workers):
                self.crew.scaled = workers
                for batch in self.batches.values():
                    batch.scaled = workers
            case ev.KeyFailed(key=key, reason=reason):
                self._on_key_failed(key, reason)
            case ev.BatchAttached():
                self._on_attached(event)
            case _:
                if event.batch in self.batches:
                    self._on_batch_event(event, self.batches[event.batch])

    # --- Batches --------------------------------------------------------------------------------------------

    def _on_attached(self, event: ev.BatchAttached) -> None:
        facts = event.facts
        batch = self.batches[facts.batch] = LiveBatch(facts, event.options, event.key)
        self._intensity.setdefault(event.key, RestartIntensity())
        batch.scaled = self.scaled
        self._record(e.Attached(facts.batch, event.stint))
        for start, stop in list(facts.done.gaps(0, facts.size)):
            self._give_back(batch, start, stop)

    def _on_batch_event(self, event: ev.Event, batch: LiveBatch) -> None:
        facts = batch.facts
        match event:
            case ev.SegmentsReceived():
                self._on_segments(event, batch)
            case ev.FunctionReceived(mark=mark, payload=payload):
                self._record(e.Defined(facts.batch, mark, payload))
            case ev.WithdrawRequested(ranges=ranges):
                self._withdraw(batch, ranges)
            case ev.TrimRequested(ranges=ranges, marks=marks):
                asked = [part for start, stop in ranges for part in facts.done.overlap(start, stop)]
                self._record(e.Trimmed(facts.batch, tuple(asked), marks))
            case ev.SealRequested():
                if not facts.is_sealed:
                    self._record(e.Sealed(facts.batch))
            case ev.UnsealRequested():
                if facts.is_sealed and not facts.cancelled:
                    self._record(e.Unsealed(facts.batch))
            case ev.ClientLeft(client=client):
                if client in facts.sequences:
                    self._record(e.Left(facts.batch, client))
            case ev.DetachRequested(at_once=at_once):
                batch.is_leaving = True
                self._halt(batch, kill=at_once)
            case ev.JournalLost(reason=reason):
                self._stop_batch(batch, reason, kill=True)
            case ev.CancelRequested(reason=reason):
                self._cancel(batch, reason)
            case ev.ReopenRequested():
                self._reopen(event, batch)
            case _:
                raise AssertionError(f"no rule for {event!r}")

    def _on_segments(self, event: ev.SegmentsReceived, batch: LiveBatch) -> None:
        facts = batch.facts
        if event.sequence <= facts.sequences.get(event.client, (0, 0))[0] or facts.is_sealed:
            return  # Resubmitted after a lost reply, or too late: nothing to add.
        first = facts.size
        self._record(
            e.Submitted(
                batch=facts.batch,
                first=first,
                count=event.count,
                segments=event.segments,
                client=event.client,
                sequence=event.sequence,
                checkpoint=event.checkpoint,
                keys=event.keys,
                costs=event.costs,
            )
        )
        batch.held.append(Held(self._entry_turn, first, facts.size, None))

    def _withdraw(self, batch: LiveBatch, ranges: Iterable[Range]) -> None:
        """Cancel what has not begun of some jobs. How far a lease got is known when it has been cut."""
        for start, stop in ranges:
            batch.unwanted.add(start, stop)
            for part in batch.take_unwanted(start, stop):
                self._give_back(batch, *part)
        for number in list(batch.workers):
            worker = self.workers[number]
            for lease in worker.leases:
                first = next(batch.unwanted.overlap(lease.next, lease.stop), None)
                if lease.batch == batch.facts.batch and first is not None:
                    self.crew.cut(worker, lease, first[0])

    def _cancel(self, batch: LiveBatch, reason: str) -> None:
        if batch.facts.cancelled or batch.facts.is_finished:
            return
        self._record(e.CancelOrdered(batch.facts.batch, reason))
        for start, stop in batch.unleased():
            self._give_back(batch, start, stop)
        self._halt(batch, kill=True)

    def _reopen(self, event: ev.ReopenRequested, batch: LiveBatch) -> None:
        facts = batch.facts
        if event.generation not in {None, facts.generation}:
            return  # Read from a journal that did not hold the last reopening yet.
        generation = facts.generation + 1
        for state, asked in event.ranges:  # Somebody else may have reopened some of them already.
            ranges = tuple(part for start, stop in asked for part in facts.done.overlap(start, stop))
            if ranges or facts.cancelled:
                self._record(e.Reopened(facts.batch, generation, ranges, state))
            if event.is_replaced:
                for start, stop in ranges:
                    self._record(e.Recorded(facts.batch, start, stop - start, JobState.CANCELLED))
            else:
                batch.held += [Held(self._entry_turn, start, stop, None) for start, stop in ranges]
                for part in ranges:
                    batch.unwanted.remove(*part)

    def _stop_batch(self, batch: LiveBatch, reason: str, *, kill: bool = False) -> None:
        if batch.may_stop:
            self._record(e.Stopped(batch.facts.batch, reason))
            self._halt(batch, kill=kill)

    def _halt(self, batch: LiveBatch, *, kill: bool) -> None:
        """Take back what has not begun; end what runs only if told to."""
        for number in list(batch.workers):
            worker = self.workers[number]
            for lease in worker.leases:
                if lease.batch == batch.facts.batch:
                    self.crew.cut(worker, lease, lease.next, is_ending=True)
            if kill:
                self.crew.kill(worker, Kill(None, 0), "", has_grace=True)

    def _finish_leaving(self, batch: LiveBatch) -> None:
        if batch.is_leaving and not batch.leases and batch.facts.is_attached:
            self._record(e.Detached(batch.facts.batch))

    def _on_key_failed(self, key: str, reason: str) -> None:
        for batch in self.batches.values():
            if batch.key == key:
                self._stop_batch(batch, reason)

    # --- Jobs -----------------------------------------------------------------------------------------------

    def _on_acked(self, event: ev.JobsAcked, now: float) -> None:
        worker, lease = self.crew.find(event.worker, event.lease)
        if worker is None or lease is None:
            return  # Fenced: the lease is not this worker's any more.
        stop = event.first + event.count
        if event.first != lease.next or stop > lease.stop:
            self.crew.kill(worker, Kill(None, 0), "")  # It breaks the protocol; its unreported jobs run again.
            return
        batch = self.batches[lease.batch]
        lease.next, worker.reported_at = stop, now
        batch.measure(lease, event.count, event.busy_s)
        self._intensity[worker.key].progress()
        if event.state is JobState.SUCCEEDED:
            batch.sole_fingerprint = b""
            self._record(e.Recorded(lease.batch, event.first, event.count, JobState.SUCCEEDED, event.block))
            return
        is_terminal = self._settle(batch, event.first, stop, lease.history, Cause.FAILURE, now, event.block)
        if is_terminal:
            self._apply_stop_rules(batch, event.fingerprint)

    def _settle(
        self,
        batch: LiveBatch,
        start: int,
        stop: int,
        history: History,
        cause: Cause,
        now: float,
        block: bytes = b"",
        failure: bytes = b"",
    ) -> bool:
        """Decide what becomes of begun jobs that did not succeed; return whether they have an outcome now."""
        facts = batch.facts
        if facts.cancelled and cause is not Cause.FAILURE:
            cause = Cause.CANCEL
        verdict = after(history, cause, batch.options.allowances)
        state = verdict.state
        if not state.is_final and facts.cancelled:
            state, block, failure = JobState.CANCELLED, b"", b""
        if state.is_final:
            self._record(e.Recorded(facts.batch, start, stop - start, state, block, failure))
            return True
        for low, high in batch.unwanted.overlap(start, stop):
            self._record(e.Recorded(facts.batch, low, high - low, JobState.CANCELLED))
        for low, high in batch.unwanted.gaps(start, stop):
            self._charge(batch, low, high, verdict, now)
        return False

    def _charge(self, batch: LiveBatch, start: int, stop: int, verdict: Verdict, now: float) -> None:
        """Record what begun jobs have been through, and hold them back until that is durable."""
        self._record(e.Charged(batch.facts.batch, start, stop - start, verdict.history))
        due = None
        if verdict.state is JobState.BACKOFF:
            wait_s = delay_s(verdict.history.failures + verdict.history.crashes, self._jitter())
            due = bucket(now, wait_s)
        batch.held.append(Held(self._entry_turn, start, stop, due))

    def _give_back(self, batch: LiveBatch, start: int, stop: int) -> None:
        """Put unbegun jobs back where they came from: nothing is known about them, so nothing is recorded."""
        if start >= stop:
            return
        if batch.facts.cancelled:
            self._record(e.Recorded(batch.facts.batch, start, stop - start, JobState.CANCELLED))
            return
        for low, high in batch.unwanted.overlap(start, stop):
            self._record(e.Recorded(batch.facts.batch, low, high - low, JobState.CANCELLED))
        for low, high in batch.unwanted.gaps(start, stop):
            if self._committed >= self._entry_turn:
                batch.put(low, high, None)
            else:
                batch.held.append(Held(self._entry_turn, low, high, None))

    def _apply_stop_rules(self, batch: LiveBatch, fingerprint: bytes) -> None:
        if batch.sole_fingerprint is None:
            batch.sole_fingerprint = fingerprint
        elif batch.sole_fingerprint != fingerprint:
            batch.sole_fingerprint = b""
        reason = reason_to_stop(batch.facts, batch.options, are_alike=bool(batch.sole_fingerprint))
        if reason is not None:
            self._stop_batch(batch, reason)

    # --- Workers --------------------------------------------------------------------------------------------

    def _on_lease_stop(self, event: ev.LeaseEnded | ev.LeaseCut) -> None:
        worker, lease = self.crew.find(event.worker, event.lease)
        if worker is None or lease is None:
            return  # It ended while its limit was being written.
        if isinstance(event, ev.LeaseEnded) and event.stop != lease.next:
            self.crew.kill(worker, Kill(None, 0), "")  # It skipped jobs: they run again.
            return
        batch = self.batches[lease.batch]
        stop = max(event.stop, lease.next)
        unbegun = (stop, lease.stop)
        lease.stop = min(stop, lease.stop)
        self._give_back(batch, *unbegun)
        if isinstance(event, ev.LeaseEnded):
            self._close_lease(worker, lease)
            return
        lease.is_cutting = False
        if lease.cut_next is not None:
            wanted, lease.cut_next = lease.cut_next, None
            self.crew.cut(worker, lease, max(wanted, lease.next))

    def _close_lease(self, worker: Worker, lease: Lease) -> None:
        batch = self.batches[lease.batch]
        batch.pace.lease_done(lease.next - lease.first)
        batch.take_back(worker.number, lease)
        worker.leases.remove(lease)
        worker.used_lanes.append((self._entry_turn, lease.lane))
        if worker.state is WorkerState.STOPPING and not worker.leases:
            self.crew.orders.append(c.StopWorker(worker.number))

    def _on_gone(self, event: ev.WorkerGone, now: float) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        charged = False
        for lease in worker.leases:
            self.batches[lease.batch].take_back(worker.number, lease)
        for lease in worker.leases:
            charged |= self._return_lease(worker, lease, event, now)
        self._retired.append((self._entry_turn, worker.number))
        if event.is_short and any(other.key == worker.key and other.is_staying for other in self.workers.values()):
            self.crew.short_until = now + SHORT_S  # Without the others it is a death, or nobody would ever be told.
            return
        is_death = bool(event.cause) and not charged and worker.is_staying
        intensity = self._intensity.get(worker.key)
        if is_death and intensity is not None and intensity.death(now):
            self._on_key_failed(worker.key, f"workers keep dying without finishing a job: {event.cause}")
            intensity.progress()

    def _return_lease(self, worker: Worker, lease: Lease, event: ev.WorkerGone, now: float) -> bool:
        """Take back a dead worker's lease; return whether a job was charged for the death."""
        batch = self.batches[lease.batch]
        begun, running = reach(lease.number, lease.next, lease.stop, event.position)
        innocent = begun if running is None else running
        if lease.next < innocent:
            if running is None and worker.kill is None:
                batch.unexplained.add(lease.next, innocent)
            self._settle(batch, lease.next, innocent, lease.history, Cause.REPLAY, now)
        cause = Cause.REPLAY
        if running is not None:
            is_stop = batch.is_leaving and event.is_terminated  # Of everything at once: its supervisor heard it, too.
            cause = Cause.REPLAY if is_stop else self._blame(worker, lease, running)
            if self._settle(batch, running, begun, lease.history, cause, now, failure=event.failure):
                self._intensity[worker.key].progress()
                self._apply_stop_rules(batch, event.cause.encode())
        self._give_back(batch, begun, lease.stop)
        return cause is not Cause.REPLAY

    @staticmethod
    def _blame(worker: Worker, lease: Lease, index: int) -> Cause:
        if worker.kill is None:
            return Cause.CRASH
        return Cause.FAILURE if worker.kill == Kill(lease.number, index) else Cause.REPLAY

    def _on_observed(self, event: ev.WorkerObserved) -> None:
        worker, lease = self.crew.find(event.worker, event.position.lease)
        if worker is None or lease is None or worker.kill or event.position.phase is not ev.Phase.RUNNING:
            return
        options = self.batches[lease.batch].options
        target = Kill(lease.number, event.position.index)
        if options.timeout_s is not None and event.running_s > options.timeout_s:
            self.crew.kill(worker, target, f"timed out after {event.running_s:.1f} s", with_stack=True)
        elif options.memory_bytes_max is not None and event.memory_bytes > options.memory_bytes_max:
            used, limit = format_size(event.memory_bytes), format_size(options.memory_bytes_max)
            self.crew.kill(worker, target, f"memory {used} > {limit} (memory per job)")

    def _on_explained(self, event: ev.CauseExplained) -> None:
        _, lease = self.crew.find(event.worker, event.lease)
        if lease is not None:
            self._record(e.Explained(lease.batch, event.fingerprint, event.text))

    def _on_checkpoint(self, event: ev.CheckpointReceived) -> None:
        _, lease = self.crew.find(event.worker, event.lease)
        if lease is not None and lease.next <= event.index < lease.stop:  # Else it has an outcome, or is another's.
            self._record(e.Noted(lease.batch, event.index, event.payload))

    # --- After the events: release, balance, lease, steal ---------------------------------------------------

    def _release(self) -> bool:
        """Let go what waited for durability; return whether leases may come of it."""
        committed = self._committed if self._committed < self._entry_turn else self._turn
        freed = [batch.release(committed) for batch in self.batches.values()]
        freed += [worker.release_lanes(committed) for worker in self.workers.values() if worker.used_lanes]
        self.crew.orders += [c.ForgetWorker(number) for turn, number in self._retired if turn <= committed]
        self._retired = [(turn, number) for turn, number in self._retired if turn > committed]
        for name, batch in list(self.batches.items()):
            if not batch.facts.is_attached and batch.entry_turn <= committed:
                del self.batches[name]
                if all(other.key != batch.key for other in self.batches.values()):
                    del self._intensity[batch.key]
                self.crew.orders.append(c.PutDown(name))
                freed.append(True)
        return any(freed)

    # --- Small things ---------------------------------------------------------------------------------------

    def _record(self, entry: e.Entry) -> None:
        batch = self.batches[entry.batch]
        apply(batch.facts, entry)
        self._entries.append(entry)
        self._entry_turn = batch.entry_turn = self._turn
