"""What becomes of a job: the table, cause by cause."""

import pytest

from batchd.core.job import FRESH, TRANSITIONS, Allowances, Cause, History, JobState, Trigger, Verdict, after

ALLOWED = Allowances(retries=1, crashes_max=3, interruptions_max=2)


@pytest.mark.parametrize(
    ("history", "cause", "verdict"),
    [
        (FRESH, Cause.SUCCESS, Verdict(JobState.SUCCEEDED, History(1))),
        (FRESH, Cause.CANCEL, Verdict(JobState.CANCELLED, History(1))),
        (FRESH, Cause.REPLAY, Verdict(JobState.QUEUED, History(1))),
        (FRESH, Cause.FAILURE, Verdict(JobState.BACKOFF, History(1, failures=1))),
        (History(1, failures=1), Cause.FAILURE, Verdict(JobState.FAILED, History(2, failures=2))),
        (FRESH, Cause.CRASH, Verdict(JobState.QUEUED, History(1, crashes=1))),
        (History(1, crashes=1), Cause.CRASH, Verdict(JobState.BACKOFF, History(2, crashes=2))),
        (History(2, crashes=2), Cause.CRASH, Verdict(JobState.QUARANTINED, History(3, crashes=3))),
        (FRESH, Cause.INTERRUPTION, Verdict(JobState.QUEUED, History(1, interruptions=1))),
        (History(1, 0, 0, 1), Cause.INTERRUPTION, Verdict(JobState.QUARANTINED, History(2, interruptions=2))),
    ],
)
def test_what_counts_as_what(history: History, cause: Cause, verdict: Verdict) -> None:
    assert after(history, cause, ALLOWED) == verdict


def test_a_job_that_may_be_guilty_is_suspect() -> None:
    assert [History(9, 9).is_suspect, History(crashes=1).is_suspect, History(interruptions=1).is_suspect] == [
        False,
        True,
        True,
    ]


def test_final_states_are_the_stored_ones() -> None:
    assert [state.name for state in JobState if state.is_final] == ["SUCCEEDED", "FAILED", "QUARANTINED", "CANCELLED"]
    assert [int(state) for state in JobState if state.is_final] == [3, 4, 5, 6]


def test_every_state_can_be_reached_and_every_trigger_is_used() -> None:
    reached = {JobState.QUEUED}
    for _ in TRANSITIONS:
        reached |= {stop for (start, _), stop in TRANSITIONS.items() if start in reached}

    assert reached == set(JobState)
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


def test_a_success_is_never_left() -> None:
    assert not [arrow for arrow in TRANSITIONS if arrow[0] is JobState.SUCCEEDED]
