from __future__ import annotations

import math

import numpy as np
import pytest

from monitoring.sequential import days_needed, log_e_rate, log_e_split, mean_sequence


@pytest.mark.parametrize(("rate", "most"), [(0.05, 60), (0.01, 600), (1.0, 3)])
def test_a_rate_beyond_the_bound_shows_after_few_attempts(rate: float, most: int) -> None:
    shown = [n for n in range(1, most + 1) if log_e_rate(round(n * rate), n, 0.001) > math.log(100)]
    assert shown


def test_a_rate_at_the_bound_raises_a_false_alarm_rarely_however_often_one_looks() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        events = np.cumsum(random.random(3000) < 0.01)
        alarms += any(log_e_rate(int(events[n]), n + 1, 0.01) > math.log(20) for n in range(0, 3000, 25))
    assert alarms <= 35  # 5 % of 500, and two standard deviations


def test_no_difference_is_missed_by_the_interval_rarely_however_often_one_looks() -> None:
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(500):
        days = random.standard_t(5, 60)
        missed += any(
            mean_sequence(days[:n], 0.025)[1] > 0 or mean_sequence(days[:n], 0.025)[2] < 0 for n in range(7, 61)
        )
    assert missed <= 35


def test_the_interval_closes_in_on_the_mean() -> None:
    days = np.random.default_rng(1).normal(0.05, 0.05, 200)
    widths = [mean_sequence(days[:n], 0.05)[2] - mean_sequence(days[:n], 0.05)[1] for n in (10, 50, 200)]
    assert widths == sorted(widths, reverse=True)
    mean, low, high = mean_sequence(days, 0.05)
    assert low < mean < high
    assert low > 0


def test_the_days_that_an_effect_needs_are_those_after_which_it_shows() -> None:
    needed = days_needed(0.05, 0.03)
    assert needed
    random = np.random.default_rng(2)
    shown = sum(mean_sequence(random.normal(0.03, 0.05, needed), 0.05)[1] > 0 for _ in range(500)) / 500
    assert 0.75 < shown < 0.9
    assert days_needed(1.0, 0.0001) is None


def test_a_split_that_is_off_shows_and_one_that_is_right_does_not() -> None:
    assert log_e_split([9_500, 10_500], [0.5, 0.5]) > math.log(1000)
    assert log_e_split([10_050, 9_950], [0.5, 0.5]) < math.log(1000)
    assert log_e_split([0, 500], [0.95, 0.05]) > math.log(1000)
