"""How far a worker got, and how large the next lease should be."""

import pytest

from batchd.core.events import Phase, Position
from batchd.core.lease import Pace, Reach, reach
from batchd.settings import LEASE_JOBS_MAX, LEASE_TARGET_S


@pytest.mark.parametrize(
    ("position", "found"),
    [
        (None, Reach(10, None)),
        (Position(6, 99, Phase.RUNNING), Reach(10, None)),
        (Position(8, 99, Phase.RUNNING), Reach(20, None)),
        (Position(7, 12, Phase.RUNNING), Reach(13, 12)),
        (Position(7, 12, Phase.REPORTING), Reach(13, None)),
        (Position(7, 9, Phase.IDLE), Reach(10, None)),
        (Position(7, 9, Phase.RUNNING), Reach(10, None)),
        (Position(7, 19, Phase.RUNNING), Reach(20, 19)),
        (Position(7, 20, Phase.RUNNING), Reach(20, None)),
    ],
)
def test_reach(position: Position | None, found: Reach) -> None:
    assert reach(7, 10, 20, position) == found


def test_the_first_lease_is_one_job() -> None:
    assert Pace().jobs_per_lease(queued=1_000_000, workers=1) == 1


def test_leases_grow_towards_the_target_time() -> None:
    pace, sizes = Pace(), []
    for _ in range(4):
        jobs = pace.jobs_per_lease(queued=1_000_000, workers=2)
        sizes.append(jobs)
        pace.report(jobs, busy_s=jobs * 0.0005)
        pace.lease_done(jobs)

    assert sizes == [1, 8, 64, int(LEASE_TARGET_S / 0.0005)]


def test_batches_that_take_turns_share_the_target_time() -> None:
    pace = Pace()
    pace.report(100, busy_s=100 * LEASE_TARGET_S / 80)
    pace.lease_done(100)

    assert [pace.jobs_per_lease(1000, workers=2, takers=takers) for takers in (1, 2, 4, 50)] == [80, 40, 20, 20]


def test_leases_shrink_as_the_queue_runs_out() -> None:
    pace = Pace()
    pace.report(100, busy_s=0.001)
    pace.lease_done(100)

    assert [pace.jobs_per_lease(queued, workers=2) for queued in (4000, 400, 40, 3)] == [800, 100, 10, 1]


def test_jobs_too_short_to_measure_have_a_largest_lease() -> None:
    pace = Pace()
    pace.report(1_000_000, busy_s=0.0)
    pace.lease_done(1_000_000)

    assert pace.jobs_per_lease(queued=10**9, workers=1) == LEASE_JOBS_MAX


def test_recent_reports_count_more() -> None:
    pace = Pace()
    for _ in range(100):
        pace.report(10, busy_s=1.0)
    for _ in range(100):
        pace.report(1000, busy_s=1.0)

    assert pace.seconds_per_job == pytest.approx(0.001, rel=0.1)
