"""A simulated worker and its slot of the flight recorder. It keeps the worker's side of the protocol to the letter:

the position is stored before the limit is read, reports leave in order, and what was sent survives the worker.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import groupby

from batchd.core import events as ev
from batchd.core.commands import GrantLease
from batchd.core.events import Phase, Position
from batchd.core.job import JobState
from batchd.core.replay import LeaseTrace
from batchd.testing.world import Cast, Deed, World


@dataclass(slots=True)
class Lane:
    """The recorder's description of one lease."""

    lease: int
    batch: str
    stint: int
    first: int
    stop: int
    """No job at or beyond it was begun: lowered only when a cut is certain."""
    limit: int
    """What the worker reads before each job: lowered when a cut begins."""


@dataclass(slots=True)
class Slot:
    """A worker's part of the flight recorder."""

    lanes: dict[int, Lane] = field(default_factory=dict)
    position: Position | None = None
    said: deque[ev.JobsAcked] = field(default_factory=lambda: deque(maxlen=32))
    """Its transcript, which has little room."""

    def traces(self) -> list[LeaseTrace]:
        """Return what a restart reads."""
        said: dict[int, list[ev.JobsAcked]] = defaultdict(list)
        for ack in self.said:
            said[ack.lease].append(ack)
        return [
            LeaseTrace(it.batch, it.stint, it.lease, it.first, it.stop, self.position, tuple(said[it.lease]))
            for it in self.lanes.values()
        ]

    def running(self) -> tuple[str, int] | None:
        """Return the job at the position if the position says that it runs."""
        if self.position is None or self.position.phase is not Phase.RUNNING:
            return None
        lease = self.position.lease
        return next((lane.batch, self.position.index) for lane in self.lanes.values() if lane.lease == lease)


