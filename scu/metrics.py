"""Description length of a fine-tuned model, in bits per token.

Two-part code: the bits that the data cost given the model, plus the bits that the adapter costs,
both spread over the N distinct training tokens so that they share one unit.

    DataBPT  = CE / ln 2                                            bits/token
    ParamBPT = sum((theta - theta0)^2) / (2 sigma^2 N ln 2)         bits/token
    S        = ParamBPT / (DataBPT + ParamBPT)                      fraction in [0, 1)

ParamBPT is the part of -log2 N(theta; theta0, sigma^2) that depends on theta. Without its
log-determinant it is a relative complexity, not a code length: its gradient is right, its absolute
value is a convention. A receiver who has the seed regenerates theta0 for nothing, so theta0 is the
adapter as it was drawn (Hinton & van Camp 1993; Blier & Ollivier 2018).

Plain floats in and out. Percent exists only where a number is printed, nats only at the edge where
a framework hands us a loss.
"""

import math

from scu.errors import ConfigError

LN2 = math.log(2.0)


def data_bpt(loss_nats: float) -> float:
    """Mean cross-entropy of the data, converted from nats to bits per token."""
    return loss_nats / LN2


def param_bpt(sum_sq: float, *, prior_sigma: float, tokens: int) -> float:
    """Bits per token spent on the adapter.

    sum_sq is sum((theta - theta0)^2) over exactly the trainable adapter weights. tokens is N, the
    distinct training tokens that carry loss, not the tokens seen so far: with a moving N the ratio
    would drift even if nothing was learned.
    """
    _check_prior(prior_sigma, tokens)
    return sum_sq / (2.0 * prior_sigma**2 * tokens * LN2)


def pull(lam: float, *, prior_sigma: float, tokens: int) -> float:
    """c = lambda / (sigma^2 N): the penalty's gradient is c * (theta - theta0), in nats/token.

    From J = CE + lambda * sum((theta - theta0)^2) / (2 sigma^2 N). lambda = 1 is MAP, the two-part
    code.
    """
    _check_prior(prior_sigma, tokens)
    return lam / (prior_sigma**2 * tokens)


def info_ratio(data: float, param: float) -> float:
    """Share of the total description length that the adapter costs: S.

    >>> round(info_ratio(data=2.91, param=0.09), 3)
    0.03
    """
    total = data + param
    if not total > 0.0:
        raise ValueError(f"description length must be positive, got {total} bits/token")
    return param / total


def logit(s: float) -> float:
    """ln(s / (1 - s)): for S it is ln(ParamBPT / DataBPT), so errors in it are free of scale."""
    return math.log(s / (1.0 - s))


def perplexity(bpt: float) -> float:
    """2 ** bits per token; infinite where a float cannot hold it."""
    return 2.0**bpt if bpt < 1024.0 else math.inf


def _check_prior(prior_sigma: float, tokens: int) -> None:
    if not 0.0 < prior_sigma < math.inf:
        raise ConfigError(f"prior_sigma must be positive, got {prior_sigma}")
    if tokens <= 0:
        raise ConfigError(
            f"tokens_per_epoch must be positive, got {tokens}; leave it out and it is counted"
        )
