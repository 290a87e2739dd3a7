"""Which descriptors can be read: the one wait outside the supervisor's loop.

`select()` cannot watch descriptors above 1,023, which every busy server has; `poll()` can.
"""

from collections.abc import Iterable
from select import POLLIN, poll


def readable(descriptors: Iterable[int], timeout_s: float | None = None) -> set[int]:
    """Return those that can be read, or are at their end, as soon as there is one, or the empty set after a while.

    >>> import os
    >>> read, write = os.pipe()
    >>> readable([read], 0), os.write(write, b"."), readable([read]) == {read}
    (set(), 1, True)
    >>> os.close(read), os.close(write)
    (None, None)
    """
    watched = poll()
    for descriptor in descriptors:
        watched.register(descriptor, POLLIN)
    # Rounded up, or the last millisecond of a wait would be spent asking.
    timeout_ms = None if timeout_s is None else -int(-max(0.0, timeout_s) * 1000 // 1)
    return {descriptor for descriptor, _ in watched.poll(timeout_ms)}
