"""The flight recorder: what the worker's one store says, read by another process and after the worker's death."""

import os
import stat
from pathlib import Path

import pytest

from batchd.core.events import Phase, Position
from batchd.settings import LANES
from batchd.worker.recorder import (
    LANE_SHIFT,
    OFFSET_MASK,
    PHASE_SHIFT,
    POSITION,
    SLOT_BYTES,
    Lane,
    LaneWord,
    Recorder,
    Slot,
    lane_at,
    phase_word,
)

LARGEST = (1 << 64) - 1


@pytest.fixture
def slot() -> Slot:
    return Slot(memoryview(bytearray(SLOT_BYTES)).cast("Q"))


def lane(lease: int, first: int = 0, stop: int | None = None) -> Lane:
    stop = first + 10 if stop is None else stop
    return Lane(lease, first, stop, attempt=1, is_timed=False, batch="b", reach=stop)


def test_nothing_was_said_before_the_first_lease(slot: Slot) -> None:
    slot.write_lane(0, lane(1))
    assert slot.position() is None


@pytest.mark.parametrize(
    "described",
    [
        Lane(1, 0, 1, 1, is_timed=False, batch="", reach=1),
        Lane(
            2**63,
            10**12,
            10**12 + 5,
            7,
            is_timed=False,
            batch="0123456789abcdef",
            reach=10**12 + 4,
            reports_each=True,
            stint=1,
        ),
        Lane(
            LARGEST,
            LARGEST,
            LARGEST,
            2**32 - 1,
            is_timed=True,
            batch="b-2",
            reach=LARGEST,
            reports_each=True,
            stint=LARGEST,
        ),
    ],
)
@pytest.mark.parametrize("number", [0, 3, LANES - 1])
def test_a_lane_reads_back_as_it_was_written(slot: Slot, described: Lane, number: int) -> None:
    slot.write_lane(number, described)
    assert slot.lane(number) == described
    assert list(slot.lanes()) == [described]


def test_lanes_do_not_touch_each_other_or_the_slots_own_words(slot: Slot) -> None:
    slot.words[:8] = memoryview(bytes([7]) * 64).cast("Q")
    for number in range(LANES):
        slot.write_lane(number, lane(number + 1, first=100 * number, stop=100 * number + 9))
    assert [found.first for found in slot.lanes()] == [100 * number for number in range(LANES)]
    assert bytes(slot.words[:8].cast("B")) == bytes([7]) * 64


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.29, 0.42, 0.5, 1.0])
@pytest.mark.parametrize(("lease", "index"), [(1, 0), (7, 12), (2**24, 2**16), (2**40 + 3, 10**12)])
def test_progress_is_of_one_job_of_one_lease(slot: Slot, lease: int, index: int, fraction: float) -> None:
    here = Position(lease, index, Phase.RUNNING)
    assert slot.progress(here) is None
    slot.tell_progress(lease, index, fraction)
    assert slot.progress(here) == fraction
    assert slot.progress(Position(lease, index + 1, Phase.RUNNING)) is None
    assert slot.progress(Position(lease + 1, index, Phase.RUNNING)) is None
    slot.clear()
    assert slot.progress(here) is None


@pytest.mark.parametrize(("lease", "index"), [(1, 0), (7, 12), (2**24, 2**16)])
def test_who_watches_and_who_is_to_end_is_said_of_one_job(slot: Slot, lease: int, index: int) -> None:
    here = Position(lease, index, Phase.RUNNING)
    assert (slot.is_watched(here), slot.is_ending(lease)) == (False, False)
    slot.watch(lease, index)
    slot.end(lease)
    assert (slot.is_watched(here), slot.is_ending(lease)) == (True, True)
    assert not slot.is_watched(Position(lease, index + 1, Phase.RUNNING))
    assert not slot.is_watched(Position(lease + 1, index, Phase.RUNNING))
    assert not slot.is_ending(lease + 1)
    assert slot.progress(here) is None
    assert slot.position() is None


def test_a_lane_that_is_used_again_tells_of_its_new_lease_only(slot: Slot) -> None:
    slot.write_lane(2, lane(5, first=0, stop=50))
    slot.words[POSITION] = phase_word(Phase.IDLE, 2) | 50
    slot.write_lane(2, lane(6, first=70, stop=80))
    slot.words[POSITION] = phase_word(Phase.RUNNING, 2) | 1
    assert slot.position() == Position(lease=6, index=71, phase=Phase.RUNNING)
    assert [found.lease for found in slot.lanes()] == [6]


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.REPORTING])
@pytest.mark.parametrize("number", [0, 9, LANES - 1])
@pytest.mark.parametrize("offset", [0, 1, OFFSET_MASK])
def test_a_position_is_lane_phase_and_offset_in_one_word(slot: Slot, phase: Phase, number: int, offset: int) -> None:
    slot.write_lane(number, lane(8, first=1_000))
    slot.words[POSITION] = phase_word(phase, number) | offset
    assert slot.position() == Position(lease=8, index=1_000 + offset, phase=phase)


