"""Verdicts: what state a run is in, and whether it may end.

Judged on a window of max(100 steps, two time constants of the plant), twice per window.
`equilibrium` is positive evidence, intervals that lie inside a band (two one-sided tests: Schuirmann
1987), never a failure to see a trend; the loss is the one exception (_loss_falls). How the intervals
are made: window.py.

Pure: a monitor fed with a trace gives the verdicts that the run had, so the stop rule's error rates
are measured on recorded runs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scu import window
from scu.control import STOP_TOLERANCE, ControlSettings
from scu.plant import Plant, PulseResult, estimate, pulse_result
from scu.trace import StepRecord
from scu.window import Interval, Statistics, Swings

Verdict = Literal[
    "equilibrium", "saturated", "no_authority", "oscillating", "transient", "diverged"
]

WINDOW_STEPS = 100
TIME_CONSTANTS = 2.0
BAND = math.log1p(STOP_TOLERANCE)
"""5 % of S*, in ln(S odds): for the mean error, and for the change of S over a window."""
LAMBDA_BAND = 3.0 * BAND
"""For the change of ln lambda over a window: the drift that the integral (ki 0.15, 20 updates per
window) follows with a lag of BAND."""
LAMBDA_STILL = 1e-3
"""A range of lambda within a window that needs no test: the guide's."""
BOUND_MARGIN, AT_BOUND = 0.3, 0.05
"""Distance of ln lambda from its bounds: least in an equilibrium, most at a bound."""
PLATEAU = 0.002
"""Relative improvement of DataBPT per window that counts as none."""
MIN_AUTHORITY = 0.1
"""e-folds of ParamBPT that lambda_max could remove within a window; below it nothing moves S."""
SLACK = 0.05
"""A pull that removes less than this share of ParamBPT within a window holds nothing back."""
SWING = 2.0 * BAND
"""Excursions of ln lambda that count as swings, where S swings by more than BAND; the noise that
the loop passes on to lambda stays below."""
HALF_CYCLES = 3
STEADY_RATE, LEAST_RATE = 0.9, 0.1
"""Learning rate: smallest within a window over largest, and over the run's peak."""
WORSE, FAR_WORSE = 1.02, 1.25
"""DataBPT of a run that has come apart: over its value before training, over its best."""

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
    "authority": "e-folds that lambda_max could take off ParamBPT within the window",
    "pull": "e-folds that lambda does take off within the window",
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


def guide_rule(records: Sequence[StepRecord], settings: ControlSettings) -> bool:
    """The scaling guide's stopping signals, as it states them, on the last 100 steps.

    Lambda moved by less than 0.001, S is within 5 % of S*, and DataBPT no longer falls (by more
    than 0.2 % from the first half to the second).
    """
    last = [r for r in records if r.step > records[-1].step - WINDOW_STEPS] if records else []
    if not last or last[-1].step < WINDOW_STEPS or len(last) < 2:
        return False
    lam, half = [r.lam for r in last], len(last) // 2
    early = sum(r.data_bpt for r in last[:half]) / half
    late = sum(r.data_bpt for r in last[-half:]) / half
    return (
        max(lam) - min(lam) < LAMBDA_STILL
        and abs(last[-1].s / settings.target_s - 1.0) <= STOP_TOLERANCE
        and late > (1.0 - PLATEAU) * early
    )


