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
    >>> trimming.sent(20, 20 << 20), trimming.add(20, 30, 0), trimming.due(), trimming.add(30, 40, 22 << 20)
    (None, None, [], None)
    >>> trimming.due()
    [(0, 40)]
    >>> trimming.add(40, 41, 0), trimming.due(), trimming.due(is_full=True), trimming.due(is_full=True)
    (None, [], [(0, 41)], [])
    """

    def __init__(self) -> None:
        self._read = RangeSet()
        self._since: list[Range] = []
        self._jobs = self._bytes = 0
        self._sent_jobs = self._sent_bytes = 0
        """Of jobs sent and not read: their inputs lie in the journal too."""

    def sent(self, jobs: int, size: int) -> None:
        """Take in that this many jobs, whose inputs are `size` bytes, were sent."""
        self._sent_jobs += jobs
        self._sent_bytes += size

    def add(self, start: int, stop: int, size: int) -> None:
        """Take in that jobs [start, stop), whose outcomes are about `size` bytes, were read."""
        self._read.add(start, stop)
        self._since.append((start, stop))
        self._jobs += stop - start
        self._bytes += size + self._inputs_of(stop - start)

    def _inputs_of(self, jobs: int) -> int:
        """Return what the inputs of jobs that were read took, as an average of those under way: none is lost."""
        jobs = min(jobs, self._sent_jobs)
        size = self._sent_bytes * jobs // self._sent_jobs if jobs else 0
        self._sent_jobs -= jobs
        self._sent_bytes -= size
        return size

    def due(self, *, is_full: bool = False) -> list[Range]:
        """Return what is worth forgetting now, [] when it is too little: on a full disk nothing is."""
        if not is_full and self._jobs < _JOBS and self._bytes < _BYTES:
            return []
        grown = RangeSet()
        for start, _ in self._since:
            if start not in grown:
                grown.add(*self._read.around(start))
        self._since, self._jobs, self._bytes = [], 0, 0
        return list(grown)
