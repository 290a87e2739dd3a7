"""Thousands of schedules of a hostile world, and proof that the simulator would notice."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.books import Kill, LiveBatch, Worker
from batchd.core.crew import Crew
from batchd.core.job import Cause, History, JobState
from batchd.core.lease import Lease
from batchd.core.scheduler import Scheduler
from batchd.testing import MemoryJournal, Simulation
from tests.fault.ledger import Tally

CHUNKS = [(first, 200) for first in range(0, 600, 200)]
MORE = [
    pytest.param(first, stop - first, marks=pytest.mark.slow)
    for first, stop in pairwise([600, *range(2_000, 20_001, 2_000)])
]


@pytest.mark.parametrize(("first", "count"), [*CHUNKS, *MORE])
@pytest.mark.covers("X12")
def test_every_invariant_holds_in_every_schedule(first: int, count: int, tally: Tally) -> None:
    for seed in range(first, first + count):
        Simulation(seed).run()
    tally.injected(count)
    tally.count("schedules simulated", count)


def test_every_invariant_holds_when_most_costs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchd.core.costs.COSTLY_JOBS_MAX", 4)
    monkeypatch.setattr("batchd.core.books.COSTLY_JOBS_MAX", 4)
    for seed in range(200):
        Simulation(seed).run()


def test_a_seed_is_a_schedule() -> None:
    assert Simulation(5).run() == Simulation(5).run()


def test_schedules_are_hostile_enough() -> None:
    reports = [Simulation(seed).run() for seed in range(100)]

    assert sum(report.supervisor_deaths for report in reports) > 10
    assert sum(report.worker_deaths for report in reports) > 50
    assert sum(report.runs for report in reports) > sum(report.jobs for report in reports) / 2


class Impatient(Scheduler):
    """Frees what waits for the disk at once."""

    def _release(self) -> bool:
        self._committed = self._turn
        return super()._release()


class BlamesTheNeighbour(Scheduler):
    """Looks one job too far back."""

    def _return_lease(self, worker: Worker, lease: Lease, event: ev.WorkerGone, now: float) -> bool:
        if event.position is not None:
            position = replace(event.position, index=event.position.index - 1)
            event = replace(event, position=position)
        return super()._return_lease(worker, lease, event, now)


class BlamesTheKilled(Scheduler):
    """Counts a kill it ordered itself as a crash."""

    @staticmethod
    def _blame(worker: Worker, lease: Lease, index: int) -> Cause:  # noqa: ARG004  (it does not look)
        return Cause.CRASH


class ForgetsWhatItCut(Scheduler):
    """Shortens a lease and queues nothing."""

    def _on_lease_stop(self, event: ev.LeaseEnded | ev.LeaseCut) -> None:
        super()._on_lease_stop(event)
        if isinstance(event, ev.LeaseCut):
            for batch in self.batches.values():
                batch.queued.remove(event.stop, event.stop + 1)


class CutsTooShort(Scheduler):
    """Trusts the limit it asked for, not the position that was read again."""

    def _on_lease_stop(self, event: ev.LeaseEnded | ev.LeaseCut) -> None:
        _, lease = self.crew.find(event.worker, event.lease)
        if lease is not None and isinstance(event, ev.LeaseCut):
            event = replace(event, stop=lease.next)
        super()._on_lease_stop(event)


class TrustsOldReports(Scheduler):
    """Has no fence: whoever reports is believed."""

    def _on_acked(self, event: ev.JobsAcked, now: float) -> None:
        _, lease = self.crew.find(event.worker, event.lease)
        if lease is None and self.batches:
            self._record(e.Recorded(next(iter(self.batches)), event.first, event.count, event.state, event.block))
        else:
            super()._on_acked(event, now)


class ChargesNothing(Scheduler):
    """Runs begun jobs again under the same attempt number."""

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
        if cause is Cause.REPLAY:
            self._give_back(batch, start, stop)
            return False
        return super()._settle(batch, start, stop, history, cause, now, block, failure)


class BelievesLateCheckpoints(Scheduler):
    """Takes a checkpoint of a job that has an outcome already."""

    def _on_checkpoint(self, event: ev.CheckpointReceived) -> None:
        _, lease = self.crew.find(event.worker, event.lease)
        if lease is not None:
            self._record(e.Noted(lease.batch, event.index, event.payload))


class KnowsNoStints(Scheduler):
    """Takes what has a batch's id for the batch, whenever it was."""

    def _on_attached(self, event: ev.BatchAttached) -> None:
        super()._on_attached(replace(event, stint=1))


class NeverKills(Scheduler):
    """Orders no kill: a hanging job hangs for ever."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        super().__init__(jitter)
        self.crew = _Merciful(self.batches)
        self.workers = self.crew.workers


class _Merciful(Crew):
    def kill(
        self, worker: Worker, kill: Kill, why: str, *, with_stack: bool = False, has_grace: bool = False
    ) -> None:
        pass


class RecordsFailuresAsSuccess(Scheduler):
    """Means well."""

    def _on_acked(self, event: ev.JobsAcked, now: float) -> None:
        super()._on_acked(replace(event, state=JobState.SUCCEEDED), now)


@pytest.mark.parametrize(
    "broken",
    [
        Impatient,
        BlamesTheNeighbour,
        BlamesTheKilled,
        ForgetsWhatItCut,
        CutsTooShort,
        TrustsOldReports,
        ChargesNothing,
        BelievesLateCheckpoints,
        KnowsNoStints,
        NeverKills,
        RecordsFailuresAsSuccess,
    ],
)
@pytest.mark.covers("X12")
def test_a_broken_scheduler_is_caught(broken: type[Scheduler]) -> None:
    for seed in range(500):
        try:
            Simulation(seed, scheduler=broken, steps_max=20_000).run()
        except AssertionError as error:
            assert f"again: scripts/sim {seed} --story" in str(error)  # noqa: PT017  (any of the first 500 may be the one)
            return
    pytest.fail("nobody noticed")


def test_a_memory_journal_knows_what_may_be_reopened() -> None:
    journal = MemoryJournal()
    journal.commit([e.Submitted("b", 0, 9, (), "client", 1, ""), e.Recorded("b", 0, 4, JobState.FAILED)])
    journal.commit([e.Reopened("b", 1, ((1, 3),), JobState.FAILED)])

    assert journal.unsuccessful("b") == ((JobState.FAILED, ((0, 1), (3, 4))),)
    assert journal.entries("unknown") == ()