class Monitor:
    """Judges a run, record by record."""

    def __init__(self, settings: ControlSettings, *, context_free_bpt: float | None = None) -> None:
        self.settings = settings
        self.context_free_bpt = context_free_bpt
        """Bits per token of a code that knows token frequencies only; None: not known."""
        self.judgments: list[Judgment] = []
        """Every judgment so far: from the first full window on, two per window."""
        self._records: list[StepRecord] = []
        """Those that can be judged, since the last pulse."""
        self._pulse: list[StepRecord] = []
        self._peak_rate = 0.0
        self._start_bpt = math.nan
        self._best_bpt = math.inf
        self._candidate = False

    def observe(self, record: StepRecord) -> Judgment | None:
        """The judgment in force after this record; None before the first."""
        if record.held == "pulse":
            self._pulse += [*self._records[-1:], record]  # lambda stands in the record before
            self._records.clear()
        elif not math.isfinite(record.data_bpt + record.param_bpt):
            self.judgments.append(Judgment(record.step, "diverged", "the loss is not finite"))
        elif not record.held:
            self._peak_rate = max(self._peak_rate, record.learning_rate)
            if math.isnan(self._start_bpt):
                self._start_bpt = record.data_bpt
            self._records.append(record)
            last = self.judgments[-1].step if self.judgments else 0
            least = self._least_steps()
            if record.step - last >= least / 2 and self._tail(least) is not None:
                self.judgments.append(self._judge())
        return self.judgments[-1] if self.judgments else None

    def _least_steps(self) -> int:
        return max(WINDOW_STEPS, window.MIN_RECORDS * self.settings.control_interval)

    def _tail(self, steps: int) -> list[StepRecord] | None:
        """The records of the last so many steps; None if there are not as many."""
        last = self._records[-1].step
        tail = [r for r in self._records if r.step > last - steps]
        enough = len(tail) >= max(window.MIN_RECORDS, 0.8 * steps / self.settings.control_interval)
        return tail if enough else None

    def _judge(self) -> Judgment:
        plant, steps = estimate(self._records), self._least_steps()
        records = self._tail(steps)
        assert records is not None
        if plant is not None and math.isfinite(plant.tau_steps):
            steps = max(steps, math.ceil(TIME_CONSTANTS * plant.tau_steps))
        full = self._tail(steps)
        state = State(
            settings=self.settings,
            plant=plant,
            pulse=pulse_result(self._pulse),
            records=full or records,
            window_steps=steps,
            is_full=full is not None,
            window=window.of(full or records, self.settings.target_s),
            swings=_swings(self._records, self._least_steps()),
            data_bpt=window.mean_of(records, "data_bpt"),
            param_bpt=window.mean_of(records, "param_bpt"),
            start_bpt=self._start_bpt,
            best_bpt=self._best_bpt,
            peak_rate=self._peak_rate,
            context_free_bpt=self.context_free_bpt,
        )
        self._best_bpt = min(self._best_bpt, state.data_bpt.value)
        verdict, reason = _fault(state) or ("equilibrium", next(_missing(state), ""))
        seen, self._candidate = self._candidate, verdict == "equilibrium" and not reason
        if reason and verdict == "equilibrium":
            verdict = "transient"
        elif self._candidate and not seen:
            verdict, reason = "transient", "all is at rest in this window; the next must agree"
        elif self._candidate:
            reason = "S is at S* and lambda at rest, in two windows"
        may_stop = verdict == "equilibrium" or (verdict == "saturated" and _inactive(state))
        step = self._records[-1].step
        statistics = {name: value for name, value in _statistics(state) if math.isfinite(value)}
        return Judgment(step, verdict, reason, statistics, may_stop)


@dataclass(frozen=True)
class State:
    """What one judgment rests on."""

    settings: ControlSettings
    plant: Plant | None
    pulse: PulseResult | None
    records: Sequence[StepRecord]
    window_steps: int
    is_full: bool
    """The records fill window_steps; if not, they are the last 100 steps."""
    window: Statistics
    swings: Swings
    data_bpt: Interval
    param_bpt: Interval
    start_bpt: float
    best_bpt: float
    peak_rate: float
    context_free_bpt: float | None

    @property
    def pull(self) -> float | None:
        """e-folds that lambda takes off ParamBPT within the window."""
        rates = [r.shrink_rate for r in self.records if r.shrink_rate is not None]
        return self.window_steps * sum(rates) / len(rates) if rates else None

    @property
    def authority(self) -> float | None:
        """The same at lambda_max."""
        if self.pull is None:
            return None
        mean_lam = sum(r.lam for r in self.records) / len(self.records)
        return self.pull * self.settings.lambda_max / mean_lam

    @property
    def learned_nothing(self) -> bool:
        total = self.data_bpt.value + self.param_bpt.value
        return self.context_free_bpt is not None and total >= self.context_free_bpt


