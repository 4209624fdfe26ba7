"""PI control of the regularization strength lambda.

The plant is a training run. Its measured output is the information ratio S (see metrics.py), its
input is lambda: a larger lambda pulls the adapter harder toward its prior mean, so S falls.

Positional law (default), once per window of `control_interval` optimizer steps:

    e         = logit(S) - logit(S*)              ln of the ratio of bit ratios: scale-free
    I         = I + ki * e                        |e| counts up to ln 2; not during the climb
    wanted    = ln lambda_init + kp * e + I
    ln lambda = half of the way from its last value to wanted, at most max_log_change; bounded

A positional PI in ln lambda, as nuPI (Sohrabi et al. 2024, arXiv 2406.04558), with three guards:

- S starts at 0, and an integral that ran during the climb would have to be undone by an overshoot:
  while S is more than a factor of two (in odds) from S* and on its way, the integral waits. On its
  way means that at its present rate e would close within the time already spent; a climb that
  stalls short of S*, because the proportional part itself stops it, must not wait for ever.
- Half of the way: where gradients are steady ParamBPT goes as lambda^-2, and a plant that answers
  within one window would turn kp = 0.8 into a loop gain of 1.6, a limit cycle. Half steps put its
  pole at -0.3 and cost a slow plant nothing.
- At a bound the integral gives back its own excess (back-calculation: Astrom & Hagglund, "Advanced
  PID Control", 2006, ch. 3), so a pinned lambda leaves its bound at the first error of the other
  sign.

Multiplicative law, for comparison with published runs only:

    e = EMA(S) - S*;  I = I + e;  lambda = lambda * exp(kp * e + ki * I)

With lambda on both sides kp integrates and ki integrates twice: once the plant lags, it never
settles.

Gains mean nothing without the interval they act at. Pure on purpose: no clock, no tensors, no
logging; the state is a few numbers, so a run is replayed from its trace and tested without a model.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from scu.errors import ConfigError
from scu.metrics import LN2, info_ratio, logit

Law = Literal["positional", "multiplicative"]
ActuatorKind = Literal["prox", "gradient", "none"]
"""How lambda reaches the weights: engines/actuator.py."""
PriorMean = Literal["init", "zero"]
"""theta0: the adapter as it was drawn, or 0."""

StopRule = Literal["equilibrium", "guide", "never"]
"""What ends a run before its steps are done: a verdict (monitor.py), the scaling guide's three
signals, or nothing."""

STOP_TOLERANCE = 0.05
"""S counts as on target within this fraction of S*."""
S_FLOOR = 1e-9
"""S = 0 (theta = theta0) and S = 1 (no data bits left) have no logit; this far from them has."""


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    target_s: float
    """S*, a fraction: 0.03, never 3."""
    kp: float = 0.8
    """Change of ln lambda per unit of error."""
    ki: float = 0.15
    """Change of ln lambda per unit of error and window."""
    deadband: float = 0.003
    """Half-width around S*, absolute in S, in which lambda rests; see effective_deadband."""
    lambda_init: float = 1.0
    lambda_min: float = 1e-4
    lambda_max: float = 2.0
    control_interval: int = 5
    """Optimizer steps per window: the controller's clock."""
    ema: float = 0.25
    """Weight of the newest window in the moving average (of DataBPT; of S in the multiplicative
    law)."""
    max_log_change: float = LN2
    """Largest change of ln lambda in one update."""
    law: Law = "positional"

    def __post_init__(self) -> None:
        if not 0.0 < self.target_s < 1.0:
            hint = f"; did you mean {self.target_s / 100}?" if 1.0 <= self.target_s < 100.0 else ""
            raise ConfigError(f"target_s must be a fraction in (0, 1), got {self.target_s}{hint}")
        if not 0.0 < self.lambda_min < self.lambda_max < math.inf:
            raise ConfigError(
                f"need 0 < lambda_min < lambda_max, got [{self.lambda_min}, {self.lambda_max}]; "
                "lambda cannot move between such bounds (the defaults are 0.0001 and 2.0)"
            )
        if not self.lambda_min <= self.lambda_init <= self.lambda_max:
            raise ConfigError(
                f"lambda_init {self.lambda_init} is outside [lambda_min, lambda_max] = "
                f"[{self.lambda_min}, {self.lambda_max}]"
            )
        for name in ("kp", "ki", "deadband"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0.0 < self.ema <= 1.0:
            raise ConfigError(f"ema must be in (0, 1], got {self.ema}")
        if not self.max_log_change > 0.0:
            raise ConfigError(f"max_log_change must be positive, got {self.max_log_change}")
        if self.control_interval < 1:
            raise ConfigError(f"control_interval must be at least 1, got {self.control_interval}")
        if self.law not in ("positional", "multiplicative"):
            raise ConfigError(f"law must be positional or multiplicative, got {self.law!r}")

    @property
    def effective_deadband(self) -> float:
        """The deadband, but never wider than half the stop tolerance.

        0.003 is 10 % of S* = 3 % and 60 % of S* = 0.5 %: inside such a band lambda would rest while
        S is still off target, and no equilibrium could be told from a pause. The multiplicative
        law, kept as it was published, takes the deadband as it is.
        """
        if self.law == "multiplicative":
            return self.deadband
        return min(self.deadband, 0.5 * STOP_TOLERANCE * self.target_s)


@dataclass(frozen=True)
class ControlState:
    lam: float
    integral: float = 0.0
    """Positional law: integral part of ln lambda. Multiplicative law: sum of errors."""
    error: float = 0.0
    """The error e at the last update, in the law's own unit."""
    s: float = 0.0
    """S as the law saw it at the last update."""
    average: float | None = None
    """Moving average of DataBPT (positional) or of S (multiplicative); None before the first
    window."""
    at_rest: bool = False
    """Inside the deadband: lambda holds until S leaves the band."""
    windows: int = 0
    """Updates so far."""
    closing: float = 0.0
    """Decrease of |e| per window, averaged over about the last quarter of the run."""


class Measured(Protocol):
    """What replay() needs of a trace record."""

    @property
    def data_bpt(self) -> float: ...
    @property
    def param_bpt(self) -> float: ...
    @property
    def held(self) -> str: ...


def start(settings: ControlSettings) -> ControlState:
    return ControlState(lam=settings.lambda_init)


def update(
    state: ControlState, *, data_bpt: float, param_bpt: float, settings: ControlSettings
) -> ControlState:
    """The state after a window that measured data_bpt (its mean) and param_bpt (at its end)."""
    if not math.isfinite(data_bpt + param_bpt):
        raise ValueError(f"cannot control on {data_bpt} data and {param_bpt} parameter bits/token")
    if settings.law == "multiplicative":
        return _update_multiplicative(state, info_ratio(data_bpt, param_bpt), settings)
    # DataBPT is noisy and is averaged; ParamBPT is exact and is not, so that S hardly lags.
    average = _average(state.average, data_bpt, settings.ema)
    return _update_positional(
        replace(state, average=average), info_ratio(average, param_bpt), settings
    )


def replay(records: Iterable[Measured], settings: ControlSettings) -> list[ControlState]:
    """Feed a trace back through the law: the same lambda column, one state per record."""
    states, state = [], start(settings)
    for record in records:
        if not record.held:
            state = update(
                state, data_bpt=record.data_bpt, param_bpt=record.param_bpt, settings=settings
            )
        states.append(state)
    return states


def _update_positional(state: ControlState, s: float, settings: ControlSettings) -> ControlState:
    error = logit(_clamp(s, S_FLOOR, 1.0 - S_FLOOR)) - logit(settings.target_s)
    windows = state.windows + 1
    weight = min(1.0, 4.0 / windows)
    closing = (1.0 - weight) * state.closing + weight * (abs(state.error) - abs(error))
    state = replace(state, s=s, error=error, windows=windows, closing=closing)
    if settings.kp == settings.ki == 0.0:
        return state  # open loop
    # Hysteresis: comes to rest in the inner half of the band, wakes at its edge.
    band = settings.effective_deadband * (1.0 if state.at_rest else 0.5)
    if abs(s - settings.target_s) <= band:
        return replace(state, at_rest=True)

    origin = math.log(settings.lambda_init)
    low, high = math.log(settings.lambda_min), math.log(settings.lambda_max)
    integral = state.integral
    if abs(error) < LN2 or (windows > 1 and windows * closing < abs(error)):
        integral += settings.ki * _clamp(error, -LN2, LN2)
        integral = _clamp(origin + integral, low, high) - origin
    wanted = origin + settings.kp * error + integral
    last, step = math.log(state.lam), settings.max_log_change
    log_lam = last + _clamp(0.5 * (wanted - last), -step, step)
    return replace(state, lam=_bounded_exp(log_lam, settings), integral=integral, at_rest=False)


def _update_multiplicative(
    state: ControlState, s: float, settings: ControlSettings
) -> ControlState:
    average = _average(state.average, s, settings.ema)
    error = average - settings.target_s
    state = replace(state, s=s, average=average, error=error)
    if abs(error) <= settings.effective_deadband:
        return replace(state, at_rest=True)
    integral = state.integral + error
    log_lam = math.log(state.lam) + settings.kp * error + settings.ki * integral
    return replace(state, lam=_bounded_exp(log_lam, settings), integral=integral, at_rest=False)


def _average(previous: float | None, newest: float, weight: float) -> float:
    return newest if previous is None else weight * newest + (1.0 - weight) * previous


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _bounded_exp(log_lam: float, settings: ControlSettings) -> float:
    # exp(log(bound)) need not be the bound to the last bit.
    if log_lam <= math.log(settings.lambda_min):
        return settings.lambda_min
    return min(math.exp(log_lam), settings.lambda_max)
