"""Value files that no record names: deleted when nobody lives who may yet name them, and no others."""

from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.job import JobState
from batchd.core.replay import LeaseTrace
from batchd.edge import outcomes, strays
from batchd.edge.damage import check_batch
from batchd.edge.journal import BatchJournal
from batchd.edge.reports import files_of as files_of_report
from batchd.formats import tables
from batchd.formats.reference import keep_nothing
from batchd.formats.segment import input_blocks, pack_plain, references_in, unpack
from batchd.supervisor import recovery
from batchd.worker.valuefiles import VALUES_NAME, ValueFiles
from tests.commands import WAIT_S
from tests.values import JOBS, WORKER, author, files_of, large, locks_of, named_in


def sweep(journal: BatchJournal) -> None:
    """Do what is done when a batch is taken up, to the end."""
    if found := strays.suspects(journal):
        for part, _ in enumerate(strays.sweep(journal, found)):
            assert part < 100, "it never ends"


@pytest.mark.covers("J8")
def test_only_what_no_record_names_and_nobody_may_yet_send_is_swept(tmp_path: Path) -> None:
    place = tmp_path / "b"
    author(place).close()
    expected = files_of(place)
    other = ValueFiles(place, is_synced=True, worker=WORKER + 1)
    assert all(other.keep([large(9)], job) for job in (0, 1, 3, 9))  # Of jobs that others recorded, and of none.
    living, dead = (ValueFiles(place, is_synced=True) for _ in range(2))
    assert dead.keep([large(9)])
    held = files_of(place)
    assert living.keep([large(9)])
    held = files_of(place) - held
    assert len(held) == 1
    dead.close()
    (place / VALUES_NAME / "not ours").write_text("x")
    journal = BatchJournal(place, is_writer=True)
    sweep(journal)
    assert files_of(place) == expected | held | {"not ours"}
    assert locks_of(place) == {f"{living._writer:016x}"}
    living.close()
    sweep(journal)
    assert files_of(place) == expected | {"not ours"}
    assert not locks_of(place)
    journal.close()
    assert check_batch(place).is_well


@pytest.mark.covers("J8")
@pytest.mark.parametrize("jobs", [JOBS + 150, 160])  # More records than are looked at in one part, or ten parts.
def test_what_a_dead_client_sent_is_kept(tmp_path: Path, jobs: int) -> None:
    place = tmp_path / "b"
    author(place).close()
    journal, client = BatchJournal(place, is_writer=True), ValueFiles(place, is_synced=True)
    for job in range(JOBS, jobs):
        keep = client.keep if job % 50 == 0 else keep_nothing
        blocks = tuple(block for _, block in input_blocks([large(job) if keep is not keep_nothing else job], keep))
        journal.commit([e.Submitted("b", job, 1, blocks, "d", job, "")])
    expected = files_of(place)
    assert client.keep([large(9)])
    client.close()
    sweep(journal)
    journal.close()
    assert files_of(place) == expected
    assert not locks_of(place)
    assert len(named_in(place, tables.INPUTS)) == JOBS + len(range(50, jobs, 50))
    assert check_batch(place).is_well


@pytest.mark.covers("J8")
def test_a_file_is_kept_while_the_record_that_may_name_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "b"
    author(place).close()
    worker, client = ValueFiles(place, is_synced=True, worker=WORKER + 1), ValueFiles(place, is_synced=True)
    assert worker.keep([large(9)], 1)
    assert client.keep([large(9)])
    client.close()
    before = files_of(place)
    journal = BatchJournal(place, is_writer=True)
    with monkeypatch.context() as patch:
        patch.setattr(strays, "references_in", lambda record: references_in(b"x" + record))
        patch.setattr(outcomes, "unpack", lambda record, read: unpack(b"x" + record, read))
        sweep(journal)
    assert files_of(place) == before
    assert locks_of(place)
    sweep(journal)
    journal.close()
    assert len(files_of(place)) == len(before) - 2
    assert not locks_of(place)


@pytest.mark.covers("J8")
def test_a_batch_that_is_put_down_is_not_searched_on(tmp_path: Path) -> None:
    """Nor is it closed within a part of the search."""
    place = tmp_path / "b"
    author(place).close()
    expected, files = files_of(place), ValueFiles(place, is_synced=True, worker=WORKER + 1)
    assert all(files.keep([large(9)], job) for job in range(65))
    before = files_of(place)
    journal = BatchJournal(place, is_writer=True)
    found = strays.suspects(journal)
    assert found
    parts = strays.sweep(journal, found)
    next(parts)
    after = files_of(place)
    assert expected < after < before
    with journal.held() as txn:
        assert txn is not None
        closing = Thread(target=journal.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        assert txn.stat(db=journal.table(tables.INPUTS))["entries"] == JOBS
    closing.join(WAIT_S)
    assert list(parts) == []
    assert files_of(place) == after


@pytest.mark.covers("J8", "S1")
def test_a_transcript_is_not_believed_about_a_file_that_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "b"
    author(place).close()
    files = ValueFiles(place, is_synced=True, worker=WORKER + 1)
    said = []
    for job in (2, 3):
        block = pack_plain(job, JobState.SUCCEEDED, [large(job)], partial(files.keep, job=job))
        said.append(ev.JobsAcked(1, 7, job, 1, JobState.SUCCEEDED, block, 0.0, b""))
    small = ev.JobsAcked(
        1, 7, 4, 2, JobState.SUCCEEDED, pack_plain(4, JobState.SUCCEEDED, [1, 2], files.keep), 0.0, b""
    )
    trace = LeaseTrace("b", 1, 7, 2, 6, None, (*said, small))
    assert recovery._without_lost(place, trace) == trace
    (place / VALUES_NAME / files_of_report(said[0])[0].name).unlink()
    assert recovery._without_lost(place, trace).reports == (said[1], small)
