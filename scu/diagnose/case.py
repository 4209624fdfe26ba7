"""A run as its diagnosis sees it: what was measured, cut into the parts that checks ask about."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, median, stdev
from textwrap import shorten
from typing import Any, Literal

from scu.control import S_FLOOR, STOP_TOLERANCE
from scu.metrics import logit
from scu.monitor import Judgment
from scu.run_view import RunView
from scu.trace import StepRecord

Severity = Literal["wrong", "remark"]
Source = Literal["what to watch", "when to adjust", "troubleshooting", "ours"]

MIN_WINDOWS = 10
"""Fewer control windows prove nothing: S of one window has a noise of about 3 %."""
RECENT_STEPS = 100
"""The present state is at least so many steps long: the guide's own "100+ steps"."""
TIME_CONSTANTS = 4.0
"""... or so many time constants of the plant: a slower run takes longer to show its state."""
FULL_RATE = 0.9
"""Of the peak learning rate; below it S moves because the rate does."""
LONG_CLIMB = 50
"""Steps after warmup before anything is said about where S stands: it starts at 0."""
ON_PURPOSE = frozenset({"cooldown", "pulse"})
"""Reasons for which windows are held that are no fault."""
NEAR = math.log(1.0 + STOP_TOLERANCE)
"""|ln(S odds / S* odds)| that counts as on target."""
FAR = math.log(1.0 + 3.0 * STOP_TOLERANCE)
"""... and that noise does not excuse."""
NO_RATE = 1e-9
"""A learning rate below this does not move a weight of ordinary size in fp32."""
NO_PULL = 0.05
"""Share of ParamBPT that is removed within the recent windows: below it lambda does nothing that
noise would not hide."""
SWINGING_LAW = (
    "the multiplicative law integrates twice and never settles on a plant that lags",
    "--set scu.law=positional",
)
"""Cause and change."""
KI_PER_KP = 0.15 / 0.8
"""The defaults' ratio."""


@dataclass(frozen=True)
class Finding:
    """One thing about a run that its reader should know, and what to change."""

    name: str
    severity: Severity
    symptom: str
    """What is seen, without numbers."""
    evidence: str
    """What was measured, with steps."""
    cause: str
    change: str
    source: Source
    """The guide's table that has this row; ours: it has none."""

    @property
    def headline(self) -> str:
        """One line for a narrow place."""
        return shorten(self.symptom, 70, placeholder=" ...")

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self) | {"headline": self.headline}