class SimulatedWorker:
    """One worker process."""

    def __init__(self, world: World, number: int, epoch: int) -> None:
        self.number = number
        self.slot = Slot()
        self.is_dead = False
        self._world = world
        self._epoch = epoch
        self._is_ready = False
        self._is_stopping = False
        self._pipe: deque[GrantLease] = deque()
        self._lease: GrantLease | None = None
        self._open: dict[str, tuple[int, Cast]] = {}
        """The batches it reads, with the stint for which it opened them."""
        self._index = 0
        self._unsent: list[tuple[JobState, bytes]] = []
        self._unsent_s = 0.0
        self._job_began_at = 0.0
        self._mail_at = 0.0

    # --- What the pool does to it ----------------------------------------------------------------------------

    def start(self) -> None:
        """Import the task, or die of it."""
        if self.is_dead:
            return
        if self._world.faults.strikes("start", 0.2):
            self.die("died while starting")
            return
        self._is_ready = True
        self._post(ev.WorkerReady(self.number))
        self._go_on()

    def receive(self, grant: GrantLease) -> None:
        """A lease arrived in the pipe."""
        self._pipe.append(grant)
        if self._is_ready and self._lease is None:
            self._go_on()

    def close(self) -> None:
        """The pipe was closed: end when nothing is left."""
        self._is_stopping = True
        if self._is_ready and self._lease is None and not self._pipe:
            self.die("exited with code 0", ordered=True)

    def die(self, cause: str, *, ordered: bool = False) -> None:
        """End; the position stands, what was not sent is lost."""
        if self.is_dead:
            return
        self.is_dead = True
        job = self.slot.running()
        if job is not None:
            self._world.witness.died(job, self.number, ordered=ordered)
        self._world.story.tell(f"worker {self.number}", f"dies: {cause}, at {self.slot.position}")
        self._post(ev.WorkerGone(self.number, self.slot.position, cause, b"the end"))

    # --- What it does itself ---------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take the next lease."""
        if self._world.faults.strikes("idle", 0.02):
            self._world.agenda.after(self._world.chance.random() * 0.01, self.die, "killed while idle")
        if self._pipe:
            self._lease = self._pipe.popleft()
            self._index = self._lease.first
            self._store()
            return
        self._lease = None
        if self._is_stopping:
            self.die("exited with code 0", ordered=True)

    def _store(self) -> None:
        """Store the position at the next job; the limit is read afterwards, perhaps a good deal later."""
        world, lease = self._world, self._lease
        if self.is_dead or lease is None:
            return
        if self._index >= lease.stop:
            self._report(is_over=True)
            return
        self.slot.position = Position(lease.lease, self._index, Phase.RUNNING)
        world.witness.stored((lease.batch, self._index), lease.attempt)
        if world.faults.strikes("worker", 0.003):
            self.die("killed before the limit was read")
        elif world.chance.random() < 0.1:
            world.agenda.after(world.chance.random() * 0.003, self._read_limit)
        else:
            self._read_limit()

    def _read_limit(self) -> None:
        if self.is_dead or self._lease is None:
            return
        if self._index >= self.slot.lanes[self._lease.lane].limit:
            self._report(is_over=True)
        else:
            self._begin(self._lease)

    def _begin(self, lease: GrantLease) -> None:
        world, cast = self._world, self._cast(lease)
        run = world.witness.begun((lease.batch, self._index), lease.attempt, self.number)
        deed = cast.deed(self._index, run)
        lasts_s = cast.duration_s * cast.costs.get(self._index, world.chance.paretovariate(1.5))
        if deed is Deed.HANG:
            lasts_s = 1e6 if lease.is_timed else 3.0
        self._job_began_at = world.agenda.now
        if world.chance.random() < 0.03:
            note = ev.CheckpointReceived(self.number, lease.lease, self._index, b"so far")
            after_s = 1.1 * lasts_s * world.chance.random()  # A thread of the job may be too late.
            world.agenda.after(after_s, self._leave, note)
        if deed is Deed.CRASH:
            world.agenda.after(lasts_s * world.chance.random(), self.die, "killed by SIGSEGV")
        else:
            world.agenda.after(lasts_s, self._end, deed, lasts_s)
        if world.faults.strikes("worker", 0.005):
            world.agenda.after(lasts_s * world.chance.random(), self.die, "killed by SIGKILL")
        timeout_s = cast.options.timeout_s
        if timeout_s is not None and (lasts_s > timeout_s or world.chance.random() < 0.05):
            world.agenda.after(timeout_s * (1 + world.chance.random() / 10), self._observe)

    def _cast(self, lease: GrantLease) -> Cast:
        """Return the batch of a lease as it was when it was opened."""
        if self._open.get(lease.batch, (0, None))[0] != lease.stint:
            self._open[lease.batch] = lease.stint, self._world.casts[lease.batch]
        return self._open[lease.batch][1]

    def _leave(self, note: ev.CheckpointReceived) -> None:
        if not self.is_dead:
            self._post(note)

    def _observe(self) -> None:
        """The gauges sample it."""
        position = self.slot.position
        if self.is_dead or position is None:
            return
        memory_bytes = 3 << 30 if self._world.faults.strikes("memory", 0.3) else 1 << 20
        self._post(
            ev.WorkerObserved(self.number, position, self._world.agenda.now - self._job_began_at, memory_bytes)
        )
        if position.phase is Phase.RUNNING:
            self._world.agenda.after(1.0, self._observe)

    def _end(self, deed: Deed, lasted_s: float) -> None:
        if self.is_dead or self._lease is None:
            return
        world, chance = self._world, self._world.chance
        succeeded = deed is not Deed.RAISE
        world.witness.ended((self._lease.batch, self._index), succeeded=succeeded)
        fingerprint = b"" if succeeded else chance.choice([b"division", b"division", b"value"])
        self._unsent.append((JobState.SUCCEEDED if succeeded else JobState.FAILED, fingerprint))
        self._unsent_s += lasted_s
        self._index += 1
        if self._unsent_s >= world.ack_s:
            self._report(is_over=False)
        else:
            self._store()

    def _report(self, *, is_over: bool) -> None:
        position = self.slot.position
        if position is not None:
            self.slot.position = Position(position.lease, position.index, Phase.REPORTING)
        if self._world.faults.strikes("worker", 0.01):
            self.die("killed before it reported")
        elif self._world.chance.random() < 0.1:
            self._world.agenda.after(self._world.chance.random() * 0.003, self._send, is_over)
        else:
            self._send(is_over)

    def _send(self, is_over: bool) -> None:
        world, lease = self._world, self._lease
        if self.is_dead or lease is None:
            return
        first = self._index - len(self._unsent)
        for (state, fingerprint), group in groupby(self._unsent):
            count = len(list(group))
            if fingerprint and world.chance.random() < 0.3:
                self._post(ev.CauseExplained(self.number, lease.lease, fingerprint, b"because"))
            busy_s = self._unsent_s * count / len(self._unsent)
            block = self._cast(lease).block
            ack = ev.JobsAcked(self.number, lease.lease, first, count, state, block, busy_s, fingerprint)
            self.slot.said.append(ack)
            if world.faults.strikes("worker", 0.005):
                self.die("killed before it sent what it noted")
                return
            self._post(ack)
            if world.faults.strikes("echo", 0.05):  # An old report comes again, long after: it must be fenced off.
                world.agenda.after(0.2, self._post, ack)
            first += count
            if world.faults.strikes("worker", 0.01):
                self.die("killed between two reports")
                return
        self._unsent, self._unsent_s = [], 0.0
        if is_over:
            self._post(ev.LeaseEnded(self.number, lease.lease, self._index))
        if world.rests_idle and self.slot.position is not None:
            self.slot.position = Position(lease.lease, self._index - 1, Phase.IDLE)
        if is_over:
            self._go_on()
        else:
            self._store()

    def _post(self, event: ev.Event) -> None:
        """Send a report: later than those before it, whatever the delay."""
        self._mail_at = max(self._mail_at, self._world.agenda.now + self._world.delay())
        self._world.post(self._mail_at, self._epoch, event)
