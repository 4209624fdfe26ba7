"""Intervals and swings: closed forms, coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from scu import window
from scu.window import Interval, swings


def test_the_mean_and_its_interval_are_those_of_five_block_means():
    values = np.array([1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 0.0, 2.0, 3.0, 3.0])
    blocks = [2.0, 3.0, 6.0, 1.0, 3.0]
    found = window.mean(values)
    assert found.value == pytest.approx(3.0)
    half = stats.t.ppf(0.95, 4) * np.std(blocks, ddof=1) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((3.0 - half, 3.0 + half))


def test_what_does_not_fill_a_block_is_left_out_at_the_old_end():
    assert window.mean(np.array([99.0, 99.0, *np.ones(10)])).value == 1.0


def test_the_trend_of_a_line_is_its_change_over_the_window_exactly():
    found = window.trend(0.01 * np.arange(50.0))
    assert found.value == pytest.approx(0.5)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_intervals_cover_the_truth_about_as_often_as_they_say(correlation):
    """Five blocks of AR(1) noise: 90 % nominal, 84 % at least."""
    draw = np.random.default_rng(1)
    noise = draw.standard_normal((1500, 90))
    for i in range(1, 90):
        noise[:, i] += correlation * noise[:, i - 1]
    covered = np.array(
        [(abs_inside(window.mean(row)), abs_inside(window.trend(row))) for row in noise[:, 50:]]
    ).mean(axis=0)
    assert (covered > 0.84).all()
    assert (covered < 0.94).all()


def abs_inside(interval: Interval) -> bool:
    return interval.low < 0.0 < interval.high


def test_an_interval_is_inside_a_band_only_with_both_ends():
    assert Interval(0.0, -0.04, 0.04).inside(0.05)
    assert not Interval(0.0, -0.06, 0.04).inside(0.05)
    assert not Interval(0.0, -0.04, 0.06).inside(0.05)


def test_swings_of_a_sine_are_counted_with_their_period():
    steps = list(range(0, 200, 5))
    wave = np.sin(2.0 * np.pi * np.array(steps) / 50.0)
    found = swings(steps, wave, 0.5)
    assert found.half_cycles == 7
    assert found.period_steps == pytest.approx(50.0, rel=0.1)
    assert swings(steps, 0.4 * wave, 0.5).half_cycles == 0


def test_swings_that_have_died_down_are_not_reported():
    steps = list(range(0, 400, 5))
    wave = np.where(np.array(steps) < 150, np.sin(2.0 * np.pi * np.array(steps) / 50.0), 0.0)
    assert swings(steps, wave, 0.5).half_cycles == 0


def test_one_excursion_is_no_cycle():
    found = swings([0, 5, 10, 15], np.array([5.0, 0.0, 0.0, -5.0]), 1.0)
    assert found.half_cycles == 1
    assert math.isnan(found.period_steps)
