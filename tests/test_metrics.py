"""Bits per token: closed forms worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scu.errors import ConfigError
from scu.metrics import data_bpt, info_ratio, logit, param_bpt, perplexity, pull


def test_one_nat_is_one_over_ln2_bits():
    assert data_bpt(math.log(2.0)) == pytest.approx(1.0)


def test_param_bpt_by_hand():
    # 8 weights one sigma away from the mean: 8 * 1/2 nats, over 4 tokens, in bits.
    assert param_bpt(8 * 0.01**2, prior_sigma=0.01, tokens=4) == pytest.approx(1.0 / math.log(2.0))


def test_param_bpt_of_the_random_start_matches_the_design_figures():
    """With theta0 = 0: LoRA r=16 on 224 modules, sum A0^2 = r/3 each, S(0) = 2.3 % at N = 98.3M."""
    param = param_bpt(224 * 16 / 3, prior_sigma=0.01, tokens=98_304_000)
    assert param == pytest.approx(0.0876, abs=1e-4)


def test_the_pull_is_the_gradient_of_the_penalty_in_nats():
    lam, sigma, tokens, delta, step = 0.7, 0.02, 1000, 0.3, 1e-6

    def penalty_nats(x: float) -> float:
        return lam * param_bpt(x * x, prior_sigma=sigma, tokens=tokens) * math.log(2.0)

    numeric = (penalty_nats(delta + step) - penalty_nats(delta - step)) / (2 * step)
    assert pull(lam, prior_sigma=sigma, tokens=tokens) * delta == pytest.approx(numeric, rel=1e-6)


@given(st.floats(min_value=1e-6, max_value=1e3), st.floats(min_value=1e-6, max_value=1e3))
def test_the_logit_of_s_is_the_log_ratio_of_bits(data, param):
    s = info_ratio(data, param)
    assert 0.0 < s < 1.0
    if s < 0.999999:
        assert logit(s) == pytest.approx(math.log(param / data), rel=1e-6, abs=1e-6)


def test_s_is_zero_before_anything_was_learned():
    assert info_ratio(3.0, 0.0) == 0.0


def test_perplexity_is_two_to_the_bits_and_never_overflows():
    assert perplexity(3.0) == 8.0
    assert perplexity(5000.0) == math.inf


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_run_without_tokens_is_refused(tokens):
    with pytest.raises(ConfigError, match="tokens_per_epoch must be positive"):
        param_bpt(1.0, prior_sigma=0.01, tokens=tokens)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_a_prior_without_width_is_refused(sigma):
    with pytest.raises(ConfigError, match="prior_sigma must be positive"):
        pull(1.0, prior_sigma=sigma, tokens=10)


@pytest.mark.parametrize(("data", "param"), [(0.0, 0.0), (-1.0, 0.5), (math.nan, 0.1)])
def test_a_description_length_that_is_not_positive_is_refused(data, param):
    with pytest.raises(ValueError, match="description length must be positive"):
        info_ratio(data, param)
