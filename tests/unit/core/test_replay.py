"""What a restart charges for what the flight recorder shows, and that it charges it once."""

from batchd.core import entries as e
from batchd.core.events import JobsAcked, Phase, Position
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import Allowances, History, JobState
from batchd.core.replay import LeaseTrace, all_interrupted, cancelled, interrupted

ALLOWED = Allowances(interruptions_max=2)


def attached(size: int = 10, *entries: e.Entry) -> BatchFacts:
    facts = BatchFacts("b")
    for entry in (e.Submitted("b", 0, size, (), "client", 1, ""), e.Attached("b", 1), *entries):
        apply(facts, entry)
    return facts


def trace(position: Position | None, first: int = 0, stop: int = 5, number: int = 7) -> LeaseTrace:
    return LeaseTrace("b", 1, number, first, stop, position)


def test_the_running_job_is_interrupted_and_those_before_it_are_replayed() -> None:
    entries = interrupted(attached(), [trace(Position(7, 2, Phase.RUNNING))], ALLOWED)

    assert entries == [
        e.Charged("b", 0, 2, History(1)),
        e.Charged("b", 2, 1, History(1, interruptions=1)),
        e.Detached("b"),
    ]


def test_a_lease_that_was_never_begun_costs_nothing() -> None:
    assert interrupted(attached(), [trace(None), trace(Position(6, 3, Phase.RUNNING))], ALLOWED) == [e.Detached("b")]


def test_a_lease_left_behind_was_begun_to_its_end() -> None:
    entries = interrupted(attached(), [trace(Position(8, 9, Phase.RUNNING))], ALLOWED)

    assert entries == [e.Charged("b", 0, 5, History(1)), e.Detached("b")]


def test_recorded_jobs_and_other_batches_are_left_alone() -> None:
    facts = attached(10, e.Recorded("b", 0, 3, JobState.SUCCEEDED))
    elsewhere = LeaseTrace("other", 1, 7, 0, 10, Position(7, 9, Phase.RUNNING))

    entries = interrupted(facts, [trace(Position(7, 2, Phase.REPORTING)), elsewhere], ALLOWED)

    assert entries == [e.Detached("b")]


def test_leases_of_another_stint_are_left_alone() -> None:
    """The batch was put down since, or it is another one: the first that had the id was removed."""
    stale = trace(Position(7, 2, Phase.RUNNING))._replace(stint=2, reports=(said(0), said(1)))

    assert interrupted(attached(10), [stale], ALLOWED) == [e.Detached("b")]


def said(first: int, count: int = 1, state: JobState = JobState.SUCCEEDED, lease: int = 7) -> JobsAcked:
    return JobsAcked(1, lease, first, count, state, b"block %d" % first, 0.1)


def test_what_a_transcript_says_of_a_lease_is_recorded_and_only_the_rest_is_charged() -> None:
    facts = attached(10, e.Recorded("b", 0, 1, JobState.SUCCEEDED), e.Charged("b", 3, 1, History(1, interruptions=1)))
    stale, fresh, failed, other = said(0), said(1, 2), said(4, state=JobState.FAILED), said(5, lease=6)
    begun = trace(Position(7, 6, Phase.RUNNING), stop=8)._replace(reports=(failed, other, fresh, stale, said(7)))

    entries = interrupted(facts, [begun], ALLOWED)

    assert entries == [
        e.Recorded("b", 1, 2, JobState.SUCCEEDED, b"block 1"),
        e.Charged("b", 3, 1, History(2)),  # There was progress.
        e.Charged("b", 4, 2, History(1)),
        e.Charged("b", 6, 1, History(1, interruptions=1)),
        e.Detached("b"),
    ]


def test_a_transcript_is_not_believed_beyond_what_its_worker_began() -> None:
    began_none = trace(None)._replace(reports=(said(0), said(4, 2)))
    beyond = trace(Position(7, 9, Phase.REPORTING))._replace(reports=(said(4, 2), said(0, 6)))

    assert interrupted(attached(), [began_none], ALLOWED) == [e.Detached("b")]
    assert interrupted(attached(), [beyond], ALLOWED) == [e.Charged("b", 0, 5, History(1)), e.Detached("b")]


def test_interrupted_too_often_without_progress_is_quarantined() -> None:
    facts = attached(10, e.Charged("b", 0, 1, History(1, interruptions=1)))

    entries = interrupted(facts, [trace(Position(7, 0, Phase.RUNNING))], ALLOWED, failure=b"why")

    assert entries == [e.Recorded("b", 0, 1, JobState.QUARANTINED, failure=b"why"), e.Detached("b")]


def test_progress_forgives_earlier_interruptions() -> None:
    charged, done = e.Charged("b", 0, 1, History(1, interruptions=1)), e.Recorded("b", 9, 1, JobState.SUCCEEDED)

    entries = interrupted(attached(10, charged, done), [trace(Position(7, 0, Phase.RUNNING))], ALLOWED)

    assert entries == [e.Charged("b", 0, 1, History(2, interruptions=1)), e.Detached("b")]


def test_recovering_twice_charges_once() -> None:
    facts, traces = attached(), [trace(Position(7, 2, Phase.RUNNING))]
    interrupted(facts, traces, ALLOWED)

    assert interrupted(facts, traces, ALLOWED) == []
    assert all_interrupted(facts) == []


def test_without_a_recorder_every_unfinished_job_may_have_begun() -> None:
    facts = attached(10, e.Recorded("b", 2, 3, JobState.SUCCEEDED), e.Charged("b", 5, 1, History(2, crashes=1)))

    assert all_interrupted(facts) == [
        e.Charged("b", 0, 2, History(1)),
        e.Charged("b", 5, 1, History(3, crashes=1)),
        e.Charged("b", 6, 4, History(1)),
        e.Detached("b"),
    ]


def test_of_a_batch_that_is_given_up_every_job_without_an_outcome_is_cancelled() -> None:
    facts = attached(10, e.Recorded("b", 2, 3, JobState.SUCCEEDED), e.Charged("b", 7, 1, History(1)))

    assert cancelled(facts, "why") == [
        e.CancelOrdered("b", "why"),
        e.Recorded("b", 0, 2, JobState.CANCELLED),
        e.Recorded("b", 5, 5, JobState.CANCELLED),
        e.Detached("b"),
    ]
    assert (facts.cancelled, facts.is_attached, facts.is_finished) == ("why", False, True)
    assert interrupted(facts, [trace(Position(7, 6, Phase.RUNNING))], ALLOWED) == []
