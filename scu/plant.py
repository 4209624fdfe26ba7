"""The plant that the controller sees: how fast S answers lambda, and how far.

ParamBPT grows because the data push the adapter outward, and shrinks because lambda pulls it back:

    d ln P / dt = G(P) - r          G: growth per step, r: share of P that the pull removes per step

r is measured (StepRecord.shrink_rate), so every window gives one value of G = change of ln P + r.
The further out the adapter is, the slower it grows, G ~ P^-a, and around the point where G = r

    time constant = 1 / (a r) steps          gain = d ln P / d ln lambda = -1 / a

a is the slope of ln G against ln P over the run so far: the climb from S = 0 moves P by several
e-folds, which tells a well where noise around the set point never would (in closed loop lambda
reacts to that noise, and a regression of S on lambda finds the controller, not the plant). Near the
set point DataBPT hardly moves, so ln P stands for ln(S odds).

A pulse test (pulse.py) measures the sign and the size of the answer directly: see pulse_result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from scu.trace import StepRecord
from scu.window import quantile

ASSUMED_GAIN = -1.0
"""Growth that does not depend on P; -0.7 to -1.3 is what runs show."""
RECENT = 10
"""Windows whose median is the present rate."""
MIN_WINDOWS = 10
HISTORY = 400
"""Windows that the fit looks back on."""
FULL_RATE = 0.9
"""Of the peak learning rate: below it G is the schedule's doing."""


PULSE_HALVES, PULSE_LEAST_WINDOWS = 4, 3
"""Of a pulse test: high and low levels of lambda; control windows of each, at least."""


@dataclass(frozen=True)
class Plant:
    tau_steps: float
    """Time constant at the present lambda; infinite where nothing pulls."""
    gain: float
    """d ln(S odds) / d ln lambda."""
    gain_low: float
    gain_high: float
    """Its 90 % interval; nan where the gain is assumed."""
    source: Literal["run", "assumed"]
    """run: the gain was fitted to this run."""


def estimate(records: Sequence[StepRecord]) -> Plant | None:
    """The plant as far as a trace tells; None where shrink rates are not known."""
    rates = [r.shrink_rate for r in records[-RECENT:] if r.shrink_rate is not None]
    if not rates:
        return None
    rate = float(np.median(rates))
    fit = _fit(records)
    if fit is None:
        tau = 1.0 / rate if rate > 0.0 else math.inf
        return Plant(tau, ASSUMED_GAIN, math.nan, math.nan, "assumed")
    a, low, high = fit
    tau = 1.0 / (a * rate) if rate > 0.0 else math.inf
    return Plant(tau, -1.0 / a, -1.0 / low, -1.0 / high, "run")


def _fit(records: Sequence[StepRecord]) -> tuple[float, float, float] | None:
    """a and its interval; None where they say less than the assumption does."""
    records = records[-HISTORY:]
    peak = max((r.learning_rate for r in records), default=0.0)
    log_p, log_g = [], []
    for before, after in pairwise(records):
        if after.held or before.held or after.shrink_rate is None:
            continue
        if after.learning_rate < FULL_RATE * peak or not min(before.param_bpt, after.param_bpt) > 0:
            continue
        change = math.log(after.param_bpt / before.param_bpt) / (after.step - before.step)
        growth = change + after.shrink_rate
        if growth > 0.0:
            log_p.append(0.5 * math.log(before.param_bpt * after.param_bpt))
            log_g.append(math.log(growth))
    if len(log_p) < MIN_WINDOWS or max(log_p) - min(log_p) < 1e-6:
        return None
    line = stats.linregress(log_p, log_g)
    a, half = -float(line.slope), quantile(len(log_p) - 2) * float(line.stderr)
    # A fit that cannot tell a from twice or half of it is no better than a = 1.
    return (a, a - half, a + half) if a > 0.0 and half < 0.5 * a else None


class PulseResult(NamedTuple):
    """d ln ParamBPT / d ln lambda, with its 90 % interval."""

    gain: float
    low: float
    high: float

    @property
    def certified(self) -> bool:
        """More lambda means less ParamBPT, beyond doubt."""
        return self.high < 0.0


def pulse_result(records: Sequence[StepRecord]) -> PulseResult | None:
    """What the pulse windows of a trace say; None where there are none, or not all.

    ln ParamBPT against ln lambda and time, over the later half of each level: the earlier half is
    still on its way there, and what drifts by itself is not the answer.
    """
    levels: list[list[tuple[float, float, int]]] = []
    for before, record in pairwise(records):  # a window's record holds the next one's lambda
        if record.held == "pulse" and min(before.lam, record.param_bpt) > 0.0:
            point = (math.log(before.lam), math.log(record.param_bpt), record.step)
            if levels and levels[-1][-1][0] == point[0]:
                levels[-1].append(point)
            else:
                levels.append([point])
    points = np.array([p for level in levels for p in level[len(level) // 2 :]])
    freedom = len(points) - 3
    if len(levels) < PULSE_HALVES or freedom < 1:
        return None
    steps = points[:, 2] - points[:, 2].mean()
    design = np.column_stack([np.ones(len(points)), steps, points[:, 0] - points[:, 0].mean()])
    coefficients = np.linalg.lstsq(design, points[:, 1], rcond=None)[0]
    residual = points[:, 1] - design @ coefficients
    variance = float(residual @ residual) / freedom * np.linalg.inv(design.T @ design)[2, 2]
    half = quantile(freedom) * math.sqrt(variance)
    gain = float(coefficients[2])
    return PulseResult(gain, gain - half, gain + half)
