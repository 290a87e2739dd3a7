"""The scheduler under any sequence of events Hypothesis can think of, with a minimal world around it."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.events import Options, Phase, Position
from batchd.core.job import Allowances, JobState
from batchd.core.scheduler import Scheduler
from batchd.testing import MemoryJournal

BATCHES = ("a", "b")
batches = st.sampled_from(BATCHES)
picks = st.integers(0, 99)
prices = st.sampled_from([0.01, 1.0, 1.5, 700.0])


@dataclass
class Running:
    """A lease as its worker has it."""

    grant: c.GrantLease
    next: int
    limit: int


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(jitter=lambda: 0.5)
        self.journal = MemoryJournal()
        self.uncommitted: list[e.Entry] = []
        self.turn = 0
        self.now = 0.0
        self.sequence = dict.fromkeys(BATCHES, 0)
        self.starting: list[int] = []
        self.leases: dict[int, list[Running]] = {}
        self.cuts: list[c.CutLease] = []
        for batch in BATCHES:
            self.attach(batch)

    def tell(self, event: ev.Event) -> None:
        self.now += 0.01
        turn = self.scheduler.step([event], self.now)
        self.turn = turn.number
        self.uncommitted += turn.entries
        for command in turn.commands:
            match command:
                case c.StartWorker(worker=number):
                    self.starting.append(number)
                case c.GrantLease(worker=number):
                    self.leases[number].append(Running(command, command.first, command.stop))
                case c.CutLease():
                    self.cuts.append(command)
                case _:
                    pass

    def attach(self, batch: str) -> None:
        options = Options(workers=3, allowances=Allowances(1, 2, 2), timeout_s=1.0, failures_max=6)
        self.tell(ev.BatchAttached(self.journal.replay(batch), options, "key", 1))

    def living(self, pick: int) -> int | None:
        numbers = sorted(self.leases)
        return numbers[pick % len(numbers)] if numbers else None

    # --- Clients ---------------------------------------------------------------------------------------------

    @rule(batch=batches, count=st.integers(0, 30), is_duplicate=st.booleans(), costs=st.lists(prices, max_size=30))
    def submit(self, batch: str, count: int, is_duplicate: bool, costs: list[float]) -> None:
        self.sequence[batch] += not is_duplicate
        told = tuple(enumerate(costs[:count]))
        self.tell(ev.SegmentsReceived(batch, count, (b"x",), "client", self.sequence[batch], "", costs=told))

    @rule(batch=batches, seals=st.booleans())
    def seal_or_unseal(self, batch: str, seals: bool) -> None:
        self.tell(ev.SealRequested(batch) if seals else ev.UnsealRequested(batch))

    @rule(batch=batches, at_once=st.booleans())
    def detach(self, batch: str, at_once: bool) -> None:
        self.tell(ev.DetachRequested(batch, at_once=at_once))

    @rule(batch=batches)
    def attach_again(self, batch: str) -> None:
        if batch not in self.scheduler.batches:
            self.attach(batch)

    @rule(batch=batches)
    def cancel(self, batch: str) -> None:
        self.tell(ev.CancelRequested(batch, "enough"))

    @rule(batch=batches)
    def reopen(self, batch: str) -> None:
        self.tell(ev.ReopenRequested(batch, self.journal.unsuccessful(batch), self.journal.replay(batch).generation))

    @rule(workers=st.sampled_from([None, 1, 2, 5]))
    def scale(self, workers: int | None) -> None:
        self.tell(ev.ScaleRequested(workers))

    # --- Workers ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.starting)
    @rule(lives=st.integers(0, 9))
    def start(self, lives: int) -> None:
        number = self.starting.pop(0)
        if lives:
            self.leases[number] = []
            self.tell(ev.WorkerReady(number))
        else:
            self.tell(ev.WorkerGone(number, None, "died while starting"))

    @rule(pick=picks, count=st.integers(1, 9), state=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED]))
    def work(self, pick: int, count: int, state: JobState) -> None:
        number = self.living(pick)
        if number is None or not self.leases[number]:
            return
        running = self.leases[number][0]
        stop = min(running.next + count, running.limit)
        first, running.next = running.next, max(stop, running.next)
        if first < stop:
            self.tell(ev.JobsAcked(number, running.grant.lease, first, stop - first, state, b"", 0.02, b"why"))
        else:
            self.leases[number].pop(0)
            self.tell(ev.LeaseEnded(number, running.grant.lease, running.next))

    @rule(pick=picks, running_s=st.sampled_from([0.5, 1.5]))
    def observe(self, pick: int, running_s: float) -> None:
        number = self.living(pick)
        if number is not None and self.leases[number]:
            running = self.leases[number][0]
            position = Position(running.grant.lease, running.next, Phase.RUNNING)
            self.tell(ev.WorkerObserved(number, position, running_s, 0))

    @rule(pick=picks, ahead=st.integers(0, 3), phase=st.sampled_from(Phase))
    def die(self, pick: int, ahead: int, phase: Phase) -> None:
        number = self.living(pick)
        if number is None:
            return
        leases = self.leases.pop(number)
        position = None
        if leases:
            lease = leases[0]
            index = min(lease.next + ahead, lease.limit - 1) if phase is not Phase.IDLE else lease.next - 1
            if index >= lease.next or phase is Phase.IDLE:
                position = Position(lease.grant.lease, index, phase)
        self.cuts = [cut for cut in self.cuts if cut.worker != number]
        self.tell(ev.WorkerGone(number, position, "killed by SIGKILL", b"why"))

    @precondition(lambda self: self.cuts)
    @rule(ahead=st.integers(0, 3))
    def answer_cut(self, ahead: int) -> None:
        cut = self.cuts.pop(0)
        for place, running in enumerate(self.leases.get(cut.worker, ())):
            if running.grant.lease == cut.lease:
                begun = running.next + ahead if place == 0 else running.grant.first
                running.limit = min(running.limit, max(cut.stop, begun))
                self.tell(ev.LeaseCut(cut.worker, cut.lease, running.limit))

    # --- The rest of the world -------------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.journal.commit(self.uncommitted)
        self.uncommitted = []
        self.tell(ev.Committed(self.turn))

    @rule(seconds=st.sampled_from([0.1, 1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(ev.Committed(self.scheduler._committed))  # Nothing new, but what is due wakes up.
        due = self.scheduler.next_due()
        assert due is None or due > self.now

    @invariant()
    def the_books_are_in_order(self) -> None:
        self.scheduler.check()

    @invariant()
    def memory_is_replay(self) -> None:
        everything = MemoryJournal()
        for batch in BATCHES:
            everything.commit(self.journal.entries(batch))
        everything.commit(self.uncommitted)
        for name, live in self.scheduler.batches.items():
            assert live.facts == everything.replay(name)

    @invariant()
    def no_job_is_leased_twice(self) -> None:
        taken: set[tuple[str, int]] = set()
        for leases in self.leases.values():
            for running in leases:
                jobs = {(running.grant.batch, index) for index in range(running.next, running.limit)}
                assert not jobs & taken
                taken |= jobs


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestScheduler = SchedulerMachine.TestCase