def _fault(state: State) -> tuple[Verdict, str] | None:
    """A verdict that needs no equilibrium to be looked for."""
    data, error = state.data_bpt, state.window.error
    if data.low > WORSE * state.start_bpt and state.learned_nothing:
        return "diverged", f"DataBPT {data.value:.3g} is worse than before training"
    if data.value > FAR_WORSE * state.best_bpt:
        return "diverged", f"DataBPT {data.value:.3g} is far above its best, {state.best_bpt:.3g}"
    if state.authority is not None and state.authority < MIN_AUTHORITY:
        return "no_authority", "lambda does not reach the weights: even lambda_max moves nothing"
    if state.pulse is not None and not state.pulse.certified:
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
        if state.pull is not None and state.pull < SLACK and error.high < -BAND:
            return "saturated", "the constraint does not bind: S is below S* with hardly any pull"
    return None


def _missing(state: State) -> Iterator[str]:
    """What keeps the window from being an equilibrium, most telling first."""
    rates = [r.learning_rate for r in state.records]
    if max(rates) < LEAST_RATE * state.peak_rate:
        yield "the learning rate is below a tenth of its peak"
    if min(rates) < STEADY_RATE * max(rates):
        yield "the learning rate is changing"
    now = state.window
    if not now.error.inside(BAND):
        yield f"S is {_off(now.error)} S*"
    if not state.is_full:
        yield f"S answers lambda slowly: {state.window_steps} steps are needed to judge"
    if now.s_trend.low > BAND or now.s_trend.high < -BAND:
        yield f"S still drifts: {_span(now.s_trend)} over {state.window_steps} steps"
    if now.lambda_range >= LAMBDA_STILL and not now.lambda_trend.inside(LAMBDA_BAND):
        yield f"lambda still moves: {_span(now.lambda_trend)} over {state.window_steps} steps"
    log_lam = window.log_lambda(state.records)
    settings = state.settings
    if log_lam.max() > math.log(settings.lambda_max) - BOUND_MARGIN:
        yield "lambda is close to lambda_max"
    if log_lam.min() < math.log(settings.lambda_min) + BOUND_MARGIN:
        yield "lambda is close to lambda_min"
    if state.authority is None and state.pulse is None:
        yield "this trace does not show that lambda reaches the weights"
    if _loss_falls(state):
        yield f"the loss still falls: {_span(now.loss_trend)} over {state.window_steps} steps"
    if state.learned_nothing:
        yield "nothing was learned that token frequencies do not tell"


def _loss_falls(state: State) -> bool:
    """Whether DataBPT certainly improves by more than PLATEAU over the window.

    The one test that looks for evidence against: training losses of a few thousand tokens differ by
    2 % from window to window, and no affordable number of them could show 0.2 %.
    """
    return state.window.loss_trend.high < -PLATEAU


def _inactive(state: State) -> bool:
    """The constraint does not bind, and the loss is at rest: there is nothing to wait for."""
    at_rest = state.window.loss_trend.low > -STOP_TOLERANCE and not _loss_falls(state)
    return state.window.error.high < 0.0 and at_rest


def _swings(records: Sequence[StepRecord], lookback: int) -> Swings:
    """Of S and lambda alike, within one window or four: fast cycles are seen in the first, slow
    ones in the second."""
    found = []
    for steps in (lookback, 4 * lookback):
        tail = [r for r in records if r.step > records[-1].step - steps]
        at = [r.step for r in tail]
        of_s = window.swings(at, window.log_odds(tail), BAND)
        found.append(min(of_s, window.swings(at, window.log_lambda(tail), SWING)))
    return max(found)


def _statistics(state: State) -> Iterator[tuple[str, float]]:
    yield "window_steps", state.window_steps
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


def judge(
    records: Iterable[StepRecord],
    settings: ControlSettings,
    *,
    context_free_bpt: float | None = None,
) -> list[Judgment]:
    """All judgments on a trace."""
    monitor = Monitor(settings, context_free_bpt=context_free_bpt)
    for record in records:
        monitor.observe(record)
    return monitor.judgments
