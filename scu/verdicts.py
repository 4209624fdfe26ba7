"""What one window of a run says: the six verdicts, and the statistics behind each.

`equilibrium` is positive evidence, intervals that lie inside a band (two one-sided tests:
Schuirmann 1987), never a failure to see a trend; the loss is the one exception (_loss_falls). How
the intervals are made: window.py. When a window is judged, and how often it must agree: monitor.py.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scu import window
from scu.control import STOP_TOLERANCE, ControlSettings
from scu.plant import Plant, PulseResult
from scu.trace import StepRecord
from scu.window import Interval, Statistics, Swings

Verdict = Literal[
    "equilibrium", "saturated", "no_authority", "oscillating", "transient", "diverged"
]

BAND = math.log1p(STOP_TOLERANCE)
"""5 % of S*, in ln(S odds): for the mean error, and for the change of S over a window."""
LAMBDA_BAND = 3.0 * BAND
"""For the change of ln lambda over a window: the drift that the integral (ki 0.15, 20 updates per
window) follows with a lag of BAND."""
LAMBDA_STILL = 1e-3
"""A range of lambda within a window that needs no test: the guide's."""
BOUND_MARGIN, AT_BOUND = 0.3, 0.05
"""Distance of ln lambda from its bounds: least in an equilibrium, most at a bound."""
PLATEAU, AT_REST = 0.002, 0.01
"""Relative improvement of DataBPT per 100 steps: beyond the first, if certain, the loss falls;
within the second, if certain, it rests."""
MIN_AUTHORITY = 0.1
"""e-folds of ParamBPT that lambda_max could remove in 100 steps; below it nothing moves S."""
SLACK = 0.05
"""A pull that removes less than this share of ParamBPT in 100 steps holds nothing back."""
SWING = 2.0 * BAND
"""Excursions of ln lambda that count as swings, where S swings by more than BAND; the noise that
the loop passes on to lambda stays below."""
HALF_CYCLES = 3
LEAST_GAIN = -0.1
"""d ln S odds / d ln lambda: with a gain that is certainly weaker S does not follow."""
STEADY_RATE, LEAST_RATE = 0.99, 0.1
"""Learning rate: smallest within a window over largest, and over the run's peak."""
FAR_WORSE, UNIMPROVED = 1.25, 0.9
"""DataBPT over its best, and over its value before training: beyond the first a run has come apart;
beyond the second too, if S is above S* and nothing was learned for it."""

STATISTICS: Mapping[str, str] = {
    "window_steps": "optimizer steps judged",
    "tau_steps": "the plant's time constant, in steps",
    "gain": "of the plant: change of ln(S odds) per change of ln lambda",
    "gain_low": "lower end of its 90 % interval; absent where the gain is assumed",
    "gain_high": "upper end",
    "pulse_gain": "the gain that a pulse test measured",
    "pulse_gain_low": "lower end of its 90 % interval",
    "pulse_gain_high": "upper end",
    "mean_error": "mean of ln(S odds / S* odds) in the window",
    "mean_error_low": "lower end of its 90 % interval",
    "mean_error_high": "upper end",
    "s_trend": "change of ln(S odds) over the window",
    "s_trend_low": "lower end of its 90 % interval",
    "s_trend_high": "upper end",
    "lambda_trend": "change of ln lambda over the window",
    "lambda_trend_low": "lower end of its 90 % interval",
    "lambda_trend_high": "upper end",
    "lambda_range": "largest less smallest lambda in the window",
    "loss_trend": "relative change of DataBPT over the window",
    "loss_trend_low": "lower end of its 90 % interval",
    "loss_trend_high": "upper end",
    "long_steps": "optimizer steps of the last half of the run, or of the window",
    "long_loss_trend": "relative change of DataBPT over them",
    "long_loss_trend_low": "lower end of its 90 % interval",
    "long_loss_trend_high": "upper end",
    "authority": "e-folds that lambda_max could take off ParamBPT in 100 steps",
    "pull": "e-folds that lambda does take off in 100 steps",
    "half_cycles": "swings of S and lambda in a row, up to now",
    "period_steps": "of the oscillation; absent without one",
}


