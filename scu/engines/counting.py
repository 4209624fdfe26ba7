"""Counts the tokens that a run learns from, as its trainer will see them."""

import math
from typing import Any, NamedTuple

import torch

from scu.errors import DataError


class TokenCount(NamedTuple):
    loss_tokens: int
    """N: the tokens that carry loss in one pass."""
    context_free_bpt: float
    """Their entropy as independent draws, in bits per token (with the Miller-Madow correction for
    the size of the sample): the price of a code that knows token frequencies and nothing else."""


def count_tokens(dataloader: Any, *, rows_per_batch: int = 64) -> TokenCount:
    """Count the labels that carry loss in one pass over a DataLoader's data set.

    Goes through the loader's own collator, so masks, truncation and packing count as they will in
    training; not through its sampler, so no random state moves. Raises DataError for a stream
    without a length.
    """
    dataset, collate = dataloader.dataset, dataloader.collate_fn
    if not hasattr(dataset, "__len__"):
        raise DataError("a streamed data set cannot be counted; set tokens_per_epoch")
    counts = torch.zeros(0, dtype=torch.int64)
    for first in range(0, len(dataset), rows_per_batch):
        rows = [dataset[i] for i in range(first, min(first + rows_per_batch, len(dataset)))]
        # The first position of a row predicts nothing: causal models shift labels by one.
        labels = collate(rows)["labels"][:, 1:]
        counts = _sum(counts, torch.bincount(labels[labels != -100].flatten().cpu()))
    total = int(counts.sum())
    if total == 0:
        return TokenCount(0, 0.0)
    share = counts[counts > 0].double() / total
    correction = (len(share) - 1) / (2.0 * total)
    nats = float(-(share * share.log()).sum()) + correction
    return TokenCount(total, nats / math.log(2.0))


def _sum(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if len(left) < len(right):
        left, right = right, left
    left = left.clone()
    left[: len(right)] += right
    return left