@dataclass(frozen=True)
class Case:
    """A run with what its checks need. Parts are empty where the run is too young for them."""

    run: RunView
    judgments: Sequence[Judgment]
    now_sec: float
    """The time at which the trace file's age is judged, in seconds since the epoch."""

    @property
    def target(self) -> float:
        return self.run.settings.target_s

    def setting(self, key: str) -> Any:
        """A setting by its dotted key; None for a lone trace."""
        value: Any = self.run.config
        for part in key.split("."):
            value = getattr(value, part, None)
        return value

    def error(self, record: StepRecord) -> float:
        """ln(S odds / S* odds): in the same unit under both laws."""
        s = min(max(record.s, S_FLOOR), 1.0 - S_FLOOR)
        return logit(s) - logit(self.target)

    @property
    def assumed(self) -> str:
        """After a setting's value: a lone trace does not hold it."""
        return "" if self.run.config is not None else " (assumed: there is no config.yaml)"

    @cached_property
    def tokens_per_epoch(self) -> float | None:
        """N, as far as something beside the trace tells."""
        facts = {**(self.run.metadata or {}), **self.run.start}
        n = facts.get("tokens_per_epoch") or self.setting("data.tokens_per_epoch")
        return float(n) if isinstance(n, int | float) else None

    @cached_property
    def tokens_counted(self) -> float | None:
        """What N should be; None where it was not noted."""
        counted = self.run.start.get("tokens_per_pass")
        for note in (self.run.metadata or {}).get("notes", ()):
            if match := re.search(r"([\d,]+) (?:were counted|tokens carry loss)", str(note)):
                counted = counted or int(match[1].replace(",", ""))
        return float(counted) if isinstance(counted, int | float) else None

    def errors(self, records: Sequence[StepRecord]) -> list[float]:
        return [self.error(record) for record in records]

    @cached_property
    def finite(self) -> list[StepRecord]:
        """Windows whose numbers can be used: all are there, and no skipped step's loss is missing
        from the mean."""
        return [
            r
            for r in self.run.records
            if math.isfinite(r.data_bpt + r.param_bpt + r.s) and not r.skipped_steps
        ]

    @cached_property
    def peak_rate(self) -> float:
        return max((r.learning_rate for r in self.run.records), default=0.0)

    @cached_property
    def warmup_steps(self) -> int:
        """As configured; of a lone trace, until the rate has arrived at its peak."""
        if (steps := self.setting("training.warmup_steps")) is not None:
            return int(steps)
        there = (r.step for r in self.run.records if r.learning_rate >= 0.99 * self.peak_rate)
        return next(there, 0)

    @cached_property
    def trained(self) -> list[StepRecord]:
        """Windows after the warmup."""
        return [r for r in self.finite if r.step > self.warmup_steps]

    @cached_property
    def steered(self) -> list[StepRecord]:
        """Windows in which lambda was the controller's, the warmup's among them."""
        return [r for r in self.finite if r.held not in ON_PURPOSE]

    @cached_property
    def free(self) -> list[StepRecord]:
        """The steered windows after the warmup."""
        return [r for r in self.steered if r.step > self.warmup_steps]

    @cached_property
    def recent(self) -> list[StepRecord]:
        """The present state: the last free windows, over max(100 steps, 10 windows, 4 time
        constants), but not more than half of them where that is longer. Empty in the climb."""
        if len(self.free) < MIN_WINDOWS or span(self.free) < LONG_CLIMB:
            return []
        shortest = max(RECENT_STEPS, MIN_WINDOWS * self.run.settings.control_interval)
        slow = TIME_CONSTANTS * tau_of(self.free[-MIN_WINDOWS:])
        steps = max(shortest, min(slow, span(self.free) / 2))
        return self.last(steps)

    def last(self, steps: float) -> list[StepRecord]:
        """The free windows of the last so many steps."""
        return [r for r in self.free if r.step > self.free[-1].step - steps]

    @cached_property
    def mean_error(self) -> float:
        """Over the recent windows; 0 where there are none."""
        return fmean(self.errors(self.recent)) if self.recent else 0.0

    @cached_property
    def mean_s(self) -> float:
        return fmean(r.s for r in self.recent) if self.recent else math.nan

    @cached_property
    def pull_per_window(self) -> float | None:
        """Share of ParamBPT (to first order) that lambda's pull removes over the recent windows'
        length; None where the trace does not tell."""
        rate = shrink_of(self.recent)
        return None if rate is None else rate * max(RECENT_STEPS, span(self.recent))

    @property
    def steps_left(self) -> float:
        """Steps in which lambda can still move S; where nothing says, as many as were made."""
        if not self.free:
            return math.inf
        if self.run.metadata is not None or self.trained[-1].held == "cooldown":
            return 0.0
        if self.run.config is None:
            return float(self.free[-1].step)
        training = self.run.config.training
        return max(0.0, training.steps - training.cooldown_steps - self.free[-1].step)

    @cached_property
    def steps_to_target(self) -> float:
        """Steps until S is on target, at the present rate; infinite if it does not come closer."""
        half = len(self.recent) // 2
        if half < MIN_WINDOWS // 2:
            return math.nan
        early, late = self.errors(self.recent[:half]), self.errors(self.recent[-half:])
        now = abs(fmean(late))
        # What counts as coming closer must be beyond the noise of the two means.
        noise = math.sqrt((_variance(early) + _variance(late)) / half)
        closing = abs(fmean(early)) - now
        if now <= NEAR:
            return 0.0
        if closing <= max(2.0 * noise, 0.02 * now):
            return math.inf
        steps = self.recent[-half].step - self.recent[0].step
        return (now - NEAR) / (closing / steps)

    @cached_property
    def equilibrium_step(self) -> int | None:
        """Where the monitor first saw equilibrium; without its judgments, the end of the first 100
        steps in which S was on target, level, and lambda kept within 10 %."""
        if self.judgments:
            return next((j.step for j in self.judgments if j.verdict == "equilibrium"), None)
        first = 0
        for i, record in enumerate(self.free):
            while self.free[first].step <= record.step - RECENT_STEPS:
                first += 1
            part = self.free[first : i + 1]
            if len(part) >= MIN_WINDOWS and span(part) >= 0.9 * RECENT_STEPS and self._level(part):
                return record.step
        return None

    def _level(self, part: list[StepRecord]) -> bool:
        errors, half = self.errors(part), len(part) // 2
        lambdas = [r.lam for r in part]
        return (
            abs(fmean(errors)) <= NEAR
            and abs(fmean(errors[:half]) - fmean(errors[half:])) <= NEAR
            and 0.0 < max(lambdas) <= 1.1 * min(lambdas)
        )


def span(records: Sequence[StepRecord]) -> int:
    """Steps from the first window's end to the last one's."""
    return records[-1].step - records[0].step if records else 0


def shrink_of(records: Sequence[StepRecord]) -> float | None:
    """The usual shrink rate; None where no record has one."""
    rates = [r.shrink_rate for r in records if r.shrink_rate is not None]
    return median(rates) if rates else None


def tau_of(records: Sequence[StepRecord]) -> float:
    """The plant's time constant in steps; 0 where it is not known, infinite where nothing pulls."""
    rate = shrink_of(records)
    if rate is None:
        return 0.0
    return 1.0 / rate if rate > 0.0 else math.inf


def swings(values: Sequence[float], size: float) -> list[int]:
    """Indices of the turning points between moves of more than size."""
    turns: list[int] = []
    high = low = direction = 0
    for i, value in enumerate(values):
        high = i if value > values[high] else high
        low = i if value < values[low] else low
        if direction >= 0 and values[high] - value > size:
            turns += [high] if direction else []  # nothing turned before the first move
            direction, low = -1, i
        elif direction <= 0 and value - values[low] > size:
            turns += [low] if direction else []
            direction, high = 1, i
    return turns


def percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def fraction(value: float) -> str:
    """A number as it is typed after --set."""
    return f"{value:.2g}"


def _variance(values: Sequence[float]) -> float:
    return float(stdev(values) ** 2) if len(values) > 1 else math.inf
