"""What is read of outcomes is true: in any order, after retries, and whatever is damaged."""

from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Gap, Outcomes
from batchd.errors import JournalDamaged
from batchd.formats import tables
from batchd.formats.report import Failure, fingerprint
from tests.fault.ledger import Tally
from tests.ruin import change, stored
from tests.written import failed, make, succeeded

NO = Failure("ValueError", "no", fingerprint("no"))


def states_of(outcomes: Outcomes, start: int, stop: int) -> dict[int, JobState]:
    """Return the state of each job of a range."""
    spans = outcomes.spans(RangeSet([(start, stop)]), 2)
    return {index: span.state for span in spans for index in range(span.start, span.stop)}


def retried(folder: Path) -> Path:
    """Make a batch of 60 jobs that failed, of which some were retried, and some of those again."""
    make(folder, "abc1", size=60)
    place = folder / "batches" / "abc1"
    with closing(BatchJournal(place, is_writer=True)) as journal:
        journal.commit([failed("abc1", 0, *[NO] * 58), succeeded("abc1", 58, "y", "z"), e.Sealed("abc1")])
        journal.commit([e.Reopened("abc1", 1, ((10, 12), (30, 34), (50, 52)), JobState.FAILED)])
        journal.commit([succeeded("abc1", 10, "a", "b")])
        journal.commit([succeeded("abc1", 30, "c", "d"), failed("abc1", 32, NO, NO), succeeded("abc1", 50, "e", "f")])
        journal.commit([e.Reopened("abc1", 2, ((33, 34), (40, 42)), JobState.FAILED)])
        journal.commit([succeeded("abc1", 33, "g")])
        journal.commit([succeeded("abc1", 40, "h", "i")])
    return place


def test_what_a_reader_has_read_before_changes_nothing(folder: Path) -> None:
    with closing(BatchJournal(retried(folder))) as journal:
        whole = states_of(Outcomes(journal), 0, 60)
        good = {10, 11, 30, 31, 33, 40, 41, 50, 51, 58, 59}
        assert {index for index, state in whole.items() if state is JobState.SUCCEEDED} == good
        random, reader = Random(1), Outcomes(journal)
        for _ in range(500):
            start = random.randrange(60)
            stop = random.randint(start + 1, 60)
            assert states_of(reader, start, stop) == {index: whole[index] for index in range(start, stop)}


@pytest.mark.covers("J1")
def test_whatever_is_damaged_what_is_told_is_true(folder: Path, tally: Tally) -> None:
    """Bytes of up to three records are changed; a job is told as it was, or as damaged, and none is left out."""
    place, random = retried(folder), Random(2)
    with closing(BatchJournal(place)) as journal:
        whole = states_of(Outcomes(journal), 0, 60)
    data, records = (place / "data.mdb").read_bytes(), stored(place, tables.OUTCOMES)
    lost = opened = 0
    for _ in range(300):
        (place / "data.mdb").write_bytes(data)
        for key in random.sample(sorted(records), random.randint(1, 3)):
            record = bytearray(records[key])
            record[random.randrange(len(record))] ^= random.randint(1, 255)
            change(place, tables.OUTCOMES, key, bytes(record))
        try:
            journal = BatchJournal(place)
        except JournalDamaged:
            continue  # A head that opening reads.
        opened, at = opened + 1, 0
        with closing(journal):
            for piece in Outcomes(journal).pieces(RangeSet([(0, 60)]), 2):
                assert (piece.start, piece.stop > piece.start) == (at, True)
                at = piece.stop
                if isinstance(piece, Gap):
                    lost += piece.stop - piece.start
                else:
                    assert {whole[index] for index in range(piece.start, piece.stop)} == {piece.state}
        assert at == 60
    assert opened > 30, "nearly none was opened"
    assert lost > opened, "nothing was ever damaged"
    tally.injected(300)
