"""The transcript: what a worker said last, in shared memory that outlives it and its supervisor.

A report is in a pipe until the supervisor reads it and in its memory until a commit, and both go with the supervisor.
So a worker writes each report here before it sends it, round and round, and the next supervisor records what it finds
(`core/replay.py`): no job that ended runs again because a supervisor died. Nobody tells a worker what is durable by
now. What is found may be so old that it is recorded already, and whoever reads it looks.

A record begins at a multiple of 64 bytes, with a mark, its length and its lease. It has no checksum: the frames and
blocks of a report have theirs, so what a death cut off, or a later record overwrote in part, shows in decoding.
"""

import struct
from collections.abc import Container, Iterator
from typing import Final

_HEAD: Final = struct.Struct("<4sIQ")
_MARK: Final = b"bdT2"
_STEP: Final = 64


class Transcript:
    """One worker's part of the memory.

    >>> transcript = Transcript(memoryview(bytearray(4096)))
    >>> transcript.note(9, b"jobs 0 to 7 succeeded")
    >>> list(transcript.reports({9})), list(transcript.reports({8}))
    ([b'jobs 0 to 7 succeeded'], [])
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._at = 0

    def note(self, lease: int, report: bytes) -> None:
        """Keep a report about a lease, at the price of the oldest; not one that would take half of the memory."""
        memory, start = self._memory, self._at
        stop = start + _HEAD.size + len(report)
        if stop > len(memory):
            start, stop = 0, stop - start
        if stop - start > len(memory) // 2:
            return
        _HEAD.pack_into(memory, start, _MARK, len(report), lease)
        memory[start + _HEAD.size : stop] = report
        self._at = -(-stop // _STEP) * _STEP

    def reports(self, leases: Container[int]) -> Iterator[bytes]:
        """Give what looks like a report about one of the leases, in no order: the last ones for certain."""
        memory, size = self._memory, len(self._memory)
        for at in range(0, size - _HEAD.size, _STEP):
            mark, length, lease = _HEAD.unpack_from(memory, at)
            start = at + _HEAD.size
            if mark == _MARK and lease in leases and length <= size - start:
                yield bytes(memory[start : start + length])
