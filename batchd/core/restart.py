"""Restart intensity: respawn, or give up loudly (Erlang/OTP supervisor; the reset by progress is billiard's).

Only deaths nobody is charged for count: a job that kills its worker is bounded by its own allowance.
"""

from collections import deque

from batchd.settings import RESTART_DEATHS_MAX, RESTART_PERIOD_S


class RestartIntensity:
    """Counts unexplained worker deaths since the last finished job.

    >>> intensity = RestartIntensity()
    >>> [intensity.death(now=0.1 * n) for n in range(5)]
    [False, False, False, False, True]
    """

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=RESTART_DEATHS_MAX)

    def progress(self) -> None:
        """A job finished: whatever died before, the pool works."""
        if self._deaths:
            self._deaths.clear()

    def death(self, now: float) -> bool:
        """Count one; return whether the pool must stop."""
        self._deaths.append(now)
        return len(self._deaths) == RESTART_DEATHS_MAX and now - self._deaths[0] <= RESTART_PERIOD_S
