"""The witness: it sees everything that really happens and asserts that the scheduler's story fits.

It keeps its own books, job by job, and shares none with the core except `apply`, which it uses to fold entries.
"""

from collections import Counter
from collections.abc import Iterable

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core.assignment import pool_size
from batchd.core.events import Options
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import JobState
from batchd.core.replay import LeaseTrace
from batchd.core.scheduler import Scheduler, Turn
from batchd.testing.journal import MemoryJournal

Job = tuple[str, int]


class Witness:
    """What really happened to every job, and what was said about it."""

    def __init__(self) -> None:
        self._options: dict[str, Options] = {}
        self.durable: dict[str, BatchFacts] = {}
        """What the disk holds: the fold of all committed entries."""
        self._said: dict[str, BatchFacts] = {}
        """The fold of all entries, committed or not: what memory must be."""
        self._outcomes: dict[str, dict[int, JobState]] = {}
        self._stored: dict[Job, int] = {}
        """The highest attempt under which a job's position was stored."""
        self._begun: dict[Job, int] = {}
        self._runs: Counter[Job] = Counter()
        self._running: dict[Job, int] = {}
        self._succeeded: set[Job] = set()
        self._kept: set[Job] = set()
        """Those whose success a transcript held when a supervisor died."""
        self._raised: Counter[Job] = Counter()
        self._deaths: Counter[Job] = Counter()
        """Deaths of a worker that ran the job, not ordered by the scheduler."""
        self._kills: Counter[Job] = Counter()
        self._interruptions: Counter[Job] = Counter()
        self._blocks: dict[str, bytes] = {}
        """What workers report that have the inputs of the batch that is there."""
        self._runs_removed = 0

    # --- What workers do -------------------------------------------------------------------------------------

    def stored(self, job: Job, attempt: int) -> None:
        """A worker stored its position at a job."""
        self._stored[job] = max(attempt, self._stored.get(job, 0))

    def begun(self, job: Job, attempt: int, worker: int) -> int:
        """A worker begins a job; return how many runs of it there were, this one included."""
        other = self._running.get(job)
        assert other is None, f"{job} is begun by worker {worker} while worker {other} runs it"
        last = self._begun.get(job, 0)
        assert attempt > last, f"attempt {attempt} of {job} is begun after attempt {last}"
        assert job not in self._kept, f"{job} is begun again, and its success was in a transcript"
        self._begun[job] = attempt
        self._running[job] = worker
        self._runs[job] += 1
        return self._runs[job]

    def ended(self, job: Job, *, succeeded: bool) -> None:
        """A job returned or raised."""
        del self._running[job]
        if succeeded:
            self._succeeded.add(job)
        else:
            self._raised[job] += 1

    def died(self, job: Job, worker: int, *, ordered: bool) -> None:
        """A worker died while its position said that it ran the job."""
        if self._running.get(job) == worker:  # It may have looked at the limit and no more.
            del self._running[job]
        (self._kills if ordered else self._deaths)[job] += 1

    def interrupted(self, job: Job) -> None:
        """The supervisor died while a worker ran the job."""
        self._interruptions[job] += 1

    def kept(self, traces: Iterable[LeaseTrace]) -> None:
        """A batch was recovered, and this is what transcripts said of its leases."""
        stints = {name: facts.stint for name, facts in self.durable.items()}
        for trace in traces:
            for ack in trace.reports if trace.stint == stints.get(trace.batch) else ():
                if ack.state is JobState.SUCCEEDED:
                    self._kept.update((trace.batch, index) for index in range(ack.first, ack.first + ack.count))

    @property
    def runs(self) -> int:
        """How many executions were begun."""
        return self._runs.total() + self._runs_removed

    def made(self, batch: str, options: Options, block: bytes) -> None:
        """A batch is made; what had its id before is gone."""
        self._runs_removed += sum(runs for job, runs in self._runs.items() if job[0] == batch)
        assert not any(job[0] == batch for job in self._running), f"{batch} is removed while jobs of it run"
        for tally in (self._stored, self._begun, self._runs, self._raised):
            for job in [job for job in tally if job[0] == batch]:
                del tally[job]
        for tally in (self._deaths, self._kills, self._interruptions):
            for job in [job for job in tally if job[0] == batch]:
                del tally[job]
        for jobs in (self._succeeded, self._kept):
            jobs.difference_update([job for job in jobs if job[0] == batch])
        for books in (self.durable, self._said, self._outcomes):
            books.pop(batch, None)
        self._options[batch], self._blocks[batch] = options, block

    # --- What the scheduler says -----------------------------------------------------------------------------

    def attached(self, facts: BatchFacts) -> None:
        """A batch is brought: these facts were replayed."""
        self._said.setdefault(facts.batch, BatchFacts(facts.batch))
        self.durable.setdefault(facts.batch, BatchFacts(facts.batch))
        assert facts == self._said[facts.batch] == self.durable[facts.batch], "a batch is attached with old facts"

    def saw(self, turn: Turn, scheduler: Scheduler) -> None:
        """Assert that a turn says nothing that did not happen and orders nothing that must not."""
        for entry in turn.entries:
            self._weigh(entry)
        scheduler.check()
        if turn.entries or turn.number % 16 == 0:  # Only entries may change facts; look now and then all the same.
            for name, batch in scheduler.batches.items():
                assert batch.facts == self._said[name], f"memory of {name} is not what its entries say"
        for command in turn.commands:
            if isinstance(command, c.GrantLease):
                self._weigh_lease(command, scheduler)
            elif isinstance(command, c.StartWorker):
                size = pool_size(scheduler.batches.values(), scheduler.scaled)
                assert len(scheduler.workers) <= size, f"{len(scheduler.workers)} workers in a pool of {size}"

    def recovered(self, entries: Iterable[e.Entry]) -> None:
        """Assert the same of what a restart says."""
        for entry in entries:
            self._weigh(entry, is_recovery=True)

    def committed(self, entries: Iterable[e.Entry]) -> None:
        """These entries are on disk now."""
        for entry in entries:
            apply(self.durable.setdefault(entry.batch, BatchFacts(entry.batch)), entry)

    def crashed(self, journal: MemoryJournal) -> None:
        """The supervisor died: what was said and not committed was never said."""
        for name in self._said:
            facts = journal.replay(name)
            assert facts == self.durable[name], f"the journal of {name} does not replay to what was committed"
            self._said[name] = facts
            outcomes: dict[int, JobState] = {}
            for entry in journal.entries(name):
                if isinstance(entry, e.Recorded):
                    outcomes.update(dict.fromkeys(range(entry.first, entry.first + entry.count), entry.state))
                elif isinstance(entry, e.Reopened):
                    for start, stop in entry.ranges:
                        for index in range(start, stop):
                            del outcomes[index]
            self._outcomes[name] = outcomes

    def finished(self, batch: str, size: int) -> None:
        """Assert that a batch that has ended has ended well."""
        facts, outcomes = self.durable[batch], self._outcomes.get(batch, {})
        assert facts.is_finished, f"{batch} is put away unfinished"
        assert sorted(outcomes) == list(range(facts.size)), f"jobs of {batch} have no outcome"
        assert Counter(outcomes.values()) == Counter(facts.counts), f"the counts of {batch} are wrong"
        assert facts.size == size, f"{batch} has {facts.size} jobs, its client was promised {size}"
        assert not facts.histories, f"finished jobs of {batch} still have histories"
        succeeded = [job for job, state in outcomes.items() if state is JobState.SUCCEEDED]
        assert not any(job in facts.costs for job in succeeded), f"jobs of {batch} that succeeded still have costs"
        assert not facts.noted, f"finished jobs of {batch} still have checkpoints"

    # --- Entry by entry --------------------------------------------------------------------------------------

    def _weigh(self, entry: e.Entry, *, is_recovery: bool = False) -> None:
        said = self._said[entry.batch]
        match entry:
            case e.Recorded():
                self._weigh_outcome(entry, said)
            case e.Charged():
                self._weigh_charge(entry, said, is_recovery=is_recovery)
            case e.Reopened():
                self._weigh_reopening(entry)
            case e.Noted(index=index):
                assert (entry.batch, index) in self._stored, f"{entry} of a job that never began"
                assert index not in self._outcomes.get(entry.batch, {}), f"{entry} comes behind the job's outcome"
            case _:
                pass
        apply(said, entry)

    def _weigh_outcome(self, entry: e.Recorded, said: BatchFacts) -> None:
        outcomes = self._outcomes.setdefault(entry.batch, {})
        is_own = entry.block in {b"", self._blocks[entry.batch]}
        assert is_own, f"{entry} is of a batch that had the id before"
        allowed = self._options[entry.batch].allowances
        for index in range(entry.first, entry.first + entry.count):
            job = (entry.batch, index)
            assert index not in outcomes, f"{job} was {outcomes[index].name} and is recorded {entry.state.name}"
            outcomes[index] = entry.state
            failures = self._raised[job] + self._kills[job] + self._deaths[job]
            is_true = {
                JobState.SUCCEEDED: job in self._succeeded,
                JobState.FAILED: failures > allowed.retries,
                JobState.QUARANTINED: self._deaths[job] >= allowed.crashes_max
                or self._interruptions[job] >= allowed.interruptions_max,
                JobState.CANCELLED: bool(said.cancelled),
            }
            assert is_true[entry.state], f"{job} is recorded {entry.state.name} and does not deserve it"

    def _weigh_charge(self, entry: e.Charged, said: BatchFacts, *, is_recovery: bool) -> None:
        new = entry.history
        for index in range(entry.first, entry.first + entry.count):
            job = (entry.batch, index)
            old = said.histories.get(index)
            assert new.attempts > old.attempts, f"{job} is charged and its attempts do not grow: {old} -> {new}"
            assert is_recovery or new.attempts <= self._stored.get(job, 0), f"{job} is replayed and never began"
            assert new.crashes <= self._deaths[job], f"{job} is blamed for a crash that was not its own"
            failures = self._raised[job] + self._kills[job] + self._deaths[job]
            assert new.failures <= failures, f"{job} is blamed for a failure that was not its own"
            assert new.interruptions <= self._interruptions[job], f"{job} was not running at so many interruptions"

    def _weigh_reopening(self, entry: e.Reopened) -> None:
        assert entry.state is not JobState.SUCCEEDED, "a success is reopened"
        for start, stop in entry.ranges:
            for index in range(start, stop):
                state = self._outcomes[entry.batch].pop(index, None)
                assert state is entry.state, f"{entry.batch}:{index} is reopened as {entry.state.name}, was {state}"
                for tally in (self._raised, self._deaths, self._kills, self._interruptions):
                    tally.pop((entry.batch, index), None)

    def _weigh_lease(self, grant: c.GrantLease, scheduler: Scheduler) -> None:
        """The law: a lease rests on what is durable, and on nothing else."""
        facts, batch = self.durable[grant.batch], scheduler.batches[grant.batch]
        assert facts.is_attached, f"{grant} before the attachment is durable"
        assert grant.first < grant.stop <= facts.size, f"{grant} of jobs whose input is not durable"
        assert not facts.done.overlaps(grant.first, grant.stop), f"{grant} of finished jobs"
        stop, history = facts.histories.span(grant.first, grant.stop)
        assert (stop, history.attempts + 1) == (grant.stop, grant.attempt), f"{grant} is not the next attempt on disk"
        assert len(batch.workers) <= batch.workers_max, f"{grant} makes more workers than the cap of the batch"
