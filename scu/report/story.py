"""What a run's numbers say, in words: the verdict, what happened, the key figures.

Plain text, from the trace and what lies beside it; nothing is said that the run did not measure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from scu.control import STOP_TOLERANCE
from scu.monitor import Judgment
from scu.numerals import extent, is_real, number, percent
from scu.report.spans import evaluated_bpt, last_step, planned_steps, verdict_spans
from scu.run_view import RunView

NOT_JUDGED = "not judged"
MEANING = {
    "equilibrium": "S held its set point and nothing moved any more",
    "saturated": "lambda could do no more, and S was still off its set point",
    "no_authority": "lambda could not move S",
    "oscillating": "S swung around its set point",
    "transient": "the run was still moving",
    "diverged": "the loss was not finite, far above its best, or no better than before",
    NOT_JUDGED: "no window of the run was judged",
}
"""Every verdict, and what it says of a run."""


def verdict(run: RunView, judgments: Sequence[Judgment]) -> str:
    """The last verdict on the run: its metadata's, else its trace's, else a replayed one."""
    said = (run.metadata or {}).get("verdict")
    traced = [r.verdict for r in run.records if r.verdict]
    replayed = [j.verdict for j in judgments]
    known = [str(said)] if said and said != NOT_JUDGED else []
    return (known or traced[-1:] or replayed[-1:] or [NOT_JUDGED])[0]


def ending(run: RunView) -> str:
    """Why training ended and where, as a sentence."""
    steps = planned_steps(run)
    planned = f" of {steps:,}" if steps is not None else ""
    if run.metadata is None:
        last = f"Not finished: the last record is of step {last_step(run):,}{planned}."
        return last if run.records else "Not finished: no control window has been recorded yet."
    reason = str(run.metadata.get("stop_reason") or "no reason recorded").rstrip(".")
    detail = str(run.metadata.get("stop_detail") or "").rstrip(".")
    more = f" ({detail})" if detail else ""
    return f"Ended after step {last_step(run):,}{planned}: {reason}{more}."


def story(run: RunView, judgments: Sequence[Judgment]) -> list[str]:
    """What happened, in three paragraphs: the control, the bits, the judgments and the end."""
    control = _ratio(run), _strength(run), _troubles(run)
    end = _judged(run, judgments), _cooldown(run), ending(run)
    paragraphs = (control, (_bits(run), _validation(run)), end)
    return [text for parts in paragraphs if (text := " ".join(filter(None, parts)))]


def _ratio(run: RunView) -> str:
    measured = [r for r in run.records if is_real(r.s)]
    if not measured:
        return "S was never measured."
    target, first, last = run.settings.target_s, measured[0], measured[-1]
    at_start = (run.metadata or {}).get("s_at_start")
    start = f"S started at {percent(at_start)}" if is_real(at_start) else ""
    start = start or f"S was {percent(first.s)} in its first window (step {first.step:,})"
    inside = [abs(r.s - target) <= STOP_TOLERANCE * target for r in measured]
    goal = f"{STOP_TOLERANCE:.0%} of its set point, {percent(target)}"
    if not any(inside):
        nearest = min(measured, key=lambda r: abs(r.s - target))
        return (
            f"{start} and never came within {goal}; the nearest was {percent(nearest.s)} at step "
            f"{nearest.step:,}, the last {percent(last.s)}."
        )
    at = inside.index(True)
    after = inside[at:]
    return (
        f"{start}, came within {goal}, at step {measured[at].step:,} and was within it in "
        f"{sum(after):,} of the {len(after):,} windows from there on. The last was "
        f"{percent(last.s)}."
    )


def _strength(run: RunView) -> str:
    settings = run.settings
    lams = [r.lam for r in run.records if is_real(r.lam)]
    if not lams:
        return ""
    low, high = extent([settings.lambda_init, *lams])
    if low == high:
        return f"Lambda stayed at {number(low)}."
    text = f"Lambda started at {number(settings.lambda_init)}, moved between {number(low)} and "
    text += f"{number(high)} and was {number(lams[-1])} in the last window."
    for bound, name in ((settings.lambda_min, "lower"), (settings.lambda_max, "upper")):
        if count := sum(lam == bound for lam in lams):
            text += f" It stood at its {name} bound, {number(bound)}, in {count:,} of "
            text += f"{len(lams):,} windows."
    return text


def _bits(run: RunView) -> str:
    known = [r for r in run.records if is_real(r.data_bpt)]
    if len(known) < 2:
        return ""
    k = _few(len(known))
    before, after = _mean(r.data_bpt for r in known[:k]), _mean(r.data_bpt for r in known[-k:])
    windows = f"of the first and the last {k} windows" if k > 1 else "of the first and last window"
    text = f"DataBPT went from {number(before)} to {number(after)} bits/token (means {windows})."
    worst = max(known, key=lambda r: r.data_bpt)
    if worst.data_bpt > 1.1 * known[0].data_bpt:
        text += f" Its highest window was {number(worst.data_bpt)}, at step {worst.step:,}."
    return text


def _validation(run: RunView) -> str:
    known = [r for r in run.records if is_real(r.eval_bpt)]
    if not known:
        return ""
    first, last, best = known[0], known[-1], min(known, key=evaluated_bpt)
    if first is last:
        return f"Validation text cost {number(first.eval_bpt)} bits/token at step {first.step:,}."
    return (
        f"Validation text cost {number(first.eval_bpt)} bits/token at step {first.step:,} and "
        f"{number(last.eval_bpt)} at step {last.step:,}; the lowest was {number(best.eval_bpt)} "
        f"at step {best.step:,}."
    )


def _troubles(run: RunView) -> str:
    held = Counter(r.held for r in run.records if r.held and r.held != "cooldown")
    text = ""
    if held:
        reasons = ", ".join(f"{why} {count:,}" for why, count in held.items())
        text = f"Before the cooldown the controller paused in {held.total():,} windows ({reasons})."
    if skipped := sum(r.skipped_steps for r in run.records if is_real(r.skipped_steps)):
        steps = "1 step was" if skipped == 1 else f"{skipped:,} steps were"
        text += f" {steps} skipped, because a gradient was not finite."
    pulse = (run.metadata or {}).get("pulse")
    if isinstance(pulse, Mapping) and isinstance(pulse.get("certified"), bool):
        did = "showed" if pulse["certified"] else "did not show"
        text += f" The pulse test {did} that S follows lambda."
    return text.strip()


def _judged(run: RunView, judgments: Sequence[Judgment]) -> str:
    spans = verdict_spans(run, judgments)
    if not spans:
        return ""
    traced = any(r.verdict for r in run.records)
    replayed = "T" if traced else "In a replay of the trace t"
    if len(spans) <= 4:
        course = ", ".join(f"{words(s.what)} from step {s.start:,}" for s in spans)
        text = f"{replayed}he verdict was {course}."
    else:
        steps: Counter[str] = Counter()
        for span in spans:
            steps[span.what] += span.end - span.start
        course = ", ".join(f"{words(what)} for {count:,}" for what, count in steps.items())
        text = f"{replayed}he verdict changed {len(spans) - 1:,} times: {course} steps in all."
    if judgments:
        last = judgments[-1]
        text += f" Judged last at step {last.step:,}, {words(last.verdict)}: {last.reason}."
    return text


def _cooldown(run: RunView) -> str:
    cool = [r for r in run.records if r.held == "cooldown"]
    if not cool:
        return ""
    at = run.records.index(cool[0])
    start = run.records[at - 1].step if at else 0
    text = f"The cooldown began after step {start:,}, with lambda held at {number(cool[0].lam)}"
    text += f"; the learning rate fell to {number(cool[-1].learning_rate)}."
    k = min(_few(len(cool)), at)
    if not k:
        return text
    old, new = run.records[at - k : at], cool[-k:]
    data = _mean(r.data_bpt for r in old), _mean(r.data_bpt for r in new)
    ratio = _mean(r.s for r in old), _mean(r.s for r in new)
    if not all(map(is_real, (*data, *ratio))):
        return text
    windows = f"the {k} windows before it and the last {k} in it" if k > 1 else "one window each"
    return (
        f"{text} From before it to its end DataBPT went from {number(data[0])} to "
        f"{number(data[1])} and S from {percent(ratio[0])} to {percent(ratio[1])} "
        f"(means of {windows})."
    )


def words(name: str) -> str:
    """no_authority as one reads it."""
    return name.replace("_", " ")


def _few(windows: int) -> int:
    """How many windows a mean at an end takes: they are noisy, and the ends must not meet."""
    return max(1, min(5, windows // 4))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
