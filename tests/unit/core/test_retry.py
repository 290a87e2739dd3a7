"""Backoff: it doubles, it is capped, and a million jobs wait in a few buckets."""

from itertools import pairwise

import pytest

from batchd.core.retry import bucket, delay_s
from batchd.settings import BACKOFF_BUCKET_RATIO, BACKOFF_JITTER, BACKOFF_S_MAX, BACKOFF_S_MIN


def test_delays_double_up_to_a_limit() -> None:
    delays = [delay_s(tries, 0.0) for tries in range(1, 40)]

    assert delays[:4] == [BACKOFF_S_MIN, 2 * BACKOFF_S_MIN, 4 * BACKOFF_S_MIN, 8 * BACKOFF_S_MIN]
    assert all(first <= second for first, second in pairwise(delays))
    assert delays[-1] == BACKOFF_S_MAX


def test_jitter_only_shortens() -> None:
    assert delay_s(3, 1.0) == pytest.approx(delay_s(3, 0.0) * (1 - BACKOFF_JITTER))


@pytest.mark.parametrize("delay", [0.15, 0.2, 0.777, 59.0])
def test_a_bucket_is_late_by_a_share_of_the_delay_at_most(delay: float) -> None:
    lateness = [bucket(now, delay) - (now + delay) for now in (0.0, 1.234, 99.9)]

    assert all(-1e-5 < late <= BACKOFF_BUCKET_RATIO * delay + 1e-5 for late in lateness)


def test_different_jitter_falls_into_the_same_few_buckets() -> None:
    dues = {bucket(100 + n / 10_000, delay_s(2, n / 1000)) for n in range(1000)}

    assert len(dues) < 12
