"""What is wrong with a run, why, and what to change: the scaling guide's tables "What to Watch
During Training", "When to Adjust" and "Troubleshooting", each row a check with measured evidence.

Where the guide is backwards, or its advice depends on something (a saturated lambda: on the bound),
the finding says what is right. Checks compute from the trace's records and are right without the
monitor's judgments, too.
"""

import time
from collections.abc import Mapping, Sequence

from scu.diagnose import checks_data, checks_lambda, checks_s, checks_training
from scu.diagnose.case import Case, Finding, Severity, Source
from scu.monitor import Judgment, judge
from scu.run_view import RunView

__all__ = ["Finding", "Severity", "Source", "findings"]

_LAMBDA_AT_BOUND = {"lambda-saturates", "lambda-at-max", "lambda-at-min"}
_OFF_TARGET = {"slow-convergence", "s-far-from-target", "overshoot"}
_EXPLAINS: Mapping[str, set[str]] = {
    "diverged": {"oscillates", "loss-rising", "overfitting", "overtraining", "penalty-dominates"}
    | _LAMBDA_AT_BOUND
    | _OFF_TARGET,
    "open-loop": {"integral-zero", "target-above-reach"} | _LAMBDA_AT_BOUND | _OFF_TARGET,
    "lambda-zero": {"no-authority", "integral-zero", "target-above-reach"} | _OFF_TARGET,
    "skipped-steps": {"integral-zero"},
    "s-at-zero": {"no-authority", "target-above-reach", "integral-zero", "n-differs"}
    | _LAMBDA_AT_BOUND
    | _OFF_TARGET,
    "no-authority": {"target-above-reach", "integral-zero", "penalty-dominates"}
    | _LAMBDA_AT_BOUND
    | _OFF_TARGET,
    "target-above-reach": {"integral-zero"} | _LAMBDA_AT_BOUND | _OFF_TARGET,
    "oscillates": {"loss-rising"} | _LAMBDA_AT_BOUND | _OFF_TARGET,
    "lambda-saturates": {"integral-zero", "penalty-dominates"} | _OFF_TARGET,
    "lambda-at-max": {"integral-zero", "penalty-dominates"} | _OFF_TARGET,
    "lambda-at-min": {"integral-zero"} | _OFF_TARGET,
    "integral-zero": _OFF_TARGET,
    "overshoot": {"slow-convergence", "s-far-from-target"},
    "loss-rising": {"integral-zero"} | _OFF_TARGET,
    "overtraining": {"overfitting", "loss-rising"},
    "overfitting": {"loss-rising"},
}
"""A cause, and what only follows from it. A remark explains nothing, but for an open loop."""

_RANK = (
    "lambda-zero open-loop diverged skipped-steps ended-without-metadata nothing-learned s-at-zero "
    "no-authority target-above-reach oscillates lambda-saturates lambda-at-max lambda-at-min "
    "loss-rising integral-zero overshoot slow-convergence s-far-from-target overtraining "
    "overfitting loss-jumped leaked-validation n-differs rate-decays always-clipped "
    "penalty-dominates"
).split()
"""Most important first: what makes the rest meaningless, then the loop, then the model."""


def findings(
    run: RunView, judgments: Sequence[Judgment] | None = None, *, now_sec: float | None = None
) -> list[Finding]:
    """What is found, most important first; a run that is going on is judged as it stands.

    judgments are the monitor's; None lets it judge. now_sec, since the epoch, is the present: a
    trace that has long not grown belongs to a run that is gone.
    """
    if judgments is None:
        judgments = judge(run.records, run.settings, context_free_bpt=run.context_free_bpt)
    if not run.records:
        return []
    case = Case(run, judgments, time.time() if now_sec is None else now_sec)
    checks = (
        *checks_lambda.CHECKS,
        *checks_s.CHECKS,
        *checks_training.CHECKS,
        *checks_data.CHECKS,
    )
    found = [finding for check in checks if (finding := check(case)) is not None]
    explained: set[str] = set()
    for finding in found:
        if finding.severity == "wrong" or finding.name == "open-loop":
            explained |= _EXPLAINS.get(finding.name, set())
    left = [finding for finding in found if finding.name not in explained]
    return sorted(left, key=lambda f: (f.severity != "wrong", _RANK.index(f.name)))
