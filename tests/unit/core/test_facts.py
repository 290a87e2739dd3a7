"""What is durably true: what follows from which entry, what cannot follow, and what it costs."""

import pytest

from batchd.core import entries as e
from batchd.core.facts import BATCH_TRANSITIONS, BatchFacts, BatchState, apply
from batchd.core.job import History, JobState
from batchd.errors import IllegalTransition


def submitted(count: int, first: int = 0) -> e.Submitted:
    return e.Submitted("b", first, count, (), "client", 1, "here")


def told(*entries: e.Entry) -> BatchFacts:
    facts = BatchFacts("b")
    for entry in entries:
        apply(facts, entry)
    return facts


def test_a_submission_is_remembered() -> None:
    facts = told(submitted(5))

    assert (facts.size, facts.sequences, facts.checkpoint) == (5, {"client": (1, 0)}, "here")


@pytest.mark.parametrize(
    ("before", "entry"),
    [
        ([submitted(5)], submitted(5)),
        ([submitted(5), e.Sealed("b")], submitted(5, first=5)),
        ([submitted(5)], e.Recorded("b", 4, 2, JobState.SUCCEEDED)),
        ([submitted(5)], e.Recorded("b", 0, 1, JobState.QUEUED)),
        ([submitted(5), e.Recorded("b", 2, 1, JobState.FAILED)], e.Recorded("b", 0, 5, JobState.SUCCEEDED)),
        ([submitted(5), e.Recorded("b", 2, 1, JobState.FAILED)], e.Charged("b", 2, 1, History(1))),
        ([submitted(5)], e.Charged("b", 5, 1, History(1))),
        (
            [submitted(5), e.Recorded("b", 0, 5, JobState.SUCCEEDED)],
            e.Reopened("b", 1, ((0, 5),), JobState.SUCCEEDED),
        ),
        ([submitted(5), e.Recorded("b", 0, 5, JobState.FAILED)], e.Reopened("b", 2, ((0, 5),), JobState.FAILED)),
        ([submitted(5), e.Recorded("b", 0, 4, JobState.FAILED)], e.Reopened("b", 1, ((0, 5),), JobState.FAILED)),
        ([], e.Entry("b")),
    ],
)
def test_a_fact_that_cannot_follow_is_refused(before: list[e.Entry], entry: e.Entry) -> None:
    facts = told(*before)

    with pytest.raises(IllegalTransition):
        apply(facts, entry)


def test_an_explanation_changes_nothing() -> None:
    assert told(e.Explained("b", b"print", b"text")) == BatchFacts("b")


def test_attempts_go_on_above_every_number_of_earlier_generations() -> None:
    facts = told(
        submitted(3),
        e.Charged("b", 0, 1, History(2, failures=2)),
        e.Recorded("b", 0, 2, JobState.FAILED),
        e.Recorded("b", 2, 1, JobState.QUARANTINED),
        e.Reopened("b", 1, ((0, 2),), JobState.FAILED),
        e.Reopened("b", 1, ((2, 3),), JobState.QUARANTINED),
    )

    assert facts.histories.marked() == [(0, 3, History(attempts=3))]
    assert (facts.generation, facts.done.size, facts.count(JobState.FAILED)) == (1, 0, 0)


STEPS: dict[str, list[e.Entry]] = {
    "seal": [e.Sealed("b")],
    "last outcome": [e.Recorded("b", 1, 1, JobState.SUCCEEDED)],
    "stop rule": [e.Stopped("b", "why")],
    "run again": [e.Attached("b", 2)],
    "cancel": [e.CancelOrdered("b", "why")],
    "input grew": [e.Unsealed("b")],
    "retry": [e.Reopened("b", 1, ((0, 1),), JobState.FAILED)],
}
START: list[e.Entry] = [submitted(2), e.Recorded("b", 0, 1, JobState.FAILED)]


def follow(path: list[str]) -> BatchFacts | None:
    """The facts after the steps, None where one cannot be taken: the scheduler never records it there."""
    facts = told(*START)
    for step in path:
        state = facts.state
        if (
            (step == "cancel" and state in {BatchState.CANCELLED, BatchState.FINISHED})
            or (step == "stop rule" and state not in {BatchState.OPEN, BatchState.SEALED})
            or (step == "last outcome" and (not facts.is_sealed or state is BatchState.CANCELLED))
            or (step == "input grew" and state in {BatchState.CANCELLED, BatchState.STOPPED})
            or (step == "seal" and state is BatchState.STOPPED)
        ):
            return None
        try:
            for entry in STEPS[step]:
                apply(facts, entry)
        except IllegalTransition:
            return None
    return facts


def test_the_arrows_of_the_diagram_are_those_that_the_facts_take() -> None:
    arrows: set[tuple[BatchState, str, BatchState]] = set()
    paths: list[list[str]] = [[]]
    for path in paths:
        before = follow(path)
        assert before is not None
        for step in STEPS:
            after = follow([*path, step])
            if after is None or len(path) > 4:
                continue
            paths.append([*path, step])
            if after.state is not before.state:
                arrows.add((before.state, step, after.state))

    drawn = {(start, label.split(",")[0], stop) for (start, label), stop in BATCH_TRANSITIONS.items()}
    assert arrows == drawn
    assert told(submitted(0), e.Sealed("b")).state is BatchState.FINISHED


def test_a_hundred_million_successes_cost_one_range() -> None:
    facts = told(submitted(100_000_000), e.Sealed("b"))
    for first in range(0, 100_000_000, 100_000):
        apply(facts, e.Recorded("b", first, 100_000, JobState.SUCCEEDED))

    assert (list(facts.done), len(facts.histories), facts.state) == ([(0, 100_000_000)], 0, BatchState.FINISHED)
