"""Restart intensity: give up on a pool that dies without finishing anything, and on no other."""

from batchd.core.restart import RestartIntensity
from batchd.settings import RESTART_DEATHS_MAX, RESTART_PERIOD_S


def test_deaths_in_a_row_are_too_many() -> None:
    intensity = RestartIntensity()

    assert [intensity.death(now=n) for n in range(RESTART_DEATHS_MAX)] == [False] * (RESTART_DEATHS_MAX - 1) + [True]


def test_slow_deaths_are_not() -> None:
    intensity = RestartIntensity()

    assert not any(intensity.death(now=n * RESTART_PERIOD_S) for n in range(20))


def test_progress_forgets_them() -> None:
    intensity = RestartIntensity()
    answers = []
    for n in range(20):
        answers.append(intensity.death(now=n / 100))
        intensity.progress()

    assert not any(answers)
