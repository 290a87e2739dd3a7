"""The supervisor's log: its standard error, a file beside the batches.

The one idea: a line that has no room is dropped, for a full disk may be what it is about.
"""

import os
from contextlib import suppress
from traceback import print_exc


def say(text: str) -> None:
    """Write a line, if there is room for it."""
    with suppress(OSError):
        os.write(2, f"batchd supervisor {os.getpid()}: {text}\n".encode(errors="replace"))


def log_traceback() -> None:
    """Write what is being handled, if there is room for it."""
    with suppress(OSError):
        print_exc()
