"""Verdicts on a run (skeleton: the interface stands, the judgment is being written)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from scu.control import ControlSettings
from scu.trace import StepRecord

Verdict = Literal[
    "equilibrium", "saturated", "no_authority", "oscillating", "transient", "diverged"
]


@dataclass(frozen=True)
class Judgment:
    """A verdict, with the statistics it was reached by."""

    step: int
    verdict: Verdict
    reason: str
    """One sentence, without a full stop."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    """By name: see STATISTICS."""


STATISTICS: Mapping[str, str] = {
    "window_steps": "optimizer steps judged",
    "tau_steps": "the plant's time constant, in steps",
    "gain": "of the plant: change of ln(S odds) per change of ln lambda",
    "mean_error": "mean of ln(S odds / S* odds) in the window",
    "mean_error_low": "lower end of its 90 % interval",
    "mean_error_high": "upper end",
    "s_trend": "change of ln(S odds) over the window",
    "s_trend_low": "",
    "s_trend_high": "",
    "lambda_trend": "change of ln lambda over the window",
    "lambda_trend_low": "",
    "lambda_trend_high": "",
    "lambda_range": "largest less smallest lambda in the window",
    "loss_trend": "relative change of DataBPT over the window",
    "loss_trend_low": "",
    "loss_trend_high": "",
    "authority": "e-folds that lambda_max could take off ParamBPT within the window",
    "half_cycles": "changes of the error's sign beyond noise, in the window",
    "period_steps": "of the oscillation; absent without one",
}


class Monitor:
    """Judges a run, record by record."""

    def __init__(
        self, settings: ControlSettings, *, context_free_bpt: float | None = None
    ) -> None:
        self.settings = settings
        self.context_free_bpt = context_free_bpt
        self.judgments: list[Judgment] = []
        """Every judgment so far; a new one each half window, from the first full window on."""

    def observe(self, record: StepRecord) -> Judgment | None:
        """The judgment in force after this record; None before the first."""
        return self.judgments[-1] if self.judgments else None


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
