"""The flight recorder: a shared tmpfs file with one slot per worker, which outlives workers and supervisor.

It makes blame exact with no traffic. The supervisor writes a lane (lease, batch, range, attempt) before it sends
the lease; the worker makes one aligned store per job. The position is a 64-bit word, phase << 56 | lane << 48 |
offset; from one job to the next only its lower half changes, and 32 bits are what Python stores without making a
large integer. The lane's limit is how many jobs of the lease may run: the worker stores its position first and reads
the limit second, the supervisor writes the limit first, waits, and reads the position second, so one of them always
sees the other.

    file   page of 4,096 bytes: magic, boot id, journal id, epoch, how many slots; then the slots; then, from the next
           page on, a transcript for each slot whose worker has one
    slot   16 words: position, start of the job (monotonic ns), pid, size of the capture file at the start of the
           lease, how far the job says it is, lease that is to end, whether the job watches for that, size of the
           transcript (0: none), what the worker has as a writer of value files, 7 spare;
           then the lanes
    lane   8 words: lease, first, limit, attempt and flags (half a word each), stint, batch id (2 words), reach
"""

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from batchd.core.events import Phase, Position
from batchd.settings import DISK_RESERVE_BYTES, LANES, TRANSCRIPT_BYTES
from batchd.worker.transcript import Transcript

_HEADER: Final = struct.Struct("<8s36s36sQQ")
_LANE: Final = struct.Struct("<QQQIIQ16sQ")
_MAGIC: Final = b"batchdR4"
_HEADER_BYTES: Final = 4096
_HEAD_WORDS: Final = 16
_SLOT_WORDS: Final = _HEAD_WORDS + 8 * LANES
SLOT_BYTES: Final = 8 * _SLOT_WORDS
BATCH_ID_BYTES: Final = 16

POSITION: Final = 0
STARTED: Final = 1
PID: Final = 2
OUTPUT: Final = 3
PROGRESS: Final = 4
ENDING: Final = 5
WATCHED: Final = 6
TRANSCRIPT: Final = 7
WRITER: Final = 8
PHASE_SHIFT: Final = 56
LANE_SHIFT: Final = 48
OFFSET_MASK: Final = (1 << LANE_SHIFT) - 1
_SAID_BITS: Final = 24
_SAID_MAX: Final = (1 << _SAID_BITS) - 1


class LaneWord(IntEnum):
    """The words of a lane."""

    LEASE = 0
    FIRST = 1
    LIMIT = 2
    ATTEMPT = 3
    STINT = 4
    BATCH = 5
    REACH = 7


class Lane(NamedTuple):
    """One lease as the recorder describes it."""

    lease: int
    first: int
    stop: int
    attempt: int
    is_timed: bool
    batch: str
    reach: int
    """No job at or beyond this was begun under the lease, for sure; `stop` may be lower while a cut is under way."""
    reports_each: bool = False
    stint: int = 0
    """A batch that was removed and made again has the same id, and another stint."""


