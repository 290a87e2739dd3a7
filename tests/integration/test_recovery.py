"""What a start does with what a dead supervisor left: slots and transcripts in a recorder made by hand."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from batchd.core import entries as e
from batchd.core.events import Phase
from batchd.core.job import JobState
from batchd.edge.folder import journal_id, open_folder, recorder_path
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import boot_id
from batchd.formats import frame
from batchd.formats.report import ACK, NO_FINGERPRINT, Report
from batchd.formats.segment import pack_vector
from batchd.supervisor import recovery
from batchd.supervisor.recovery import recover
from batchd.worker.recorder import POSITION, Lane, Recorder, phase_word
from tests.author import submission

LEASE, JOBS = 7, 10


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchJournal]:
    """A batch whose worker had begun jobs 0 to 4 and said what became of 0 to 3, when the supervisor died."""
    monkeypatch.setattr(recovery, "become_subreaper", lambda: None)
    folder = open_folder(tmp_path / "journal")
    journal = BatchJournal.create(folder / "batches" / "b", {})
    journal.commit([submission(journal.facts, list(range(JOBS))), e.Attached("b", 1)])
    path = recorder_path(folder, journal_id(folder))
    recorder = Recorder.create(path, boot_id=boot_id(), journal_id=journal_id(folder), epoch=1, slots=2)
    slot = recorder.clear(0)
    slot.write_lane(0, Lane(LEASE, 0, JOBS, attempt=1, is_timed=False, batch="b", reach=JOBS, stint=1))
    slot.words[POSITION] = phase_word(Phase.RUNNING, 0) | 4
    transcript = recorder.transcript(0)
    assert transcript is not None
    transcript.note(LEASE, acknowledging(0, [0, 1, 4, 9]))
    recorder.close()
    journal.close()
    yield journal
    path.unlink(missing_ok=True)


def acknowledging(first: int, values: list[Any]) -> bytes:
    block = pack_vector(first, JobState.SUCCEEDED, values)
    return frame.encode(Report.ACK, ACK.pack(LEASE, 1_000, NO_FINGERPRINT), len(block)) + block


def recovered(left: BatchJournal) -> BatchJournal:
    ground = recover(left.folder.parents[1])
    os.close(ground.lock._fd)
    ground.recorder.close()
    ground.recorder_path.unlink()
    return BatchJournal(left.folder)


def test_what_was_said_is_recorded_and_what_was_cut_off_is_charged(left: BatchJournal) -> None:
    journal = recovered(left)
    assert list(journal.facts.done) == [(0, 4)]
    assert journal.facts.count(JobState.SUCCEEDED) == 4
    assert journal.facts.histories.get(4).interruptions == 1
    assert journal.facts.histories.get(5).attempts == 0
    assert not journal.facts.is_attached
    journal.close()


@pytest.mark.covers("T3")
def test_after_a_reboot_the_recorder_says_nothing(left: BatchJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    journal = recovered(left)
    assert journal.facts.is_attached, "whoever opens it charges all that may have begun"
    assert not journal.facts.done
    assert not journal.facts.histories
    journal.close()


def test_what_was_said_of_another_batch_with_the_same_id_is_nothing(left: BatchJournal) -> None:
    """As if nothing were known: whoever opens the batch charges all that may have begun."""
    shutil.rmtree(left.folder)
    again = BatchJournal.create(left.folder, {})
    again.commit([submission(again.facts, list(range(JOBS))), e.Attached("b", 2)])
    again.close()
    journal = recovered(left)
    assert journal.facts.is_attached
    assert not journal.facts.done
    assert not journal.facts.histories
    journal.close()


@pytest.mark.covers("D1")
def test_where_there_is_no_room_for_results_a_start_makes_do_without(
    left: BatchJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BatchJournal.commit

    def commit(journal: BatchJournal, entries: list[e.Entry]) -> Any:
        if any(isinstance(entry, e.Recorded) and entry.block for entry in entries):
            raise lmdb.DiskError(f"mdb_txn_commit: {os.strerror(errno.ENOSPC)}")
        return real(journal, entries)

    monkeypatch.setattr(BatchJournal, "commit", commit)
    journal = recovered(left)
    assert list(journal.facts.done) == []
    assert [journal.facts.histories.get(index).attempts for index in range(6)] == [1, 1, 1, 1, 1, 0]
    assert not journal.facts.is_attached
    journal.close()
