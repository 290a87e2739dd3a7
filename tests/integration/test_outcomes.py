"""One reader of outcomes that is asked in any order says what a new one says."""

from contextlib import closing
from pathlib import Path
from random import Random

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.formats.report import Failure, fingerprint
from tests.written import failed, make, succeeded

NO = Failure("ValueError", "no", fingerprint("no"))


def states_of(outcomes: Outcomes, start: int, stop: int) -> dict[int, JobState]:
    """Return the state of each job of a range."""
    spans = outcomes.spans(RangeSet([(start, stop)]), 2)
    return {index: span.state for span in spans for index in range(span.start, span.stop)}


def test_what_a_reader_has_read_before_changes_nothing(folder: Path) -> None:
    make(folder, "abc1", size=60)
    with closing(BatchJournal(folder / "batches" / "abc1", is_writer=True)) as journal:
        journal.commit([failed("abc1", 0, *[NO] * 60), e.Sealed("abc1")])
        journal.commit([e.Reopened("abc1", 1, ((10, 12), (30, 34), (50, 52)), JobState.FAILED)])
        journal.commit([succeeded("abc1", 10, "a", "b")])
        journal.commit([succeeded("abc1", 30, "c", "d"), failed("abc1", 32, NO, NO), succeeded("abc1", 50, "e", "f")])
        journal.commit([e.Reopened("abc1", 2, ((33, 34), (40, 42)), JobState.FAILED)])
        journal.commit([succeeded("abc1", 33, "g")])
        journal.commit([succeeded("abc1", 40, "h", "i")])
    with closing(BatchJournal(folder / "batches" / "abc1")) as journal:
        whole = states_of(Outcomes(journal), 0, 60)
        good = {10, 11, 30, 31, 33, 40, 41, 50, 51}
        assert {index for index, state in whole.items() if state is JobState.SUCCEEDED} == good
        random, reader = Random(1), Outcomes(journal)
        for _ in range(500):
            start = random.randrange(60)
            stop = random.randint(start + 1, 60)
            assert states_of(reader, start, stop) == {index: whole[index] for index in range(start, stop)}