@pytest.mark.parametrize(("jobs_run", "last"), [(0, 999), (1, 1_000), (10, 1_009)])
def test_at_rest_the_offset_counts_the_jobs_that_were_run(slot: Slot, jobs_run: int, last: int) -> None:
    slot.write_lane(1, lane(8, first=1_000))
    slot.words[POSITION] = phase_word(Phase.IDLE, 1) | jobs_run
    assert slot.position() == Position(lease=8, index=last, phase=Phase.IDLE)


def test_the_lower_halves_are_what_the_words_say(slot: Slot) -> None:
    slot.write_lane(3, lane(8, first=500, stop=600))
    slot.words[POSITION] = phase_word(Phase.RUNNING, 3)
    slot.offset_half()[0] = 12  # As the worker's loop does for each job.
    assert slot.words[POSITION] == phase_word(Phase.RUNNING, 3) | 12
    assert slot.position() == Position(8, 512, Phase.RUNNING)
    assert slot.limit_half(3)[0] == 100
    slot.limit(3, 517)
    assert slot.limit_half(3)[0] == 17


def test_a_limit_changes_the_stop_and_nothing_else(slot: Slot) -> None:
    slot.write_lane(4, lane(8, first=3, stop=90))
    slot.limit(4, 17)
    assert slot.lane(4) == lane(8, first=3, stop=90)._replace(stop=17)
    assert slot.words[lane_at(4) + LaneWord.LIMIT] == 14
    slot.settle(4, 19)  # The worker was seen beyond the limit.
    assert slot.lane(4) == lane(8, first=3, stop=19)


def test_a_cleared_slot_says_nothing(slot: Slot) -> None:
    slot.write_lane(4, lane(8))
    slot.words[POSITION] = phase_word(Phase.RUNNING, 4)
    slot.clear()
    assert slot.position() is None
    assert list(slot.lanes()) == []


@pytest.mark.parametrize(
    "word", [1, OFFSET_MASK, 1 << LANE_SHIFT, (1 << PHASE_SHIFT) - 1, LARGEST, 0xFFFF << LANE_SHIFT]
)
def test_a_scribbled_word_is_read_without_an_error(slot: Slot, word: int) -> None:
    """C code in a job can write anywhere; a supervisor must be able to start over it."""
    slot.write_lane(0, lane(1))
    slot.words[POSITION] = word
    position = slot.position()
    assert position is None or position.phase in Phase


# --- The file --------------------------------------------------------------------------------------------------


def make(path: Path, slots: int = 3) -> Recorder:
    return Recorder.create(path, boot_id="boot-1", journal_id="journal-1", epoch=4, slots=slots)


def test_the_file_tells_later_readers_whose_it_is(tmp_path: Path) -> None:
    made = make(tmp_path / "recorder")
    made.slot(2).write_lane(1, lane(9))
    found = Recorder.open(tmp_path / "recorder")
    assert (found.boot_id, found.journal_id, found.epoch, found.slots) == ("boot-1", "journal-1", 4, 3)
    assert [list(found.slot(number).lanes()) for number in range(3)] == [[], [], [lane(9)]]
    made.slot(0).words[POSITION] = phase_word(Phase.RUNNING, 1)
    assert found.slot(0).words[POSITION] == phase_word(Phase.RUNNING, 1)
    made.close()
    found.close()


@pytest.mark.covers("X13")
def test_the_file_is_the_owners_alone_and_never_somebody_elses(tmp_path: Path) -> None:
    make(tmp_path / "recorder").close()
    assert stat.S_IMODE((tmp_path / "recorder").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        make(tmp_path / "recorder")
    (tmp_path / "link").symlink_to(tmp_path / "recorder")
    with pytest.raises(OSError, match="symbolic links"):
        Recorder.open(tmp_path / "link")


@pytest.mark.covers("X13")
def test_a_file_of_another_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "recorder").close()
    monkeypatch.setattr(os, "geteuid", lambda: 987_654)
    with pytest.raises(ValueError, match="belongs to somebody else"):
        Recorder.open(tmp_path / "recorder")


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 8_192, b"\xff" * 8_192, b"batchdR1" + b"\xff" * 8_192])
def test_what_is_no_recorder_is_refused_and_let_go(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recorder").write_bytes(content)
    before = list(Path("/proc/self/fd").iterdir())
    with pytest.raises(ValueError):
        Recorder.open(tmp_path / "recorder")
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)
