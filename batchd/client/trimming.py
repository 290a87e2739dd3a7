"""What a throw-away journal may forget: jobs whose outcomes their client has read.

The one idea: a record is deleted only when every job in it was read, so what is told to the supervisor are the whole
stretches that were read so far, as far as they have grown since it was told last.
"""

from typing import Final

from batchd.core.ranges import Range, RangeSet

_JOBS: Final = 8_192
_BYTES: Final = 32 << 20


class Trimming:
    """Jobs read and not yet forgotten.

    >>> trimming = Trimming()
    >>> trimming.add(0, 10, 64 << 20), trimming.due()
    (None, [(0, 10)])
    >>> trimming.add(10, 20, 64 << 20), trimming.due(), trimming.due()
    (None, [(0, 20)], [])
    """

    def __init__(self) -> None:
        self._read = RangeSet()
        self._since: list[Range] = []
        self._jobs = self._bytes = 0

    def add(self, start: int, stop: int, size: int) -> None:
        """Take in that jobs [start, stop), whose outcomes are about `size` bytes, were read."""
        self._read.add(start, stop)
        self._since.append((start, stop))
        self._jobs += stop - start
        self._bytes += size

    def due(self) -> list[Range]:
        """Return what is worth forgetting now, [] when it is too little."""
        if self._jobs < _JOBS and self._bytes < _BYTES:
            return []
        grown = RangeSet()
        for start, _ in self._since:
            if start not in grown:
                grown.add(*self._read.around(start))
        self._since, self._jobs, self._bytes = [], 0, 0
        return list(grown)
