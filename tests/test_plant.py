"""The plant's gain and time constant, on plants that have known ones."""

import math
from dataclasses import replace

import pytest

from scu.plant import ASSUMED_GAIN, estimate
from tests.plants import changed, simulate


@pytest.mark.parametrize("restoring", [0.7, 1.0, 1.5])
def test_gain_and_time_constant_are_found_from_the_climb(restoring):
    records = simulate(restoring=restoring, growth=0.02, noise=0.003)
    found = estimate(records)
    assert found.source == "run"
    assert found.gain == pytest.approx(-1.0 / restoring, rel=0.2)
    rate = records[-1].shrink_rate
    assert found.tau_steps == pytest.approx(1.0 / (restoring * rate), rel=0.25)
    assert found.gain_low < found.gain < found.gain_high < 0.0


def test_a_gain_that_noise_hides_is_assumed_and_says_so():
    settled = simulate(noise=0.05)[-15:]
    found = estimate(settled)
    assert (found.source, found.gain) == ("assumed", ASSUMED_GAIN)
    assert math.isnan(found.gain_low)
    assert found.tau_steps > 0.0


def test_without_a_pull_the_time_constant_is_infinite():
    assert estimate(simulate(wire=0.0)).tau_steps == math.inf


def test_without_shrink_rates_nothing_is_said():
    assert estimate(changed(simulate(), shrink_rate=None)) is None
    assert estimate([]) is None


def test_warmup_and_held_windows_do_not_enter_the_fit():
    records = simulate(growth=0.02, noise=0.003)
    known = estimate(records)
    wild = [
        replace(r, held="skipped steps", param_bpt=50.0) if i % 7 == 3 else r
        for i, r in enumerate(records)
    ]
    assert estimate(wild).gain == pytest.approx(known.gain, rel=0.3)
