"""Callbacks: those who wait for the same thing are all called, whatever one of them raises.

What is raised here is a bug, and of one request only. Its traceback goes to the supervisor's log; the others are
served on.
"""

from collections.abc import Callable, Iterable
from typing import ParamSpec

from batchd.edge.log import log_traceback

Told = ParamSpec("Told")


def call_each(calls: Iterable[Callable[Told, object]], *args: Told.args, **named: Told.kwargs) -> None:
    """Make every one of the calls."""
    for call in calls:
        try:
            call(*args, **named)
        except Exception:
            log_traceback()
