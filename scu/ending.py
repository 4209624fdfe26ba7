"""When a run ends, and how: verdict, stop rule, limits, and the cooldown that they start.

The learning rate is constant (after its warmup) until something ends the run; then it falls
linearly to 0, with lambda held, and training is over. Equilibrium under a falling rate would mean
nothing, and the fall collects what the noise of the constant rate had cost.
"""

import math
from typing import get_args

from scu.control import ControlSettings, StopRule
from scu.errors import ConfigError
from scu.monitor import Judgment, Monitor, guide_rule
from scu.trace import StepRecord

DEFAULT_COOLDOWN = 0.1
"""Of the steps done."""
DIVERGED_LOOKS = 3
"""Judgments in a row that end a run; the first and the last have no control window in common."""


class Ending:
    """Follows one run of `steps` optimizer steps, and decides when its cooldown begins.

    cooldown_steps is the cooldown of a run that uses all its steps; one that ends early has a
    cooldown shorter in proportion. None: 10 % of the steps done where something ends the run early,
    and none otherwise, for trainers with a schedule of their own.
    """

    def __init__(
        self,
        settings: ControlSettings,
        *,
        steps: int,
        rule: StopRule = "equilibrium",
        cooldown_steps: int | None = None,
        max_sec: float | None = None,
        max_tokens: int | None = None,
        context_free_bpt: float | None = None,
    ) -> None:
        _check(rule, cooldown_steps, max_sec, max_tokens)
        self.monitor = Monitor(settings, context_free_bpt=context_free_bpt)
        self.reason = ""
        """Why the run ends early; empty if it does not."""
        self.detail = ""
        """The same in a sentence."""
        self.end_step = steps
        self.cooldown_from = max(steps - (cooldown_steps or 0), 0)
        """The first step of the cooldown is the one after this."""
        constant = max(self.cooldown_from, 1)
        self._share = DEFAULT_COOLDOWN if cooldown_steps is None else cooldown_steps / constant
        self._rule = rule
        self._max_sec = math.inf if max_sec is None else max_sec
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._settings = settings
        self._records: list[StepRecord] = []

    @property
    def judgment(self) -> Judgment | None:
        """The one in force."""
        return self.monitor.judgments[-1] if self.monitor.judgments else None

    def observe(self, record: StepRecord) -> Judgment | None:
        """Take in the next record of the run; the judgment in force after it."""
        self._records.append(record)
        return self.monitor.observe(record)

    def why(self) -> tuple[str, str]:
        """Why the run should end after the last record, and a sentence on it; empty if it should
        not.

        Limits count the cooldown in: it ends before they are passed.
        """
        last, judgments = self._records[-1], self.monitor.judgments
        if self.reason or last.step >= self.cooldown_from:
            return "", ""
        # Up to the end of the next window and the cooldown after it.
        ahead = (1.0 + self._settings.control_interval / last.step) * (1.0 + self._share)
        if last.elapsed_sec * ahead > self._max_sec:
            return "time limit", f"{self._max_sec / 3600.0:g} hours, cooldown included"
        if last.tokens_seen * ahead > self._max_tokens:
            return "token limit", f"{self._max_tokens:,} tokens, cooldown included"
        if self._rule == "guide" and guide_rule(self._records, self._settings):
            return "guide rule", "lambda still, S within 5 % of S*, loss at rest, over 100 steps"
        if self._rule != "equilibrium" or not judgments:
            return "", ""
        newest = judgments[-1]
        if newest.may_stop:
            reason = newest.verdict if newest.verdict == "equilibrium" else "plateau"
            return reason, newest.reason
        if [j.verdict for j in judgments[-DIVERGED_LOOKS:]] == ["diverged"] * DIVERGED_LOOKS:
            return "diverged", newest.reason
        return "", ""

    def begin(self, step: int, reason: str, detail: str) -> None:
        """End the run: the cooldown begins now, or, for a run that came apart, there is none."""
        self.reason, self.detail = reason, detail
        self.cooldown_from = step
        cooldown = 0 if reason == "diverged" else math.ceil(self._share * step)
        self.end_step = min(step + cooldown, self.end_step)

    def cools(self, step: int) -> bool:
        """Whether the step that ended as number `step` was one of the cooldown."""
        return step > self.cooldown_from

    def rate_factor(self, steps_done: int) -> float:
        """Of the next step's learning rate: 1, then falling by equal steps to 1/n in the last."""
        if steps_done < self.cooldown_from or self.end_step <= self.cooldown_from:
            return 1.0
        left = self.end_step - steps_done
        return max(left, 0) / (self.end_step - self.cooldown_from)


def _check(
    rule: str, cooldown_steps: int | None, max_sec: float | None, max_tokens: int | None
) -> None:
    if rule not in get_args(StopRule):
        raise ConfigError(f"stop must be {', '.join(get_args(StopRule))}, got {rule!r}")
    if cooldown_steps is not None and cooldown_steps < 0:
        raise ConfigError(f"cooldown_steps must be 0 or more, got {cooldown_steps}")
    for name, limit in (("max_sec", max_sec), ("max_tokens", max_tokens)):
        if limit is not None and not limit > 0:
            raise ConfigError(f"{name} must be positive, got {limit}; None sets no limit")
