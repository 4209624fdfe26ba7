"""Verdicts on simulated runs whose state is known."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from scu.control import ControlSettings
from scu.monitor import STATISTICS, Monitor, guide_rule, judge
from tests.plants import SETTINGS, changed, pulsed, simulate


def first_stop(records, settings=SETTINGS, **options):
    return next((j for j in judge(records, settings, **options) if j.may_stop), None)


def test_a_run_that_has_settled_is_in_equilibrium_and_not_before_two_windows_agree():
    judgments = judge(simulate(), SETTINGS)
    stop = next(j for j in judgments if j.may_stop)
    before = judgments[judgments.index(stop) - 1]
    assert stop.verdict == "equilibrium"
    assert before.verdict == "transient"
    assert before.reason == "all is at rest in this window; the next must agree"
    assert stop.step - before.step == 50
    assert abs(stop.statistics["mean_error"]) < 0.05


def test_most_settled_runs_stop_and_none_while_s_is_far_off():
    stops = []
    for seed in range(20):
        records = simulate(seed=seed)
        stop = first_stop(records)
        stops.append(stop is not None)
        if stop is not None:
            window = [r for r in records if stop.step - 100 < r.step <= stop.step]
            assert abs(sum(math.log(r.s / 0.1) for r in window) / len(window)) < 0.07
    assert sum(stops) >= 18


def test_judgments_come_twice_per_window_from_the_first_full_one_on():
    assert [j.step for j in judge(simulate(steps=300), SETTINGS)] == [80, 130, 180, 230, 280]
    assert judge(simulate(steps=80), SETTINGS)[0].statistics["window_steps"] == 80


def test_a_long_interval_still_gets_ten_records_per_window():
    settings = ControlSettings(target_s=0.1, control_interval=25)
    steps = [j.step for j in judge(simulate(settings, steps=1000), settings)]
    assert steps[0] == 250
    assert steps[1] - steps[0] == 125


def test_a_wire_that_is_cut_gives_no_authority():
    warming, *judged = judge(simulate(wire=0.0), SETTINGS)
    assert warming.reason == "the learning rate is changing"
    assert {j.verdict for j in judged} == {"no_authority"}


def test_lambda_at_its_upper_bound_and_s_above_is_saturated():
    settings = ControlSettings(target_s=0.002)
    assert judge(simulate(settings), settings)[-1].verdict == "saturated"
    assert "lambda_max" in judge(simulate(settings), settings)[-1].reason


def test_lambda_at_its_lower_bound_and_s_below_is_saturated():
    settings = ControlSettings(target_s=0.9, lambda_min=0.3)
    last = judge(simulate(settings), settings)[-1]
    assert (last.verdict, "lambda_min" in last.reason) == ("saturated", True)


def test_a_climb_in_a_long_warmup_is_neither_saturated_nor_diverged():
    """The pull is tiny and the loss flat, because the rate is."""
    for seed in range(5):
        records = simulate(steps=2300, warmup=2000, seed=seed, loss=lambda step: 5.0)
        early = [j for j in judge(records, SETTINGS, context_free_bpt=3.0) if j.step < 2000]
        assert {j.verdict for j in early} == {"transient"}
        assert not any(j.may_stop for j in early)


def test_a_slow_steady_fall_of_the_loss_is_seen_in_the_end():
    """1 % per 100 steps, under noise of 2 % per window: no single window shows it."""
    stops = []
    for seed in range(10):
        records = simulate(steps=2000, seed=seed, loss=lambda step: 8.0 * 0.9999**step)
        stops.append(any(j.may_stop for j in judge(records, SETTINGS) if j.step > 1000))
    assert sum(stops) <= 2


def test_a_stationary_loss_of_rare_peaks_is_not_diverged():
    draw = random.Random(0)
    for _ in range(5):
        records = simulate(
            steps=1500, loss=lambda step: 0.02 + 0.03 * sum(draw.random() < 0.03 for _ in range(40))
        )
        ended = [j.verdict for j in judge(records, SETTINGS)]
        assert ["diverged"] * 3 not in [ended[i : i + 3] for i in range(len(ended))]


def test_a_loss_or_a_lambda_of_zero_is_judged_all_the_same():
    assert judge(changed(simulate(steps=200), data_bpt=0.0), SETTINGS)
    assert judge(changed(simulate(steps=200), lam=0.0), SETTINGS)


def test_a_constraint_that_does_not_bind_is_saturated_and_may_stop_once_the_loss_rests():
    settings = ControlSettings(target_s=0.9, lambda_min=0.3)
    judgments = judge(simulate(settings, growth=0.002, steps=900), settings)
    stop = next(j for j in judgments if j.may_stop)
    assert (stop.verdict, "lambda_min" in stop.reason) == ("saturated", True)
    rested = [j for j in judgments if j.verdict == "saturated" and j.step < stop.step]
    assert rested
    falling = simulate(settings, growth=0.002, steps=900, loss=lambda step: 6.0 * 0.9998**step)
    assert not any(j.may_stop for j in judge(falling, settings))


def test_a_constraint_without_a_pull_is_saturated_before_lambda_meets_its_bound():
    settings = ControlSettings(target_s=0.9, ki=0.01)
    found = judge(simulate(settings, growth=0.0005, steps=500, pull=0.001), settings)
    slack = [j for j in found if "does not bind" in j.reason]
    assert slack
    assert not any(j.may_stop for j in slack)  # S is still climbing


def test_gains_far_too_high_are_seen_as_oscillation():
    settings = ControlSettings(target_s=0.1, kp=20.0, ki=4.0)
    judgments = judge(simulate(settings, pull=0.5, growth=0.1), settings)
    assert Counter(j.verdict for j in judgments)["oscillating"] >= len(judgments) - 2
    assert judgments[-1].statistics["half_cycles"] >= 3
    assert judgments[-1].statistics["period_steps"] > 0.0


def test_a_slow_limit_cycle_is_oscillation_too():
    settings = ControlSettings(target_s=0.1, law="multiplicative", kp=8.0, ki=4.0)
    judgments = judge(simulate(settings, steps=1500, pull=0.02, growth=0.01), settings)
    assert "oscillating" in {j.verdict for j in judgments[-6:]}
    assert not any(j.may_stop for j in judgments)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_diverged_at_once(value):
    records = simulate(steps=200)
    records[-1] = replace(records[-1], data_bpt=value, held="loss not finite")
    assert judge(records, SETTINGS)[-1].verdict == "diverged"


def test_a_loss_far_above_its_best_is_diverged():
    records = simulate(loss=lambda step: 6.0 if step < 300 else 9.0)
    assert judge(records, SETTINGS)[-1].verdict == "diverged"
    assert "far above its best" in judge(records, SETTINGS)[-1].reason


def test_a_loss_above_its_start_is_diverged_where_nothing_was_learned():
    records = simulate(loss=lambda step: 6.0 if step < 20 else 6.5)
    assert judge(records, SETTINGS, context_free_bpt=6.2)[-1].verdict == "diverged"
    assert "diverged" not in {j.verdict for j in judge(records, SETTINGS)}


def test_weights_that_never_move_are_no_authority_even_where_the_base_knows_nothing():
    records = changed(simulate(wire=0.0, loss=lambda step: 9.0), param_bpt=0.0, shrink_rate=0.0)
    verdicts = {j.verdict for j in judge(records, SETTINGS, context_free_bpt=8.0)[1:]}
    assert verdicts == {"no_authority"}


def test_random_data_are_no_equilibrium():
    records = simulate(noise=0.004, loss=lambda step: 11.3 + 4.0 * math.exp(-step / 10.0))
    assert first_stop(records) is not None
    assert first_stop(records, context_free_bpt=11.4) is None
    reason = judge(records, SETTINGS, context_free_bpt=11.4)[-1].reason
    assert reason == "nothing was learned that token frequencies do not tell"


def test_a_falling_learning_rate_is_no_equilibrium():
    records = simulate()
    falling = [replace(r, learning_rate=1e-3 * 0.998**r.step) for r in records]
    judgments = judge(falling, SETTINGS)
    assert not any(j.may_stop for j in judgments)
    assert judgments[-2].reason in (
        "the learning rate is changing",
        "the learning rate is below a tenth of its peak",
    )


def test_a_rate_below_a_tenth_of_its_peak_is_no_equilibrium():
    records = [
        replace(r, learning_rate=r.learning_rate * (0.05 if r.step > 150 else 1.0))
        for r in simulate()
    ]
    last = judge(records, SETTINGS)[-1]
    assert (last.verdict, "tenth of its peak" in last.reason) == ("transient", True)


def test_a_lambda_that_keeps_moving_is_no_equilibrium():
    records = simulate(drift=0.01, noise=0.003)
    assert not any(j.may_stop for j in judge(records, SETTINGS))


def test_a_loss_that_clearly_falls_is_no_equilibrium():
    records = simulate(noise=0.002, loss=lambda step: 8.0 - 0.005 * step)
    last = judge(records, SETTINGS)[-1]
    assert (last.verdict, "the loss still falls" in last.reason) == ("transient", True)


def test_a_trace_without_shrink_rates_proves_no_authority():
    last = judge(changed(simulate(), shrink_rate=None), SETTINGS)[-1]
    assert last.verdict == "transient"
    assert last.reason == "nothing shows that lambda reaches the weights; scu.pulse=true would"


@pytest.mark.parametrize(("gain", "verdict"), [(-0.8, "equilibrium"), (0.2, "no_authority")])
def test_a_pulse_test_decides_on_authority(gain, verdict):
    """Also where the trace says nothing of the pull."""
    tested = pulsed(gain)
    after = [replace(r, step=r.step + tested[-1].step) for r in simulate()[50:]]
    found = judge(changed(tested + after, shrink_rate=None), SETTINGS)
    assert verdict in {j.verdict for j in found}
    assert found[-1].statistics["pulse_gain"] == pytest.approx(gain, abs=0.1)


def test_a_pulse_test_that_could_not_tell_is_no_equilibrium_and_no_verdict_on_authority():
    tested = pulsed(-0.3, noise=0.3)
    after = [replace(r, step=r.step + tested[-1].step) for r in simulate()[50:]]
    found = judge(tested + after, SETTINGS)[-1]
    assert found.statistics["pulse_gain_low"] < -0.1 < found.statistics["pulse_gain_high"]
    assert found.verdict == "transient"
    assert found.reason == "the pulse test could not tell whether S follows lambda"


def test_a_slow_plant_needs_judgments_half_a_window_apart():
    records = simulate(pull=0.04, growth=0.01, steps=1500, noise=0.002)
    judgments = judge(records, SETTINGS)
    stop = next(j for j in judgments if j.may_stop)
    window = stop.statistics["window_steps"]
    rested = [j for j in judgments if "must agree" in j.reason and j.step < stop.step]
    assert window > 120
    assert stop.step - rested[0].step >= window / 2


def test_a_plant_that_answers_slowly_is_judged_on_a_longer_window():
    judgments = judge(simulate(pull=0.01, growth=0.002, steps=1200), SETTINGS)
    assert judgments[-1].statistics["window_steps"] > 100


@pytest.mark.parametrize("bound", ["lambda_max", "lambda_min"])
def test_a_bound_close_by_is_no_equilibrium(bound):
    records = simulate()
    stop = first_stop(records)
    lam = next(r.lam for r in records if r.step == stop.step)
    close = lam * (1.15 if bound == "lambda_max" else 0.87)
    settings = replace(SETTINGS, lambda_init=lam, **{bound: close})
    judged = next(j for j in judge(records, settings) if j.step == stop.step)
    assert (judged.verdict, judged.reason) == ("transient", f"lambda is close to {bound}")


def test_cooldown_skips_and_pulses_are_not_judged():
    records = simulate()
    count = len(judge(records, SETTINGS))
    for held in ("cooldown", "skipped steps"):
        assert len(judge(records + changed(records, held=held), SETTINGS)) == count
    half = len(records) // 2
    pulsed = [*records[:half], replace(records[half], held="pulse"), *records[half + 1 :]]
    after = [j.step for j in judge(pulsed, SETTINGS) if j.step > records[half].step]
    assert after[0] - records[half].step >= 80


def test_a_monitor_fed_with_a_trace_gives_the_judgments_of_the_run():
    records, monitor = simulate(), Monitor(SETTINGS)
    seen = [monitor.observe(record) for record in records]
    assert seen[0] is None
    assert monitor.judgments == judge(records, SETTINGS)
    assert list(dict.fromkeys(j.step for j in seen if j)) == [j.step for j in monitor.judgments]


def test_every_statistic_is_explained_and_finite():
    for records, settings in (
        (simulate(), SETTINGS),
        (simulate(wire=0.0), SETTINGS),
        (simulate(ControlSettings(target_s=0.002)), ControlSettings(target_s=0.002)),
    ):
        for judgment in judge(records, settings):
            assert judgment.statistics.keys() <= STATISTICS.keys()
            assert all(map(math.isfinite, judgment.statistics.values()))
    assert all(STATISTICS.values())


def test_held_windows_do_not_count_for_the_guides_rule():
    """A skipped step's loss enters its window's mean as 0."""
    falling = still(0.5, losses=(6.0, 5.8))
    assert not guide_rule(falling, SETTINGS)
    bad = [replace(r, data_bpt=1.0, held="skipped steps") if r.step == 120 else r for r in falling]
    assert not guide_rule(bad, SETTINGS)


def test_the_guides_rule_takes_two_windows_where_an_interval_is_long():
    settings = ControlSettings(target_s=0.1, control_interval=100)
    records = [replace(r, lam=0.5, s=0.1, data_bpt=6.0) for r in simulate(settings, steps=400)]
    assert guide_rule(records, settings)


def still(lam: float, *, s: float = 0.1, losses: tuple[float, float] = (6.0, 6.0)):
    records = simulate(steps=200)
    return [
        replace(r, lam=lam, s=s, data_bpt=losses[0] if r.step <= 150 else losses[1])
        for r in records
    ]


def test_the_guides_rule_needs_its_three_signals():
    assert guide_rule(still(0.5), SETTINGS)
    assert not guide_rule(still(0.5)[:10], SETTINGS)  # 50 steps
    assert not guide_rule(still(0.5, s=0.11), SETTINGS)
    assert not guide_rule(still(0.5, losses=(6.0, 5.9)), SETTINGS)
    assert guide_rule(still(0.5, losses=(6.0, 6.1)), SETTINGS)  # "or slightly increasing"
    moved = [replace(r, lam=r.lam + r.step * 1e-4) for r in still(0.5)]
    assert not guide_rule(moved, SETTINGS)
    assert not guide_rule([], SETTINGS)


def test_the_guides_rule_fires_with_lambda_disconnected_and_ours_does_not():
    """What it cannot know: lambda at a bound, S drifting through the band."""
    records = [replace(r, lam=2.0, s=0.1, shrink_rate=0.0) for r in simulate(wire=0.0)]
    assert guide_rule(records, SETTINGS)
    assert first_stop(records) is None
