"""The stopping benchmark's arithmetic."""

import pytest

from bench.stopping import early_stop
from bench.stopping_evidence import controls, cooldown, interval, is_right, patience, positive


def positive_row(seed, *, reason="equilibrium", regret=0.001, saved=0.5, guide=None, text="a"):
    stopped = {
        "reason": reason,
        "stop_step": 300,
        "end_step": 330,
        "held_out": 6.0,
        "held_out_at_constant_rate": 6.06,
    }
    return {
        "text": text,
        "size": 50_000,
        "seed": seed,
        "tokens": 49_000,
        "best": 5.99,
        "guide_step": guide,
        "stopped": stopped if reason else None,
        "saved": saved,
        "regret": regret,
    }


def control_row(control, expected, verdict, **values):
    return {
        "control": control,
        "expected": expected,
        "verdict": verdict,
        "verdicts": {verdict: 3},
        "equilibrium": verdict == "equilibrium",
        "guide_step": None,
    } | values


def test_early_stopping_waits_for_its_patience_and_keeps_the_best():
    bits = [(25, 7.0), (50, 6.8), (75, 6.9), (100, 6.85), (125, 6.81), (150, 6.5)]
    assert early_stop(bits, 3) == (125, 50)
    assert early_stop(bits, 5) == (None, 150)
    assert early_stop([(25, 7.0), (50, 7.0), (75, 7.0)], 2) == (75, 25)


def test_an_interval_of_one_value_is_the_value():
    assert interval([0.01]) == "1.00 %"
    assert interval([0.01, 0.01, 0.01]) == "+1.00 % (+1.00 to +1.00)"


def test_criteria_of_the_positive_runs_are_met_or_not_by_count():
    good = positive([positive_row(seed) for seed in range(10)], 700)
    assert good.count("| met |") == 3
    assert "10 of 10" in good
    assert "would have ended 0 of 10 of these runs." in good
    late = [positive_row(seed, saved=0.2) for seed in range(2)]
    bad = positive(
        [*late, positive_row(3, reason=None), positive_row(4, regret=0.01, guide=100)], 700
    )
    assert bad.count("**not met**") == 3
    assert "3 of 4" in bad
    assert "at a median step of 100." in bad


def test_any_verdict_but_equilibrium_is_right_for_noise():
    assert is_right(control_row("random tokens", "transient", "saturated"))
    assert not is_right(control_row("random tokens", "transient", "equilibrium"))
    assert is_right(control_row("diverging", "diverged", "diverged"))
    assert not is_right(control_row("diverging", "diverged", "transient"))


def test_one_false_equilibrium_in_ten_fails_the_controls():
    rows = [control_row("diverging", "diverged", "diverged") for _ in range(9)]
    assert controls(rows).count("| met |") == 2
    wrong = control_row("diverging", "diverged", "equilibrium", guide_step=100)
    text = controls([*rows, wrong])
    assert text.count("**not met**") == 2
    assert "1 of 10 (10.0 %)" in text


def test_cooldown_is_paired_with_its_own_rivals():
    rows = [positive_row(seed) for seed in (1, 2)]
    cosines = [{"name": f"cosine-a-50000-{seed}", "held_out": 6.3} for seed in (1, 2)]
    text = cooldown(rows, cosines)
    assert "| all | 2 | 6.0000 | 6.0600 | 6.3000 | -0.99 % (-0.99 to -0.99)" in text


def test_patience_is_compared_cell_by_cell():
    rival = {"end_step": 200, "best_step": 100, "held_out": 6.6, "evaluations": 8}
    row = {"text": "a", "size": 50_000, "seed": 1, "best": 6.5}
    row |= {"patience 3": rival, "patience 5": rival}
    text = patience([row], [positive_row(1), positive_row(2)])
    assert "| patience 3 | 1 | 6.6000 | 6.0000 | -9.09 % | 200 | 330 | 8 against 0 |" in text


@pytest.mark.parametrize("seed", [1, 2])
def test_a_cell_without_a_stopped_run_is_shown_without_one(seed):
    rival = {"end_step": 200, "best_step": 100, "held_out": 6.6, "evaluations": 8}
    rows = [
        {"text": "a", "size": 50_000, "seed": s, "best": 6.5, "patience 3": rival}
        | {"patience 5": rival}
        for s in (1, 2)
    ]
    positives = [positive_row(s, reason="equilibrium" if s == seed else None) for s in (1, 2)]
    assert "6.6000 (200) | - |" in patience(rows, positives)
