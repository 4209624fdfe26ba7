"""Comparisons: sums worked out by hand, intervals against a closed form."""

import math

import numpy as np
import pytest

from scu.errors import DataError
from scu.evaluate import DocumentScore, bits_per_byte, bits_per_token, compare, paired_interval
from scu.metrics import LN2


def scores(bits: list[float], tokens: list[int], size: int = 10) -> list[DocumentScore]:
    return [DocumentScore(b * LN2, n, size) for b, n in zip(bits, tokens, strict=True)]


def test_bits_are_weighted_by_tokens_and_not_by_documents():
    assert bits_per_token(scores([30.0, 10.0], [10, 1])) == pytest.approx(40.0 / 11.0)
    assert bits_per_byte(scores([30.0, 10.0], [10, 1], size=16)) == pytest.approx(40.0 / 32.0)


def test_a_comparison_by_hand():
    result = compare(
        scores([40.0, 20.0, 9.0], [10, 5, 5]), scores([20.0, 15.0, 10.0], [10, 5, 5]), source="x"
    )
    assert result.base_bpt == pytest.approx(69 / 20)
    assert result.adapter_bpt == pytest.approx(45 / 20)
    assert result.saved_bpt == pytest.approx(24 / 20)
    assert result.base_perplexity == pytest.approx(2 ** (69 / 20))
    assert result.wins == 2
    assert (result.documents, result.tokens, result.bytes) == (3, 20, 30)
    assert result.as_dict()["adapter_bpb"] == pytest.approx(45 / 30)


def test_the_interval_matches_the_normal_theory_for_documents_of_equal_length():
    rng = np.random.default_rng(1)
    saved = rng.normal(5.0, 2.0, size=400)
    base, adapter = scores([100.0] * 400, [50] * 400), scores(list(100.0 - saved), [50] * 400)
    low, high = paired_interval(base, adapter)
    half = 1.96 * saved.std(ddof=1) / math.sqrt(400) / 50
    assert low == pytest.approx(saved.mean() / 50 - half, rel=0.02)
    assert high == pytest.approx(saved.mean() / 50 + half, rel=0.02)


def test_the_interval_is_paired_so_noise_shared_by_both_models_cancels():
    rng = np.random.default_rng(2)
    base_bits = rng.normal(100.0, 30.0, size=50)
    low, high = paired_interval(
        scores(list(base_bits), [50] * 50), scores(list(base_bits - 1.0), [50] * 50)
    )
    assert low == pytest.approx(1.0 / 50)
    assert high == pytest.approx(1.0 / 50)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(3)
    base = scores(list(rng.normal(100, 10, 30)), [20] * 30)
    adapter = scores(list(rng.normal(95, 10, 30)), [20] * 30)
    assert paired_interval(base, adapter) == paired_interval(base, adapter)
    assert paired_interval(base, adapter) != paired_interval(base, adapter, seed=1)


def test_one_document_says_nothing_about_the_next():
    assert paired_interval(scores([5.0], [5]), scores([4.0], [5])) == (-math.inf, math.inf)


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no token that could be scored"):
        bits_per_token(scores([0.0], [0]))
    with pytest.raises(DataError, match="no text that could be scored"):
        bits_per_byte(scores([1.0], [1], size=0))
