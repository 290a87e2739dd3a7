"""How a process ended, in words."""

import os
import signal

from batchd.worker.main import EXIT_DESCRIPTORS


def describe(status: int) -> str:
    """Say in words how a process ended, from its wait status.

    >>> describe(11), describe(3 << 8)
    ('killed by SIGSEGV', 'exited with code 3 before finishing')
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    code = os.waitstatus_to_exitcode(status)
    if code == EXIT_DESCRIPTORS:
        return "closed descriptors it did not open"
    return f"exited with code {code} before finishing"
