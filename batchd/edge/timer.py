"""A timer of the kernel: one thread sets it, another waits for it and is woken only if it is not stopped in time.

Setting and stopping take a microsecond each, where telling a waiting thread anything takes a wake-up.
"""

import ctypes
import os
from time import CLOCK_MONOTONIC
from typing import Final

_LIBC: Final = ctypes.PyDLL(None, use_errno=True)  # These calls never wait: the interpreter's lock is kept.


class _Spec(ctypes.Structure):
    """`struct itimerspec`: an interval, which is not used, and the time to go."""

    _fields_ = (("interval", ctypes.c_long * 2), ("left", ctypes.c_long * 2))


_NEVER: Final = ctypes.byref(_Spec((0, 0), (0, 0)))
_NOW: Final = ctypes.byref(_Spec((0, 0), (0, 1)))


class Timer:
    """A timer that goes off once, so long after it was started."""

    def __init__(self, seconds: float) -> None:
        """Make it. Raises OSError."""
        whole, part = divmod(round(seconds * 1e9), 1_000_000_000)
        self._spec = ctypes.byref(_Spec((0, 0), (whole, part)))
        self._fd = _LIBC.timerfd_create(CLOCK_MONOTONIC, os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def start(self) -> None:
        """Start it, anew if it is running."""
        _LIBC.timerfd_settime(self._fd, 0, self._spec, None)

    def stop(self) -> None:
        """Stop it."""
        _LIBC.timerfd_settime(self._fd, 0, _NEVER, None)

    def go_off(self) -> None:
        """Let it go off now."""
        _LIBC.timerfd_settime(self._fd, 0, _NOW, None)

    def wait(self) -> None:
        """Wait until it has gone off since the last call."""
        os.read(self._fd, 8)

    def close(self) -> None:
        """Let go of it; nobody waits for it any more."""
        os.close(self._fd)
