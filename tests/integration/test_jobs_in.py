"""Which jobs are in a state, told by the heads of the outcome records alone."""

from pathlib import Path

import pytest

from batchd.core.job import JobState
from batchd.edge import journal as journal_module
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import jobs_in
from batchd.errors import JournalDamaged
from batchd.formats import tables
from tests.author import Author, submission, success

ENDS = [{JobState.FAILED, JobState.CANCELLED}, {JobState.SUCCEEDED}, {JobState.QUARANTINED}]


@pytest.mark.parametrize("seed", range(8))
def test_a_job_is_in_the_state_of_its_latest_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(journal_module, "RECORD_BYTES_MAX", 300)  # So that there are more records than are one part.
    author = Author("b", seed)
    journal = BatchJournal.create(tmp_path / "b", {"durability": "process"})
    for _ in range(60):
        journal.commit(author.commit())
    for states in ENDS:
        found = jobs_in(journal, journal.facts, states)
        assert found is not None
        assert found.keys() == states
        named = {index: state for state, jobs in found.items() for part in jobs for index in range(*part)}
        assert named == {index: state for index, (state, _) in author.outcomes.items() if state in states}
    journal.close()
    assert jobs_in(journal, journal.facts, {JobState.FAILED}) is None, "a batch that is closed was read"


@pytest.mark.parametrize("count", [15, 16, 17, 32])
def test_the_end_is_found_however_many_records_there_are(tmp_path: Path, count: int) -> None:
    journal = BatchJournal.create(tmp_path / "b", {"durability": "process"})
    journal.commit([submission(journal.facts, list(range(count)))])
    for index in range(count):
        journal.commit([success("b", index, [index])])
    found = jobs_in(journal, journal.facts, {JobState.SUCCEEDED})
    assert found is not None
    assert list(found[JobState.SUCCEEDED]) == [(0, count)]
    journal.close()


@pytest.mark.parametrize("torn", [b"what is no block", success("b", 0, [1]).block[:-1] + b"\0BD"])
def test_what_is_no_block_is_called_damage(tmp_path: Path, torn: bytes) -> None:
    journal = BatchJournal.create(tmp_path / "b", {"durability": "process"})
    journal.commit([submission(journal.facts, [1]), success("b", 0, [1])])
    with journal._writing() as txn:
        txn.put(tables.OUTCOME.pack(0, 0), torn, db=journal.table(tables.OUTCOMES))
    with pytest.raises(JournalDamaged, match="batch b: an outcome record from job 0 on"):
        jobs_in(journal, journal.facts, {JobState.SUCCEEDED})
    journal.close()
