"""What an adapter was worth: base against adapter on the same held-out documents.

Scores come in as nats per document and are summed before they are divided: token-weighted, so a
long document counts for what it is. Bits per byte do not depend on the tokenizer. The interval
resamples documents, pairwise: tokens of one document are not independent (Miller 2024, "Adding
error bars to evals").
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scu.errors import DataError
from scu.metrics import LN2, perplexity

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class DocumentScore:
    """One document under one model."""

    nats: float
    """Sum of the cross-entropy of the tokens that carry loss."""
    tokens: int
    """How many they are."""
    bytes: int
    """UTF-8 bytes of the text they spell."""


@dataclass(frozen=True)
class Comparison:
    """Base against adapter; positive saved_bpt means that the adapter is better."""

    source: str
    documents: int
    tokens: int
    bytes: int
    base_bpt: float
    adapter_bpt: float
    base_bpb: float
    adapter_bpb: float
    base_perplexity: float
    adapter_perplexity: float
    saved_bpt: float
    """base_bpt - adapter_bpt."""
    saved_low: float
    """Lower end of its 95 % interval (paired bootstrap over documents)."""
    saved_high: float
    wins: int
    """Documents on which the adapter needs fewer bits than the base."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bits_per_token(scores: Sequence[DocumentScore]) -> float:
    """Token-weighted mean over documents. Raises DataError when there is not one token to score."""
    tokens = sum(score.tokens for score in scores)
    if tokens == 0:
        raise DataError("the evaluation data hold no token that could be scored")
    return sum(score.nats for score in scores) / LN2 / tokens


def bits_per_byte(scores: Sequence[DocumentScore]) -> float:
    """Bits of all scored tokens over the bytes of the text they spell."""
    size = sum(score.bytes for score in scores)
    if size == 0:
        raise DataError("the evaluation data hold no text that could be scored")
    return sum(score.nats for score in scores) / LN2 / size


def compare(
    base: Sequence[DocumentScore], adapter: Sequence[DocumentScore], *, source: str, seed: int = 0
) -> Comparison:
    """Compare two models on the same documents, in the same order."""
    assert [s.tokens for s in base] == [s.tokens for s in adapter], "scores of different documents"
    base_bpt, adapter_bpt = bits_per_token(base), bits_per_token(adapter)
    low, high = paired_interval(base, adapter, seed=seed)
    return Comparison(
        source=source,
        documents=len(base),
        tokens=sum(score.tokens for score in base),
        bytes=sum(score.bytes for score in base),
        base_bpt=base_bpt,
        adapter_bpt=adapter_bpt,
        base_bpb=bits_per_byte(base),
        adapter_bpb=bits_per_byte(adapter),
        base_perplexity=perplexity(base_bpt),
        adapter_perplexity=perplexity(adapter_bpt),
        saved_bpt=base_bpt - adapter_bpt,
        saved_low=low,
        saved_high=high,
        wins=sum(a.nats < b.nats for a, b in zip(adapter, base, strict=True)),
    )


def paired_interval(
    base: Sequence[DocumentScore], adapter: Sequence[DocumentScore], *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of base minus adapter in bits per token; documents are resampled.

    Unbounded when there is one document: nothing is known about the next.
    """
    if len(base) < 2:
        return -np.inf, np.inf
    saved = np.array([b.nats - a.nats for b, a in zip(base, adapter, strict=True)]) / LN2
    tokens = np.array([score.tokens for score in base], dtype=np.float64)

    def saved_bpt(saved: NDArray[Any], tokens: NDArray[Any], axis: int = -1) -> NDArray[Any]:
        return np.asarray(saved.sum(axis=axis) / np.maximum(tokens.sum(axis=axis), 1.0))

    result = stats.bootstrap(
        (saved, tokens),
        saved_bpt,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(saved)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
