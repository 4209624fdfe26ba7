"""Judges a run while it goes, and says when it may end.

A judgment is made twice per window of max(100 steps, two time constants of the plant); what a
window says is in verdicts.py. Two judgments in a row must find all at rest before the verdict is
`equilibrium`: that, and not a single look, is what keeps the many looks of a long run from stopping
it by chance.

Pure: a monitor fed with a trace gives the verdicts that the run had, so the stop rule's error rates
are measured on recorded runs.
"""

import math
from collections.abc import Iterable, Sequence

from scu import window
from scu.control import STOP_TOLERANCE, ControlSettings
from scu.plant import estimate, pulse_result
from scu.trace import StepRecord
from scu.verdicts import (
    BAND,
    LAMBDA_STILL,
    PLATEAU,
    STATISTICS,
    SWING,
    Judgment,
    State,
    Verdict,
    fault,
    inactive,
    missing,
    statistics,
)
from scu.window import Swings

__all__ = ["BAND", "STATISTICS", "Judgment", "Monitor", "Verdict", "guide_rule", "judge"]

WINDOW_STEPS = 100
TIME_CONSTANTS = 2.0


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
        tail = _last_steps(self._records, steps, self.settings.control_interval)
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
            least_steps=self._least_steps(),
            steps_done=self._records[-1].step,
            window=window.of(full or records, self.settings.target_s),
            swings=_swings(self._records, self._least_steps(), self.settings.control_interval),
            data_bpt=window.mean_of(records, "data_bpt"),
            param_bpt=window.mean_of(records, "param_bpt"),
            start_bpt=self._start_bpt,
            best_bpt=self._best_bpt,
            peak_rate=self._peak_rate,
            context_free_bpt=self.context_free_bpt,
        )
        self._best_bpt = min(self._best_bpt, state.data_bpt.value)
        verdict, reason = fault(state) or ("equilibrium", next(missing(state), ""))
        seen, self._candidate = self._candidate, verdict == "equilibrium" and not reason
        if reason and verdict == "equilibrium":
            verdict = "transient"
        elif self._candidate and not seen:
            verdict, reason = "transient", "all is at rest in this window; the next must agree"
        elif self._candidate:
            reason = "S is at S* and lambda at rest, in two windows"
        may_stop = verdict == "equilibrium" or (verdict == "saturated" and inactive(state))
        step = self._records[-1].step
        values = {name: value for name, value in statistics(state) if math.isfinite(value)}
        return Judgment(step, verdict, reason, values, may_stop)


def _last_steps(records: Sequence[StepRecord], steps: int, interval: int) -> list[StepRecord]:
    # No more than these can be among them; a long run is not searched at every judgment.
    newest = records[-(steps // interval + 1) :]
    return [r for r in newest if r.step > records[-1].step - steps]


def _swings(records: Sequence[StepRecord], lookback: int, interval: int) -> Swings:
    """Of S and lambda alike, within one window or four: fast cycles are seen in the first, slow
    ones in the second."""
    found = []
    for steps in (lookback, 4 * lookback):
        tail = _last_steps(records, steps, interval)
        at = [r.step for r in tail]
        of_s = window.swings(at, window.log_odds(tail), BAND)
        found.append(min(of_s, window.swings(at, window.log_lambda(tail), SWING)))
    return max(found)


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
