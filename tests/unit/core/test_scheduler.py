"""The scheduler, one fact at a time: events in, the whole turn compared."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.events import Options, Phase, Position
from batchd.core.facts import BatchFacts, BatchState
from batchd.core.job import Allowances, History, JobState
from batchd.core.scheduler import Scheduler, Turn
from batchd.settings import LEASE_TARGET_S

CRASHED_ONCE = History(1, crashes=1)


@dataclass
class Desk:
    """A scheduler with one batch, one key, and a disk that is fast unless told otherwise."""

    scheduler: Scheduler = field(default_factory=lambda: Scheduler(jitter=lambda: 0.0))
    now: float = 0.0
    commands: list[c.Command] = field(default_factory=list)

    def tell(self, *events: ev.Event) -> Turn:
        turn = self.scheduler.step(events, self.now)
        self.scheduler.check()
        self.commands += turn.commands
        return turn

    def commit(self) -> Turn:
        return self.tell(ev.Committed(self.scheduler._turn))

    def submit(self, count: int, sequence: int = 1) -> Turn:
        return self.tell(ev.SegmentsReceived("b", count, (b"x",), "client", sequence, ""))

    def ack(
        self, first: int, count: int = 1, state: JobState = JobState.SUCCEEDED, lease: int = 1, why: bytes = b""
    ) -> Turn:
        return self.tell(ev.JobsAcked(1, lease, first, count, state, b"block", LEASE_TARGET_S * count, why))

    def gone(self, position: Position | None, worker: int = 1) -> Turn:
        return self.tell(ev.WorkerGone(worker, position, "killed by SIGSEGV", b"failure"))

    def last_grant(self) -> c.GrantLease:
        return [command for command in self.commands if isinstance(command, c.GrantLease)][-1]

    @property
    def facts(self) -> BatchFacts:
        return self.scheduler.batches["b"].facts


def attached(size: int = 3, **options: Any) -> Desk:
    desk = Desk()
    asked = Options(**options)
    desk.tell(ev.BatchAttached(BatchFacts("b"), asked, "key", 1))
    if size:
        desk.submit(size)
    desk.commit()
    return desk


def leased(size: int = 3, **options: Any) -> Desk:
    """One worker holds lease 1 on job 0."""
    desk = attached(size, **options)
    desk.tell(ev.WorkerReady(1))
    return desk


def grant(lease: int, first: int, stop: int, *, lane: int, attempt: int = 1, worker: int = 1) -> c.GrantLease:
    return c.GrantLease(worker, lease, lane, "b", 1, first, stop, attempt, is_timed=False)


def test_attaching_is_written_down() -> None:
    facts = BatchFacts("b")
    turn = Desk().tell(ev.BatchAttached(facts, Options(), "key", 9))

    assert turn == Turn(1, [e.Attached("b", 9)], [])


def test_input_starts_workers_only_when_it_is_durable() -> None:
    desk = attached(0)
    submitted = desk.submit(3)
    committed = desk.commit()

    assert submitted == Turn(3, [e.Submitted("b", 0, 3, (b"x",), "client", 1, "")], [])
    assert committed == Turn(4, [], [c.StartWorker(1, "key")])


def test_the_same_input_again_adds_nothing() -> None:
    assert attached(3).submit(3, sequence=1) == Turn(4, [], [])


def test_input_after_the_seal_adds_nothing() -> None:
    desk = attached(3)

    assert desk.tell(ev.SealRequested("b")).entries == [e.Sealed("b")]
    assert desk.tell(ev.SealRequested("b")).entries == []
    assert desk.submit(3, sequence=2).entries == []


def test_a_ready_worker_gets_one_job_to_measure() -> None:
    assert attached().tell(ev.WorkerReady(1)) == Turn(4, [], [grant(1, 0, 1, lane=0)])


def test_a_success_is_recorded() -> None:
    assert leased().ack(0) == Turn(5, [e.Recorded("b", 0, 1, JobState.SUCCEEDED, b"block")], [])


def test_a_finished_lease_is_followed_by_the_next() -> None:
    desk = leased()
    desk.ack(0)

    assert desk.tell(ev.LeaseEnded(1, 1, 1)) == Turn(6, [], [grant(2, 1, 2, lane=1)])


def test_an_unknown_lease_reports_in_vain() -> None:
    desk = leased()

    assert desk.ack(0, lease=99) == Turn(5, [], [])
    assert desk.tell(ev.LeaseEnded(1, 99, 0)) == Turn(6, [], [])
    assert desk.tell(ev.CauseExplained(1, 99, b"why", b"text")) == Turn(7, [], [])
    assert desk.gone(None, worker=99) == Turn(8, [], [])


def test_a_worker_that_skips_jobs_is_killed() -> None:
    assert leased().ack(1).commands == [c.KillWorker(1, "")]
    assert leased().tell(ev.LeaseEnded(1, 1, 1)).commands == [c.KillWorker(1, "")]


def test_a_failure_without_retries_is_final() -> None:
    turn = leased().ack(0, state=JobState.FAILED, why=b"why")

    assert turn == Turn(5, [e.Recorded("b", 0, 1, JobState.FAILED, b"block")], [])


def test_a_failure_with_retries_waits_for_its_backoff() -> None:
    desk = leased(1, allowances=Allowances(retries=1))
    turn = desk.ack(0, state=JobState.FAILED, why=b"why")
    desk.tell(ev.LeaseEnded(1, 1, 1))
    early = desk.commit()
    desk.now = desk.scheduler.next_due() or 0.0
    due = desk.tell()

    assert turn.entries == [e.Charged("b", 0, 1, History(1, failures=1))]
    assert early.commands == []
    assert 0.2 <= desk.now <= 0.25
    assert due.commands == [grant(2, 0, 1, lane=1, attempt=2)]


def test_a_cause_is_written_down_once_told() -> None:
    assert leased().tell(ev.CauseExplained(1, 1, b"why", b"text")).entries == [e.Explained("b", b"why", b"text")]


def long_lease(**options: Any) -> Desk:
    """Worker 1 holds lease 2 on jobs [1, 9)."""
    desk = leased(100, **options)
    desk.tell(ev.JobsAcked(1, 1, 0, 1, JobState.SUCCEEDED, b"", 0.001), ev.LeaseEnded(1, 1, 1))
    desk.commit()
    return desk


def test_the_running_job_is_blamed_and_its_neighbours_are_not() -> None:
    desk = long_lease()
    turn = desk.gone(Position(2, 4, Phase.RUNNING))

    assert turn.entries == [e.Charged("b", 1, 3, History(1)), e.Charged("b", 4, 1, CRASHED_ONCE)]
    assert desk.scheduler.batches["b"].queued.first() == (17, 100)
    desk.commit()
    assert desk.scheduler.batches["b"].queued.first() == (1, 100)


def test_nobody_is_blamed_for_a_death_at_rest() -> None:
    turn = long_lease().gone(Position(2, 4, Phase.REPORTING))

    assert turn.entries == [e.Charged("b", 1, 4, History(1))]


def test_a_finished_job_is_not_blamed_when_its_worker_only_looked_at_the_limit() -> None:
    desk = long_lease()
    desk.tell(ev.LeaseCut(1, 2, 4))
    turn = desk.gone(Position(2, 4, Phase.RUNNING))

    assert turn.entries == [e.Charged("b", 1, 3, History(1))]


def test_a_job_that_kills_three_workers_is_quarantined() -> None:
    desk = attached(1)
    entries: list[e.Entry] = []
    for worker in (1, 2, 3):
        desk.tell(ev.WorkerReady(worker))
        lease = desk.last_grant()
        entries += desk.gone(Position(lease.lease, 0, Phase.RUNNING), worker).entries
        desk.commit()
        desk.now += 10
        desk.tell()

    assert entries == [
        e.Charged("b", 0, 1, History(1, crashes=1)),
        e.Charged("b", 0, 1, History(2, crashes=2)),
        e.Recorded("b", 0, 1, JobState.QUARANTINED, failure=b"failure"),
    ]


def observed(index: int, seconds: float, memory: int = 0, phase: Phase = Phase.RUNNING) -> ev.WorkerObserved:
    return ev.WorkerObserved(1, Position(2, index, phase), seconds, memory)


def test_a_timeout_is_a_failure_of_its_job_alone() -> None:
    desk = long_lease(timeout_s=1.0, allowances=Allowances(retries=1))
    killed = desk.tell(observed(4, 1.5))
    again = desk.tell(observed(4, 2.5))
    turn = desk.gone(Position(2, 4, Phase.RUNNING))

    assert killed.commands == [c.KillWorker(1, "timed out after 1.5 s", with_stack=True)]
    assert again.commands == []
    assert turn.entries == [e.Charged("b", 1, 3, History(1)), e.Charged("b", 4, 1, History(1, failures=1))]


def test_the_job_after_the_one_that_timed_out_is_not_to_blame() -> None:
    desk = long_lease(timeout_s=1.0)
    desk.tell(observed(4, 1.5))

    assert desk.gone(Position(2, 5, Phase.RUNNING)).entries == [
        e.Charged("b", 1, 4, History(1)),
        e.Charged("b", 5, 1, History(1)),
    ]


def test_too_much_memory_is_said_in_words() -> None:
    turn = long_lease(memory_bytes_max=2 << 30).tell(observed(4, 0.1, 3 << 30))

    assert turn.commands == [c.KillWorker(1, "memory 3G > 2G (memory per job)")]


@pytest.mark.parametrize("event", [observed(4, 0.5), observed(4, 9.0, phase=Phase.IDLE)])
def test_a_worker_within_its_limits_is_left_alone(event: ev.WorkerObserved) -> None:
    assert long_lease(timeout_s=1.0, memory_bytes_max=1).tell(event).commands == []


def test_a_cut_gives_back_only_what_is_certain() -> None:
    desk = long_lease()
    asked = desk.tell(ev.DetachRequested("b"))
    desk.tell(ev.LeaseCut(1, 2, 4))
    desk.tell(ev.LeaseCut(1, 3, 9))
    places = desk.scheduler.batches["b"].queued

    assert asked.commands == [c.CutLease(1, 2, 1, 1, is_ending=True), c.CutLease(1, 3, 2, 9, is_ending=True)]
    assert list(places) == [(4, 100)]


def test_a_lower_limit_asked_for_during_a_cut_is_not_forgotten() -> None:
    desk = long_lease()
    worker = desk.scheduler.workers[1]
    desk.scheduler.crew.cut(worker, worker.leases[0], 6)
    desk.tell(ev.DetachRequested("b"))

    assert desk.tell(ev.LeaseCut(1, 2, 6)).commands == [c.CutLease(1, 2, 1, 1, is_ending=True)]


def test_a_batch_is_put_down_when_its_detachment_is_durable() -> None:
    desk = attached(0)
    left = desk.tell(ev.DetachRequested("b"))
    late = desk.submit(3)

    assert left.entries == [e.Detached("b")]
    assert desk.tell(ev.Committed(left.number)).commands == []  # What came late is not durable yet.
    assert late.entries
    assert desk.commit().commands == [c.PutDown("b")]
    assert desk.tell(ev.SealRequested("b")) == Turn(7, [], [])


def test_leaving_at_once_kills_without_blame() -> None:
    desk = long_lease()

    assert c.KillWorker(1, "", has_grace=True) in desk.tell(ev.DetachRequested("b", at_once=True)).commands
    assert desk.gone(Position(2, 1, Phase.RUNNING)).entries == [e.Charged("b", 1, 1, History(1)), e.Detached("b")]


def test_cancelling_ends_every_job() -> None:
    desk = long_lease()
    ordered = desk.tell(ev.CancelRequested("b", "enough"))
    ended = desk.gone(Position(2, 2, Phase.RUNNING))

    assert ordered.entries == [e.CancelOrdered("b", "enough"), e.Recorded("b", 17, 83, JobState.CANCELLED)]
    assert [(entry.first, entry.count) for entry in ended.entries if isinstance(entry, e.Recorded)] == [
        (1, 1),
        (2, 1),
        (3, 6),
        (9, 8),
    ]
    assert (desk.facts.state, desk.facts.is_finished) == (BatchState.CANCELLED, True)
    assert desk.tell(ev.CancelRequested("b", "again"), ev.UnsealRequested("b")).entries == []


def test_a_failure_in_a_cancelled_batch_is_not_tried_again() -> None:
    desk = leased(1, allowances=Allowances(retries=5))
    desk.tell(ev.CancelRequested("b", "enough"))

    assert desk.ack(0, state=JobState.FAILED).entries == [e.Recorded("b", 0, 1, JobState.CANCELLED)]


def test_attaching_a_cancelled_batch_ends_what_was_left() -> None:
    facts = BatchFacts("b", size=5, is_sealed=True, cancelled="enough")

    assert Desk().tell(ev.BatchAttached(facts, Options(), "key", 2)).entries == [
        e.Attached("b", 2),
        e.Recorded("b", 0, 5, JobState.CANCELLED),
    ]


def test_reopened_jobs_run_under_new_numbers() -> None:
    desk = leased(1)
    desk.ack(0, state=JobState.FAILED, why=b"why")
    desk.tell(ev.LeaseEnded(1, 1, 1))
    request = ev.ReopenRequested("b", ((JobState.FAILED, ((0, 1),)),), 0)

    assert desk.tell(request, request).entries == [e.Reopened("b", 1, ((0, 1),), JobState.FAILED)]
    assert desk.tell(ev.ReopenRequested("b", ((JobState.FAILED, ((0, 1),)),))).entries == []
    assert desk.commit().commands[-1] == grant(2, 0, 1, lane=desk.last_grant().lane, attempt=2)


def test_input_may_grow_at_its_end() -> None:
    desk = attached(3)
    desk.tell(ev.SealRequested("b"))

    assert desk.tell(ev.UnsealRequested("b"), ev.UnsealRequested("b")).entries == [e.Unsealed("b")]


def stopped(desk: Desk) -> str:
    return desk.facts.stopped


def test_too_many_failures_stop_the_batch() -> None:
    desk = leased(9, failures_max=0)
    desk.ack(0, state=JobState.FAILED, why=b"why")

    assert stopped(desk) == "1 jobs failed; --max-failures is 0"


def fail_all(desk: Desk, jobs: int, *, whys: tuple[bytes, ...] = (b"why",), successes: int = 0) -> None:
    """Play worker 1 until all jobs are reported or the batch stops."""
    reported, seen = 0, 0
    while reported < jobs and not stopped(desk):
        grants = [command for command in desk.commands[seen:] if isinstance(command, c.GrantLease)]
        seen = len(desk.commands)
        for it in grants:
            state = JobState.SUCCEEDED if reported < successes else JobState.FAILED
            why = whys[it.first % len(whys)]
            ack = ev.JobsAcked(1, it.lease, it.first, it.stop - it.first, state, b"", 1e-6, why)
            reported += it.stop - it.first
            desk.tell(ack, ev.LeaseEnded(1, it.lease, it.stop))
        desk.now = max(desk.now, desk.scheduler.next_due() or 0.0) + 0.001
        desk.commit()


def test_the_same_failure_a_hundred_times_stops_the_batch() -> None:
    desk = leased(1000)
    fail_all(desk, 1000)

    assert stopped(desk).endswith("finished jobs all failed the same way")
    assert desk.facts.state is BatchState.STOPPED


def test_different_failures_do_not() -> None:
    desk = leased(300)
    desk.ack(0, state=JobState.FAILED, why=b"one")
    desk.tell(ev.LeaseEnded(1, 1, 1))
    fail_all(desk, 299, whys=(b"two",))

    assert stopped(desk) == ""


def test_a_share_of_failures_stops_the_batch() -> None:
    desk = leased(1000, failures_share_max=0.5, keep_going=True)
    fail_all(desk, 1000)

    assert stopped(desk).endswith("jobs failed; --max-failures is 50%")


def test_a_million_failures_cost_one_range() -> None:
    desk = leased(1_000_000, keep_going=True)
    fail_all(desk, 1_000_000)

    assert desk.facts.count(JobState.FAILED) == 1_000_000
    assert (len(desk.facts.done), len(desk.facts.histories)) == (1, 0)


def test_a_million_failures_with_retries_stay_bounded() -> None:
    desk = leased(1_000_000, keep_going=True, allowances=Allowances(retries=2))
    batch, most = desk.scheduler.batches["b"], 0
    while desk.facts.done.size != 1_000_000:
        fail_all(desk, 100_000)
        ranges = len(desk.facts.done) + len(desk.facts.histories) + len(batch.held) + len(batch.queued)
        most = max(most, ranges + sum(map(len, batch.waiting.values())))

    assert most < 500


def test_a_key_that_fails_stops_its_batches() -> None:
    desk = attached(3)
    desk.tell(ev.KeyFailed("other", "no"))

    assert stopped(desk) == ""
    assert desk.tell(ev.KeyFailed("key", "no module")).entries == [e.Stopped("b", "no module")]


def test_a_lost_journal_stops_its_batch_once() -> None:
    desk = attached(3)
    desk.tell(ev.JournalLost("other", "gone"))
    assert stopped(desk) == ""
    assert desk.tell(ev.JournalLost("b", "gone")).entries == [e.Stopped("b", "gone")]
    assert desk.tell(ev.JournalLost("b", "gone")).entries == []


def test_workers_that_die_for_nothing_stop_the_batch() -> None:
    desk = attached(3)
    for worker in range(1, 6):
        desk.gone(None, worker)

    assert stopped(desk) == "workers keep dying without finishing a job: killed by SIGSEGV"


def test_a_dead_worker_is_forgotten_when_its_work_is_durable() -> None:
    desk = long_lease()
    gone = desk.gone(Position(2, 4, Phase.RUNNING))

    assert c.ForgetWorker(1) not in gone.commands
    assert c.ForgetWorker(1) in desk.commit().commands


def test_a_stop_rule_met_by_a_death_spares_the_dead_workers_other_lease() -> None:
    desk = long_lease(failures_max=0, allowances=Allowances(crashes_max=1))
    desk.gone(Position(2, 1, Phase.RUNNING))

    assert stopped(desk) == "1 jobs failed; --max-failures is 0"


def test_scaling_starts_and_retires_workers() -> None:
    desk = leased(100)
    up = desk.tell(ev.ScaleRequested(3))
    desk.tell(ev.WorkerReady(2), ev.WorkerReady(3))
    down = desk.tell(ev.ScaleRequested(1))

    assert up.commands == [c.StartWorker(2, "key"), c.StartWorker(3, "key")]
    assert {worker.state.value for worker in desk.scheduler.workers.values()} == {"ready", "stopping"}
    assert down.entries == []


def test_an_idle_pool_is_stopped_with_its_last_batch() -> None:
    desk = attached(1)
    desk.tell(ev.WorkerReady(1))
    desk.ack(0)
    desk.tell(ev.LeaseEnded(1, 1, 1), ev.DetachRequested("b"))

    assert desk.commit().commands == [c.PutDown("b"), c.StopWorker(1)]
    assert desk.tell(ev.WorkerReady(1)).commands == []


def test_work_is_taken_back_for_an_idle_worker() -> None:
    desk = long_lease(workers=2)
    worker = desk.scheduler.workers[1]
    desk.scheduler.batches["b"].queued.remove(0, 100)  # By hand, so the books are not in order.
    desk.scheduler.batches["b"].pace.report(1, busy_s=10.0)
    idle = desk.scheduler.step([ev.WorkerReady(2)], 0.0)

    assert len(worker.leases) == 2
    assert [type(command) for command in idle.commands] == [c.CutLease]


def test_a_retired_worker_is_stopped_when_its_lease_has_ended() -> None:
    desk = leased(100, workers=2)
    desk.tell(ev.WorkerReady(2))
    desk.tell(ev.ScaleRequested(1))
    retired = next(it for it in desk.scheduler.workers.values() if it.state.value == "stopping")
    lease = retired.leases[0]
    ack = ev.JobsAcked(retired.number, lease.number, lease.first, 1, JobState.SUCCEEDED, b"", LEASE_TARGET_S)

    turn = desk.tell(ack, ev.LeaseEnded(retired.number, lease.number, lease.first + 1))

    assert turn.commands == [c.StopWorker(retired.number)]


def test_what_is_no_event_of_a_batch_is_a_bug() -> None:
    desk = attached()

    with pytest.raises(AssertionError, match="no rule"):
        desk.scheduler._on_batch_event(ev.Committed(1), desk.scheduler.batches["b"])


def test_a_worker_that_dies_before_its_lease_costs_nobody_anything() -> None:
    desk = leased()
    desk.ack(0)
    desk.tell(ev.LeaseEnded(1, 1, 1))

    assert desk.gone(Position(1, 0, Phase.IDLE)).entries == []
