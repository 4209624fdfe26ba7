"""A run as it goes, from its StepRecords alone: the verdict in force, the findings, its end.

Whoever shows a run shows this. Judging and diagnosing must not be able to end a training: what
they raise is kept as text, to be shown in their place.
"""

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scu.control import ControlSettings
from scu.trace import StepRecord

if TYPE_CHECKING:
    from scu.config import RunConfig
    from scu.diagnose import Finding
    from scu.monitor import Judgment
    from scu.run_view import RunView


def beginning(
    folder: Path,
    settings: ControlSettings,
    config: "RunConfig",
    *,
    context_free_bpt: float | None = None,
) -> "RunView":
    """A run that is about to start, and has nothing in its folder yet."""
    from scu.run_view import RunView

    return RunView(
        folder=folder,
        name=folder.name,
        records=(),
        settings=settings,
        config=config,
        start={"context_free_bpt": context_free_bpt},
        metadata=None,
        notes=(),
    )


class Course:
    def __init__(self, run: "RunView") -> None:
        """Of run everything counts but its records, which add() brings."""
        from scu.monitor import Monitor

        self.run = run
        self.records: list[StepRecord] = []
        """Only ever grows: it is drawn from another thread too."""
        self.evaluated: StepRecord | None = None
        """The last record with a validation."""
        self.judgment: Judgment | None = None
        self.findings: tuple[Finding, ...] | None = None
        """Of the judgment in force, the wrong ones first; None before there is one."""
        self.trouble = ""
        """Why there is no judgment, or no diagnosis of it."""
        self._monitor = Monitor(run.settings, context_free_bpt=run.context_free_bpt)
        self._cooldown: tuple[tuple[int, float], ...] = ()
        """Two steps of the cooldown, and their learning rates."""
        self._diagnosed: Judgment | None = None

    def add(self, record: StepRecord) -> None:
        before = self.last
        self.records.append(record)
        if record.eval_bpt is not None:
            self.evaluated = record
        if record.held == "cooldown":
            if before is not None and not self._cooldown:  # its first step has the full rate still
                self._cooldown = ((before.step + 1, before.learning_rate),)
            self._cooldown = (*self._cooldown[-1:], (record.step, record.learning_rate))
        self._attempt("judging", lambda: self._judge(record))

    def diagnose(self) -> None:
        """Bring the findings up to the judgment in force: one diagnosis for each, at most."""
        if self.judgment is not None and self.judgment is not self._diagnosed:
            self._diagnosed = self.judgment
            self._attempt("the diagnosis", self._find)

    @property
    def last(self) -> StepRecord | None:
        return self.records[-1] if self.records else None

    @property
    def verdict(self) -> str:
        """Of the judgment in force, or as the trace has it; empty before the first."""
        if self.judgment is not None:
            return self.judgment.verdict
        return self.last.verdict if self.last is not None else ""

    @property
    def end(self) -> int | None:
        """The last step, as far as is known: in the cooldown the rate tells, before it the plan.

        The rate of the last step is one of its own decrements: it would be 0 in the step after.
        """
        planned = self.run.steps
        if len(self._cooldown) < 2:
            return planned
        (earlier, from_rate), (later, rate) = self._cooldown
        if not rate < from_rate:
            return planned
        end = later + max(round(rate * (later - earlier) / (from_rate - rate)) - 1, 0)
        # A planned cooldown may begin within a window, which makes its first rates uneven.
        return planned if planned is not None and end >= planned - 1 else end

    @property
    def state(self) -> str:
        """What the controller does, in words."""
        held = self.last.held if self.last is not None else ""
        if self._cooldown:
            when = "ended" if self.last is not None and self.last.step == self.end else "ends"
            end = f"step {self.end}" if self.end is not None else "learning rate 0"
            return f"cooldown: lambda held, {when} at {end}"
        if held == "pulse":
            return "pulse: lambda is moved, to see S answer"
        return f"held: {held}" if held else "controlling"

    @property
    def verdict_line(self) -> str:
        rule = self.run.config.scu.stop if self.run.config is not None else "equilibrium"
        by_verdict = "" if rule == "equilibrium" else f"   (stop: {rule})"
        at = f", at step {self.judgment.step}" if self.judgment is not None else ""
        return (self.verdict or "none yet") + at + by_verdict

    @property
    def plant(self) -> str:
        """Its time constant and gain, as judged; before that what one step's pull tells."""
        known = self.judgment.statistics if self.judgment is not None else {}
        tau, gain = known.get("tau_steps"), known.get("gain")
        if tau is None and self.last is not None and self.last.shrink_rate is not None:
            if self.last.shrink_rate == 0.0:
                return "no pull arrives at the weights"
            tau = 1.0 / self.last.shrink_rate
        if tau is None:
            return "-"
        source = "this run" if "gain_low" in known else "assumed"
        if "pulse_gain" in known:
            gain, source = known["pulse_gain"], "from a pulse"
        answer = "" if gain is None else f", gain {gain:.3g} ({source})"
        return f"time constant {tau:.3g} steps from the pull{answer}"

    def reason(self, *, width: int) -> tuple[str, str]:
        """Of the verdict, in two lines; with it, what is missing for a stop."""
        lines = ["not judged before the first full window"]
        if self.judgment is not None:
            lines = textwrap.wrap(
                self.judgment.reason, width, max_lines=2, placeholder=" ...", tabsize=1
            )
        first, second, *_ = *lines, "", ""
        return first, second

    @property
    def headlines(self) -> tuple[str, str]:
        """The findings in two lines: ! before what is wrong, - before a remark."""
        if self.trouble:
            return self.trouble.replace("\n", " "), ""
        if self.findings is None:
            return "", ""
        marks = [f"{'!' if f.severity == 'wrong' else '-'} {f.headline}" for f in self.findings]
        if len(marks) > 2:
            marks[1:] = [f"and {len(marks) - 1} more findings: scu diagnose"]
        first, second, *_ = *(marks or ["no findings"]), "", ""
        return first, second

    def _judge(self, record: StepRecord) -> None:
        self.judgment = self._monitor.observe(record)

    def _find(self) -> None:
        from scu.diagnose import findings

        run = replace(self.run, records=tuple(self.records))
        found = findings(run, self._monitor.judgments)
        self.findings = tuple(sorted(found, key=lambda finding: finding.severity != "wrong"))

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is, the training goes on and the text is shown
            self.trouble = f"{what} failed: {type(error).__name__}: {error}"
        else:
            if self.trouble.startswith(what):
                self.trouble = ""
