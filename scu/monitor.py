"""Judges a run while it goes, and says when it may end.

A judgment is made every 50 steps, on a window of max(100 steps, two time constants of the plant)
(the first of a run already when four fifths of it are there); what a window says is in verdicts.py.
All must be at rest in every judgment over half a window, in two at least, before the verdict is
`equilibrium`: that, and not a single look, keeps the many looks of a long run from stopping it by
chance. The same holds for a run that may end because its constraint does not bind.

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
from scu.window import Interval, Swings

__all__ = ["BAND", "STATISTICS", "Judgment", "Monitor", "Verdict", "guide_rule", "judge"]

WINDOW_STEPS = 100
TIME_CONSTANTS = 2.0


def guide_rule(records: Sequence[StepRecord], settings: ControlSettings) -> bool:
    """The scaling guide's stopping signals, as it states them, on the last 100 steps (two control
    windows at least; held ones do not count).

    Lambda moved by less than 0.001, S is within 5 % of S*, and DataBPT no longer falls (by more
    than 0.2 % from the first half to the second).
    """
    steps = max(WINDOW_STEPS, 2 * settings.control_interval)
    recent = _last_steps(records, steps, settings.control_interval) if records else []
    last = [r for r in recent if not r.held]
    if len(last) < 2 or last[-1].step < steps:
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
        """Every judgment so far."""
        self._records: list[StepRecord] = []
        """Those that can be judged, since the last pulse."""
        self._history: list[StepRecord] = []
        """The same, pulses or not."""
        self._pulse: list[StepRecord] = []
        """Those of a pulse test, and the one before it."""
        self._last: StepRecord | None = None
        self._peak_rate = 0.0
        self._best: Interval | None = None
        self._rest, self._rest_from = "", 0
        """What kind of rest every judgment has found since which step; empty if none."""

    def observe(self, record: StepRecord) -> Judgment | None:
        """The judgment in force after this record; None before the first."""
        before, self._last = self._last, record
        if record.held == "pulse":
            if before is not None:
                self._pulse.append(before)  # it holds the level of lambda
            self._pulse.append(record)
            self._records.clear()
        elif not math.isfinite(record.data_bpt + record.param_bpt):
            self.judgments.append(Judgment(record.step, "diverged", "the loss is not finite"))
        elif not record.held:
            self._peak_rate = max(self._peak_rate, record.learning_rate)
            self._records.append(record)
            self._history.append(record)
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
        plant, steps = estimate(self._history), self._least_steps()
        records = self._tail(steps)
        assert records is not None
        if plant is not None and math.isfinite(plant.tau_steps):
            steps = max(steps, math.ceil(TIME_CONSTANTS * plant.tau_steps))
        full = self._tail(steps)
        now = self._records[-1].step
        # Never shorter than the window: there are not as many records in half of a young run.
        half = _last_steps(self._records, now - now // 2, self.settings.control_interval)
        longest = max(half, full or records, key=len)
        data = window.mean_of(records, "data_bpt")
        self._best = min(self._best or data, data)
        state = State(
            settings=self.settings,
            plant=plant,
            pulse=pulse_result(self._pulse),
            records=full or records,
            recent=records,
            window_steps=steps,
            is_full=full is not None,
            steps_done=now,
            window=window.of(full or records, self.settings.target_s),
            longest=window.of(longest, self.settings.target_s),
            longest_steps=len(longest) * self.settings.control_interval,
            swings=_swings(self._records, self._least_steps(), self.settings.control_interval),
            data_bpt=data,
            param_bpt=window.mean_of(records, "param_bpt"),
            start_bpt=self._history[0].data_bpt,
            best=self._best,
            peak_rate=self._peak_rate,
            context_free_bpt=self.context_free_bpt,
        )
        verdict, reason = fault(state) or ("equilibrium", next(missing(state), ""))
        rest = ""
        if verdict == "equilibrium" and reason:
            verdict = "transient"
        elif verdict == "equilibrium" or (verdict == "saturated" and inactive(state)):
            rest = verdict
        if rest != self._rest:
            self._rest, self._rest_from = rest, now
        may_stop = bool(rest) and now - self._rest_from >= steps / 2
        if rest == "equilibrium":
            reason = "S is at S* and lambda at rest, in two windows"
            if not may_stop:
                verdict, reason = "transient", "all is at rest in this window; the next must agree"
        values = {name: value for name, value in statistics(state) if math.isfinite(value)}
        return Judgment(now, verdict, reason, values, may_stop)


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
