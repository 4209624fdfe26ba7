"""When a run ends, and its cooldown."""

import math
from dataclasses import replace

import pytest

from scu.ending import Ending
from scu.errors import ConfigError
from tests.plants import SETTINGS, simulate


def followed(records, **options):
    """An ending that saw the records, up to the one that ended the run."""
    ending = Ending(SETTINGS, **({"steps": 1000} | options))
    for record in records:
        ending.observe(record)
        reason, detail = ending.why()
        if reason:
            ending.begin(record.step, reason, detail)
            break
    return ending


def test_an_equilibrium_ends_the_run_with_a_cooldown_of_a_tenth_of_the_steps_done():
    ending = followed(simulate())
    assert ending.reason == "equilibrium"
    assert ending.detail == "S is at S* and lambda at rest, in two windows"
    assert ending.cooldown_from == ending.judgment.step
    assert ending.end_step == ending.cooldown_from + math.ceil(0.1 * ending.cooldown_from)


def test_a_given_cooldown_is_shortened_in_proportion():
    ending = followed(simulate(), cooldown_steps=200)
    share = 200 / 800
    assert ending.end_step == ending.cooldown_from + math.ceil(share * ending.cooldown_from)


def test_never_uses_up_its_steps_and_cools_down_at_their_end():
    ending = followed(simulate(), rule="never", cooldown_steps=100)
    assert (ending.reason, ending.cooldown_from, ending.end_step) == ("", 900, 1000)
    assert not ending.cools(900)
    assert ending.cools(901)


def test_the_rate_falls_by_equal_steps_to_one_nth():
    ending = Ending(SETTINGS, steps=10, cooldown_steps=4)
    assert [ending.rate_factor(done) for done in range(10)] == [1.0] * 6 + [1.0, 0.75, 0.5, 0.25]


def test_without_a_cooldown_the_rate_is_the_trainers_to_the_end():
    ending = Ending(SETTINGS, steps=10)
    assert {ending.rate_factor(done) for done in range(10)} == {1.0}
    assert not ending.cools(10)


def test_the_guides_rule_ends_a_run_that_it_is_asked_to_judge():
    records = [replace(r, lam=0.5, s=0.1, data_bpt=6.0) for r in simulate()]
    assert followed(records, rule="guide").reason == "guide rule"
    assert followed(records, rule="guide").cooldown_from == 100
    assert followed(records, rule="never").reason == ""


def test_limits_count_the_cooldown_in_and_are_labelled():
    # 500 tokens and half a second per step; with the cooldown, 1.1 times that.
    ending = followed(simulate(), rule="never", max_tokens=110_000)
    assert (ending.reason, ending.cooldown_from, ending.end_step) == ("token limit", 200, 220)
    assert ending.detail == "110,000 tokens, cooldown included"
    ending = followed(simulate(), rule="never", max_sec=110.0)
    assert (ending.reason, ending.cooldown_from, ending.end_step) == ("time limit", 200, 220)


def test_a_limit_in_the_cooldown_changes_nothing():
    ending = followed(simulate(steps=600), steps=600, cooldown_steps=400, max_tokens=302_000)
    assert (ending.reason, ending.end_step) == ("", 600)


def test_an_early_end_close_to_the_last_step_does_not_lengthen_the_run():
    ending = followed(simulate(), rule="never", max_tokens=110_000, steps=210)
    assert ending.end_step == 210


def test_a_run_that_came_apart_ends_at_once_and_without_a_cooldown():
    records = simulate(loss=lambda step: 6.0 if step < 300 else 9.0)
    ending = followed(records)
    assert ending.reason == "diverged"
    assert ending.end_step == ending.cooldown_from
    assert [j.verdict for j in ending.monitor.judgments[-3:]] == ["diverged"] * 3
    assert followed(records, rule="never").reason == ""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rule": "equlibrium"}, "stop must be equilibrium, guide, never, got 'equlibrium'"),
        ({"cooldown_steps": -1}, "cooldown_steps must be 0 or more, got -1"),
        ({"max_sec": 0.0}, "max_sec must be positive, got 0.0; None sets no limit"),
        ({"max_tokens": 0}, "max_tokens must be positive, got 0"),
    ],
)
def test_options_that_could_not_work_are_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Ending(SETTINGS, steps=100, **options)


def test_a_cooldown_longer_than_the_run_is_the_whole_run():
    ending = Ending(SETTINGS, steps=50, cooldown_steps=100)
    assert ending.cooldown_from == 0
    assert ending.rate_factor(0) == 1.0
    assert ending.cools(1)


@pytest.mark.parametrize("rule", ["equilibrium", "never"])
def test_a_loss_at_rest_ends_a_run_whose_constraint_does_not_bind(rule):
    settings = replace(SETTINGS, target_s=0.9, lambda_min=0.3)
    ending = Ending(settings, steps=2000, rule=rule)
    records = simulate(settings, growth=0.002, steps=900)
    for record in records:
        ending.observe(record)
        if found := ending.why()[0]:
            break
    assert found == ("plateau" if rule == "equilibrium" else "")
