"""The grace of a job that watches for its end: it may end by itself before its worker is killed.

Only what the flight recorder says is looked at, so a job that never looked at `cancelled` costs nobody a wait.
"""

from collections.abc import Callable
from time import monotonic

from batchd.core.events import Phase
from batchd.settings import CANCEL_GRACE_S, GRACE_LOOK_S
from batchd.worker.recorder import Slot


def when_ended(slot: Slot, later: Callable[[float, Callable[[], None]], None], then: Callable[[], None]) -> None:
    """Call `then` when the job of a slot has ended and said so, or had its time; at once unless it watches."""
    found = slot.position()
    if found is None or found.phase is Phase.IDLE or not slot.is_watched(found):
        then()
        return
    lease, deadline = found.lease, monotonic() + CANCEL_GRACE_S

    def look() -> None:
        position = slot.position()
        # The lease was cut, so behind this job it ends: its worker is then at rest, or at another batch's jobs.
        is_there = position is not None and position.lease == lease and position.phase is not Phase.IDLE
        if is_there and monotonic() < deadline:
            later(GRACE_LOOK_S, look)
        else:
            then()

    later(GRACE_LOOK_S, look)