@dataclass(frozen=True)
class Judgment:
    """A verdict, with the statistics it was reached by."""

    step: int
    verdict: Verdict
    reason: str
    """One sentence, without a full stop."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    """By name: see STATISTICS. One that could not be had is absent."""
    may_stop: bool = False
    """In equilibrium; or saturated, with a loss at rest, because the constraint does not bind."""


@dataclass(frozen=True)
class State:
    """What one judgment rests on."""

    settings: ControlSettings
    plant: Plant | None
    pulse: PulseResult | None
    records: Sequence[StepRecord]
    recent: Sequence[StepRecord]
    """Of the last 100 steps, or ten windows."""
    window_steps: int
    is_full: bool
    """The records fill window_steps; if not, they are the recent ones."""
    steps_done: int
    window: Statistics
    longest: Statistics
    """The same of the last half of the run, if that is longer."""
    longest_steps: int
    swings: Swings
    data_bpt: Interval
    param_bpt: Interval
    start_bpt: float
    best: Interval
    """Of all windows of the run."""
    peak_rate: float
    context_free_bpt: float | None

    @property
    def pull(self) -> float | None:
        """e-folds that lambda takes off ParamBPT in 100 steps."""
        rates = [r.shrink_rate for r in self.records if r.shrink_rate is not None]
        return 100.0 * sum(rates) / len(rates) if rates else None

    @property
    def authority(self) -> float | None:
        """The same at lambda_max."""
        if self.pull is None:
            return None
        mean_lam = sum(r.lam for r in self.records) / len(self.records)
        return self.pull * self.settings.lambda_max / mean_lam if mean_lam > 0.0 else None

    @property
    def rate_problem(self) -> str:
        """Why the learning rate allows no judgment of rest; empty if it does."""
        rates = [r.learning_rate for r in self.records]
        if max(rates) < LEAST_RATE * self.peak_rate:
            return "the learning rate is below a tenth of its peak"
        return "the learning rate is changing" if min(rates) < STEADY_RATE * max(rates) else ""

    @property
    def is_warming_up(self) -> bool:
        first, last = self.recent[0].learning_rate, self.recent[-1].learning_rate
        return first < STEADY_RATE * last

    @property
    def is_arriving(self) -> bool:
        """S comes closer to S* fast enough to be there within the time already spent."""
        steps = len(self.records) * self.settings.control_interval
        return self.window.s_trend.value * self.steps_done / steps > -self.window.error.value

    @property
    def learned_nothing(self) -> bool:
        total = self.data_bpt.value + self.param_bpt.value
        return self.context_free_bpt is not None and total >= self.context_free_bpt


def fault(state: State) -> tuple[Verdict, str] | None:
    """A verdict that needs no equilibrium to be looked for."""
    data, error = state.data_bpt, state.window.error
    spent = error.low > 0.0
    if data.low > FAR_WORSE * state.best.high:
        return "diverged", f"DataBPT {data.value:.3g} is far above its best, {state.best.value:.3g}"
    if state.is_warming_up:
        return None
    if state.authority is not None and state.authority < MIN_AUTHORITY:
        return "no_authority", "lambda does not reach the weights: even lambda_max moves nothing"
    if state.learned_nothing and data.value > state.start_bpt * (UNIMPROVED if spent else 1.0):
        return "diverged", f"DataBPT {data.value:.3g} is no better than before training"
    if state.pulse is not None and state.pulse.low > LEAST_GAIN:
        return "no_authority", "in the pulse test S did not follow lambda"
    if state.swings.half_cycles >= HALF_CYCLES:
        period = f"every {state.swings.period_steps:.0f} steps"
        return "oscillating", f"S and lambda swing to and fro {period}"
    settings, log_lam = state.settings, window.log_lambda(state.records)
    late = log_lam[len(log_lam) // 2 :]
    if error.low > 0.0 and late.min() > math.log(settings.lambda_max) - AT_BOUND:
        return "saturated", "lambda is at lambda_max and S still above S*"
    if error.high < 0.0:
        if late.max() < math.log(settings.lambda_min) + AT_BOUND:
            return "saturated", "lambda is at lambda_min and S still below S*"
        slack = state.pull is not None and state.pull < SLACK
        if slack and error.high < -BAND and not state.is_arriving:
            return "saturated", "the constraint does not bind: S is below S* with hardly any pull"
    return None


def missing(state: State) -> Iterator[str]:
    """What keeps the window from being an equilibrium, most telling first."""
    if state.rate_problem:
        yield state.rate_problem
    now, steps = state.window, len(state.records) * state.settings.control_interval
    if not now.error.inside(BAND):
        yield f"S is {_off(now.error)} S*"
    if not state.is_full:
        yield f"S answers lambda slowly: {state.window_steps} steps are needed to judge"
    if now.s_trend.low > BAND or now.s_trend.high < -BAND:
        yield f"S still drifts: {_span(now.s_trend)} over {steps} steps"
    if now.lambda_range >= LAMBDA_STILL and not now.lambda_trend.inside(LAMBDA_BAND):
        yield f"lambda still moves: {_span(now.lambda_trend)} over {steps} steps"
    log_lam = window.log_lambda(state.records)
    settings = state.settings
    if log_lam.max() > math.log(settings.lambda_max) - BOUND_MARGIN:
        yield "lambda is close to lambda_max"
    if log_lam.min() < math.log(settings.lambda_min) + BOUND_MARGIN:
        yield "lambda is close to lambda_min"
    if state.authority is None and state.pulse is None:
        yield "nothing shows that lambda reaches the weights; scu.pulse=true would"
    if state.pulse is not None and not state.pulse.certified:
        yield "the pulse test could not tell whether S follows lambda"
    if _loss_falls(state):
        falls = _span(state.longest.loss_trend)
        yield f"the loss still falls: {falls} over {state.longest_steps} steps"
    if state.learned_nothing:
        yield "nothing was learned that token frequencies do not tell"


def _loss_falls(state: State) -> bool:
    """Whether DataBPT certainly improves by more than PLATEAU per 100 steps.

    The one test that looks for evidence against: training losses of a few thousand tokens differ by
    2 % from window to window, and no affordable number of them could show 0.2 %. It looks at the
    last half of the run, so that what it misses gets smaller as the run gets longer.
    """
    return state.longest.loss_trend.high < -PLATEAU * state.longest_steps / 100.0


def inactive(state: State) -> bool:
    """The constraint does not bind, and nothing moves any more: there is nothing to wait for.

    Without a lambda that has found its place, the loss itself must be shown to rest: its change and
    that of S over the last half of the run, per 100 steps, lie inside bands.
    """
    hundreds = state.longest_steps / 100.0
    return (
        not state.rate_problem
        and state.window.error.high < 0.0
        and state.longest.loss_trend.inside(AT_REST * hundreds)
        and state.longest.s_trend.inside(BAND * hundreds)
    )


def statistics(state: State) -> Iterator[tuple[str, float]]:
    yield "window_steps", len(state.records) * state.settings.control_interval
    if state.plant is not None:
        yield "tau_steps", state.plant.tau_steps
        yield "gain", state.plant.gain
        yield "gain_low", state.plant.gain_low
        yield "gain_high", state.plant.gain_high
    if state.pulse is not None:
        yield "pulse_gain", state.pulse.gain
        yield "pulse_gain_low", state.pulse.low
        yield "pulse_gain_high", state.pulse.high
    for name, interval in (
        ("mean_error", state.window.error),
        ("s_trend", state.window.s_trend),
        ("lambda_trend", state.window.lambda_trend),
        ("loss_trend", state.window.loss_trend),
    ):
        yield name, interval.value
        yield f"{name}_low", interval.low
        yield f"{name}_high", interval.high
    yield "lambda_range", state.window.lambda_range
    yield "long_loss_trend", state.longest.loss_trend.value
    yield "long_loss_trend_low", state.longest.loss_trend.low
    yield "long_loss_trend_high", state.longest.loss_trend.high
    yield "long_steps", state.longest_steps
    if state.pull is not None and state.authority is not None:
        yield "pull", state.pull
        yield "authority", state.authority
    yield "half_cycles", state.swings.half_cycles
    yield "period_steps", state.swings.period_steps


def _off(error: Interval) -> str:
    share = math.expm1(error.value)
    return f"{abs(share):.1%} {'above' if share > 0.0 else 'below'}" if share else "at"


def _span(interval: Interval) -> str:
    return f"{math.expm1(interval.low):+.1%} to {math.expm1(interval.high):+.1%}"
