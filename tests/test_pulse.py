"""The pulse test: its levels, and what it certifies."""

import math
from dataclasses import replace

import pytest

from scu.control import ControlSettings
from scu.monitor import Judgment
from scu.plant import pulse_result as result
from scu.pulse import HEIGHT, PulseTest, levels
from tests.plants import SETTINGS, pulsed, simulate

NEAR = Judgment(100, "transient", "", {"mean_error": 0.01, "tau_steps": 20.0})


def test_levels_go_up_and_down_twice_around_lambda_for_a_time_constant_each():
    found = levels(0.5, SETTINGS, 20.0)
    high, low = 0.5 * math.exp(HEIGHT), 0.5 * math.exp(-HEIGHT)
    assert found == pytest.approx([high] * 4 + [low] * 4 + [high] * 4 + [low] * 4)


@pytest.mark.parametrize(("tau_steps", "windows"), [(1.0, 3), (1e6, 10), (math.inf, 10)])
def test_a_half_is_neither_too_short_to_see_nor_too_long_to_afford(tau_steps, windows):
    assert len(levels(0.5, SETTINGS, tau_steps)) == 4 * windows


@pytest.mark.parametrize("lam", [1e-4, 2.0])
def test_levels_stay_within_the_bounds(lam):
    found = levels(lam, SETTINGS, 20.0)
    assert min(found) >= SETTINGS.lambda_min * (1 - 1e-9)
    assert max(found) <= SETTINGS.lambda_max * (1 + 1e-9)


def test_a_plant_that_answers_is_certified_with_its_gain():
    found = result(pulsed(-0.8))
    assert found.certified
    assert found.gain == pytest.approx(-0.8, abs=0.1)
    assert found.low < found.gain < found.high


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_a_plant_that_does_not_answer_or_answers_wrongly_is_not_certified(gain):
    assert not result(pulsed(gain)).certified


def test_a_trace_without_a_whole_test_says_nothing():
    assert result(simulate(steps=100)) is None
    assert result([r for r in pulsed(-0.8) if r.step <= 220]) is None
    few = [r for r in pulsed(-0.8, windows=1) if r.held == "pulse"][:4]
    assert result(few) is None
    same = [replace(r, lam=0.5) for r in pulsed(-0.8)]
    assert result(same) is None


def test_levels_share_what_room_the_bounds_leave():
    tight = ControlSettings(target_s=0.1, lambda_init=1.7, lambda_min=1.5, lambda_max=2.0)
    assert sorted(set(levels(1.7, tight, 20.0))) == pytest.approx([1.5, 2.0])


def test_a_window_with_a_skipped_step_does_not_shift_the_levels():
    records = pulsed(-0.8)
    at = next(i for i, r in enumerate(records) if r.held == "pulse") + 5
    records[at] = replace(records[at], held="skipped steps")
    assert result(records).gain == pytest.approx(-0.8, abs=0.1)


def test_a_drift_is_not_taken_for_an_answer():
    records = pulsed(-0.5, noise=0.001)
    first = records[0].step
    drifting = [
        replace(r, param_bpt=r.param_bpt * math.exp(0.002 * (r.step - first))) for r in records
    ]
    assert result(drifting).gain == pytest.approx(-0.5, abs=0.05)


def test_the_test_starts_once_s_is_judged_near_and_gives_lambda_back():
    test = PulseTest(SETTINGS, wanted=True)
    far = replace(NEAR, statistics={"mean_error": 0.2})
    assert test.next_lambda(0.5, None, held="") == 0.5
    assert test.next_lambda(0.5, far, held="") == 0.5
    assert test.next_lambda(0.5, NEAR, held="skipped steps") == 0.5
    given = [test.next_lambda(0.5, NEAR, held="")]
    while test.ends_window():
        given.append(test.next_lambda(0.5, NEAR, held="pulse"))
    assert given == [*levels(0.5, SETTINGS, 20.0), 0.5]
    assert test.state == "done"
    assert test.next_lambda(0.5, NEAR, held="") == 0.5  # once is enough


def test_a_cooldown_ends_the_test():
    test = PulseTest(SETTINGS, wanted=True)
    test.next_lambda(0.5, NEAR, held="")
    assert test.next_lambda(0.5, NEAR, held="cooldown") == 0.5
    assert not test.ends_window()
    assert test.state == "S has not come near S*"


def test_a_test_that_was_begun_and_cut_off_says_so():
    test = PulseTest(SETTINGS, wanted=True)
    assert test.state == "S has not come near S*"
    test.next_lambda(0.5, NEAR, held="")
    assert test.ends_window()
    test.next_lambda(0.5, NEAR, held="cooldown")
    assert test.state == "cut off"


def test_nothing_is_tested_unless_wanted():
    test = PulseTest(ControlSettings(target_s=0.1), wanted=False)
    assert test.next_lambda(0.5, NEAR, held="") == 0.5
    assert test.state == "not asked for"
