"""Leaving: how a program lets go of the batches it has open, while jobs of them run.

Nobody waits in silence, and whoever is interrupted while it waits still leaves in order: what runs is cut off, goes
back to the journal uncharged, and is run again by the next client.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Final

from batchd.client.attachment import Attachment
from batchd.units import counted

_PATIENCE_S: Final = 1.0
"""Who waits for longer is told what for."""

LetGo = Callable[[bool], Sequence[Attachment]]
"""Has everything stop, `at_once` or when what runs is done, and returns what is to end; it may be called again."""


def leave(let_go: LetGo, *, at_once: bool) -> None:
    """Let go of batches and return when they are put down.

    Raises KeyboardInterrupt of an interrupt meanwhile, when all has been cut off and put down; of another, at once.
    """
    try:
        leaving = let_go(at_once)
        if not at_once:
            _tell_what_for(leaving)
        futures.wait([each.end for each in leaving])
    except KeyboardInterrupt:
        futures.wait([each.end for each in let_go(True)])
        raise


def _tell_what_for(leaving: Sequence[Attachment]) -> None:
    """Wait until all has ended, or somebody was told what it is that does not."""
    running: dict[str, int] = {}
    while not running and futures.wait([each.end for each in leaving], _PATIENCE_S).not_done:
        running = {each.title: count for each in leaving if (count := _running(each))}
    if running:
        logging.getLogger("batchd").warning(
            "waiting for %s of %s; an interrupt (Ctrl-C) or close(at_once=True) cuts off what runs, and the next "
            "client runs it again",
            counted(sum(running.values()), "running job"),
            " and ".join(running),
        )


def _running(attachment: Attachment) -> int:
    """Return how many jobs of a batch run, 0 when nobody tells."""
    try:
        return len(attachment.request("running").result(_PATIENCE_S)["running"])
    except Exception:
        return 0
