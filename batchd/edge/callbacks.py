"""Callbacks: those who wait for the same thing are all called, whatever one of them raises.

What is raised here is a bug, and of one request only. Its traceback goes to the supervisor's log; the others are
served on.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from traceback import print_exc
from typing import ParamSpec

Told = ParamSpec("Told")


def call_each(calls: Iterable[Callable[Told, object]], *args: Told.args, **named: Told.kwargs) -> None:
    """Make every one of the calls."""
    for call in calls:
        try:
            call(*args, **named)
        except Exception:
            log_traceback()


def log_traceback() -> None:
    """Write what is being handled to the log, if there is room for it."""
    with suppress(OSError):
        print_exc()
