"""When a job in backoff is due again.

Due times are rounded up into coarse buckets, so a million waiting jobs stand in a few of them.
"""

from math import ceil, frexp

from batchd.settings import BACKOFF_BUCKET_RATIO, BACKOFF_JITTER, BACKOFF_S_MAX, BACKOFF_S_MIN


def delay_s(tries: int, jitter: float) -> float:
    """Return the seconds to wait after the `tries`-th failure; `jitter` in [0, 1) comes from outside.

    >>> delay_s(1, 0.0), delay_s(3, 0.0)
    (0.2, 0.8)
    """
    longest: float = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0 ** min(tries - 1, 30))
    return longest * (1.0 - BACKOFF_JITTER * jitter)


def bucket(now: float, delay: float) -> float:
    """Return the due time of a delay that starts now, rounded up to the delay's bucket.

    The width is the same for all delays of about this size: with jitter, no two delays are equal.

    >>> bucket(10.03, 1.0)
    11.1
    """
    width = BACKOFF_BUCKET_RATIO * 2.0 ** (frexp(delay)[1] - 1)
    return round(ceil((now + delay) / width) * width, 6)