class Slot:
    """One worker's part of the recorder. `words` is for the worker's loop alone."""

    def __init__(self, words: memoryview) -> None:
        self.words = words

    def clear(self) -> None:
        """Make the slot say nothing, for a new worker."""
        self.words[:] = memoryview(bytes(SLOT_BYTES)).cast("Q")

    def write_lane(self, number: int, lane: Lane) -> None:
        """Describe a lease; done before the lease is sent."""
        batch = lane.batch.encode("ascii").ljust(BATCH_ID_BYTES, b"\0")
        count = lane.stop - lane.first
        flags = lane.is_timed | lane.reports_each << 1
        values = _LANE.pack(lane.lease, lane.first, count, lane.attempt, flags, lane.stint, batch, lane.reach)
        at = lane_at(number)
        self.words[at : at + 8] = memoryview(values).cast("Q")

    def lane(self, number: int) -> Lane:
        """Return what lane `number` describes."""
        at = lane_at(number)
        lease, first, limit, attempt, flags, stint, batch, reach = _LANE.unpack(self.words[at : at + 8].tobytes())
        name = batch.rstrip(b"\0").decode("ascii", "replace")
        is_timed, reports_each = bool(flags & 1), bool(flags & 2)
        return Lane(lease, first, first + limit, attempt, is_timed, name, reach, reports_each, stint)

    def lanes(self) -> Iterator[Lane]:
        """Give every lane that describes a lease."""
        for number in range(LANES):
            if self.words[lane_at(number)]:
                yield self.lane(number)

    def limit(self, number: int, stop: int) -> None:
        """Write the index at which the lease in lane `number` must stop; the worker may be beyond it already."""
        at = lane_at(number)
        self.words[at + LaneWord.LIMIT] = max(0, stop - self.words[at + LaneWord.FIRST])

    def settle(self, number: int, stop: int) -> None:
        """Write where the lease in lane `number` stops for certain."""
        self.limit(number, stop)
        self.words[lane_at(number) + LaneWord.REACH] = stop

    def offset_half(self) -> memoryview:
        """Return the lower half of the position word, the one a worker stores for each job."""
        return self._half(POSITION)

    def limit_half(self, number: int) -> memoryview:
        """Return the lower half of a lane's limit, the one a worker reads before each job."""
        return self._half(lane_at(number) + LaneWord.LIMIT)

    def tell_progress(self, lease: int, index: int, fraction: float) -> None:
        """Say how much of a job is done. What a job said is nobody else's: no job ever clears it."""
        self.words[PROGRESS] = _stamped(lease, index, 1 + round(fraction * (_SAID_MAX - 1)))

    def progress(self, position: Position) -> float | None:
        """Return how much of the job at a position is done, None when it did not say."""
        word = self.words[PROGRESS]
        if word >> _SAID_BITS != _stamped(position.lease, position.index, 0) >> _SAID_BITS or not word & _SAID_MAX:
            return None
        return round(((word & _SAID_MAX) - 1) / (_SAID_MAX - 1), 6)

    def end(self, lease: int) -> None:
        """Tell the job that runs under a lease that it is to end."""
        self.words[ENDING] = lease

    def is_ending(self, lease: int) -> bool:
        """Whether that was told."""
        return self.words[ENDING] == lease

    def watch(self, lease: int, index: int) -> None:
        """Say that a job looks whether it is to end."""
        self.words[WATCHED] = _stamped(lease, index, 1)

    def is_watched(self, position: Position) -> bool:
        """Whether the job at a position has looked."""
        return self.words[WATCHED] == _stamped(position.lease, position.index, 1)

    def absolve(self) -> None:
        """Say of the job that a worker was killed in that nothing but the supervisor's will ended it."""
        phase, place = divmod(self.words[POSITION], 1 << PHASE_SHIFT)
        if phase == Phase.RUNNING.value + 1:
            self.words[POSITION] = phase_word(Phase.REPORTING, 0) | place

    def _half(self, word: int) -> memoryview:
        at = 2 * word + (sys.byteorder == "big")
        return self.words.cast("B").cast("I")[at : at + 1]

    def position(self) -> Position | None:
        """Return where the worker is, None before its first lease."""
        word = self.words[POSITION]
        if not word:
            return None
        phase = Phase(min(max(1, word >> PHASE_SHIFT), 3) - 1)  # C code of a job may have written anything.
        at = lane_at((word >> LANE_SHIFT) & 0xFF)
        index = self.words[at + LaneWord.FIRST] + (word & OFFSET_MASK)
        # At rest the offset counts the jobs that were run, which may be none.
        return Position(self.words[at], index - (phase is Phase.IDLE), phase)


def phase_word(phase: Phase, lane: int) -> int:
    """Return the constant part of a position word. Phases are stored plus one: zero means never written."""
    return (phase.value + 1) << PHASE_SHIFT | lane << LANE_SHIFT


