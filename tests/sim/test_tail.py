"""How evenly a batch ends: the real scheduler before workers that only count time, beside handing out one by one."""

from statistics import mean

import pytest

from batchd.settings import LEASE_TARGET_S
from benchmarks.figures import greedy_bound_s
from benchmarks.jobs import late_giants_ms, tail_ms
from benchmarks.rehearsal import Rehearsal, list_schedule_s


def heavy_tailed_s(jobs: int, seed: int) -> list[float]:
    return [ms / 1000 for ms in tail_ms(jobs, seed)]


@pytest.mark.parametrize(("workers", "seeds"), [(2, 20), (16, 4)])
def test_without_costs_it_ends_as_if_jobs_were_handed_out_one_by_one(workers: int, seeds: int) -> None:
    lists = [heavy_tailed_s(75 * workers, seed) for seed in range(seeds)]
    took_s = mean(Rehearsal(lengths_s, workers).run() for lengths_s in lists)

    assert took_s < 1.05 * mean(list_schedule_s(lengths_s, workers) for lengths_s in lists)


@pytest.mark.parametrize("workers", [2, 16])
def test_with_costs_nobody_waits_for_a_job_that_began_last(workers: int) -> None:
    for lengths_s in (heavy_tailed_s(75 * workers, 0), sorted(heavy_tailed_s(75 * workers, 1))):
        assert Rehearsal(lengths_s, workers, lengths_s).run() < 1.03 * greedy_bound_s(lengths_s, workers)


def test_costs_need_not_be_exact() -> None:
    lengths_s = heavy_tailed_s(1_200, 2)
    costs = [length_s**0.5 for length_s in lengths_s]

    assert Rehearsal(lengths_s, 16, costs).run() < 1.05 * greedy_bound_s(lengths_s, 16)


def test_giants_at_the_end_of_the_input_begin_first() -> None:
    lengths_s = [ms / 1000 for ms in late_giants_ms(1_200, 24)]
    bound_s = greedy_bound_s(lengths_s, 16)

    assert Rehearsal(lengths_s, 16).run() > 1.2 * bound_s
    assert Rehearsal(lengths_s, 16, lengths_s).run() < 1.02 * bound_s


def test_no_worker_waits_until_a_report_is_read() -> None:
    """Behind long jobs no lease waits."""
    lengths_s = [1.1 * LEASE_TARGET_S] * 400

    assert Rehearsal(lengths_s, 16).run() < 1.01 * list_schedule_s(lengths_s, 16)