def _stamped(lease: int, index: int, said: int) -> int:
    """Return one word that says `said` (24 bits) of one job only, so that a stale one is known when it is read.

    A lease holds at most LEASE_JOBS_MAX jobs, so 16 bits tell them apart; 24 do so for all leases that may matter.
    """
    return (lease & 0xFFFFFF) << 40 | (index & 0xFFFF) << _SAID_BITS | said


def lane_at(number: int) -> int:
    """Return the word at which lane `number` starts."""
    return _HEAD_WORDS + 8 * (number % LANES)


def _transcripts_at(slots: int) -> int:
    """Return where the transcripts begin: at a page, so that none shares one with a slot."""
    return -(-(_HEADER_BYTES + slots * SLOT_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE


class Recorder:
    """The mapped file. Raises OSError when it cannot be opened, ValueError when it is not a recorder."""

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size < _HEADER_BYTES or size % 8:
            raise ValueError("the flight recorder is cut off")
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        self._words = memoryview(self._map).cast("Q")
        magic, boot, journal, self.epoch, self.slots = _HEADER.unpack_from(self._map)
        if magic != _MAGIC:
            raise ValueError("the flight recorder has another format")
        if size < _transcripts_at(self.slots):
            raise ValueError("the flight recorder is cut off")
        self.boot_id = boot.rstrip(b"\0").decode()
        self.journal_id = journal.rstrip(b"\0").decode()

    @classmethod
    def create(cls, path: Path, *, boot_id: str, journal_id: str, epoch: int, slots: int) -> "Recorder":
        """Make a new file, readable by its owner only; an old one of that name must be gone."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _transcripts_at(slots))  # Or a full tmpfs is a SIGBUS later on.
            with suppress(OSError):  # Files may not be that large here: there will be no transcripts.
                os.ftruncate(fd, _transcripts_at(slots) + slots * TRANSCRIPT_BYTES)  # A hole until a worker needs it.
        except OSError as error:
            os.close(fd)
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from None
        os.pwrite(fd, _HEADER.pack(_MAGIC, boot_id.encode(), journal_id.encode(), epoch, slots), 0)
        return cls(fd)

    @classmethod
    def open(cls, path: Path) -> "Recorder":
        """Open what an earlier supervisor left. Refuses a file of another owner."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        is_mine = os.fstat(fd).st_uid == os.geteuid()
        try:
            found = cls(fd) if is_mine else None
        except ValueError:
            os.close(fd)
            raise
        if found is None:
            os.close(fd)
            raise ValueError("the flight recorder belongs to somebody else")
        return found

    def slot(self, number: int) -> Slot:
        """Return slot `number`."""
        start = (_HEADER_BYTES // 8) + number * _SLOT_WORDS
        return Slot(self._words[start : start + _SLOT_WORDS])

    def clear(self, number: int) -> Slot:
        """Return slot `number` made ready for a new worker, with room for a transcript if there is any."""
        slot, start = self.slot(number), self._transcript_at(number)
        slot.clear()
        if start + TRANSCRIPT_BYTES <= len(self._map):
            with suppress(OSError):  # Memory is short: what it reports runs again if the supervisor dies.
                disk = os.fstatvfs(self.fd)
                if disk.f_bavail * disk.f_frsize < DISK_RESERVE_BYTES:
                    return slot  # Jobs may need what is left.
                os.posix_fallocate(self.fd, start, TRANSCRIPT_BYTES)
                slot.words[TRANSCRIPT] = TRANSCRIPT_BYTES
        return slot

    def transcript(self, number: int) -> Transcript | None:
        """Return the transcript of the worker in slot `number`, if it has one."""
        start, size = self._transcript_at(number), self.slot(number).words[TRANSCRIPT]
        if size != TRANSCRIPT_BYTES or start + size > len(self._map):
            return None
        return Transcript(memoryview(self._map)[start : start + size])

    def _transcript_at(self, number: int) -> int:
        return _transcripts_at(self.slots) + number * TRANSCRIPT_BYTES

    def close(self) -> None:
        """Close the descriptor; the mapping goes with its last user."""
        os.close(self.fd)
