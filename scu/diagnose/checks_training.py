"""Checks of the training around the loop: loss, gradients, schedule; see checks_lambda."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from scu.diagnose.case import (
    FULL_RATE,
    MIN_WINDOWS,
    RECENT_STEPS,
    Case,
    Finding,
    fraction,
    percent,
    shrink_of,
    span,
)
from scu.trace import StepRecord

JUMP = 0.2
"""A window's loss this far (relative) above the last windows' is no noise: that is 3 % in runs of
512 tokens per step, less in larger ones."""
NOISE_FACTOR = 6.0
"""... nor is what lies so many standard deviations above them, where a run is noisier."""
RISE = 0.05
"""Of the training loss, from its best 10 windows to the last ones, beyond four standard errors. The
order of the data alone makes up to 3 % in healthy runs."""
SKIPPED = 0.05
"""Share of steps that may be skipped before it counts as wrong."""
CLIPPED = 5.0
"""Times max_grad_norm: Adam does not feel a constant factor of 2, a larger one hides a cause."""


def diverged(case: Case) -> Finding | None:
    records, start = case.run.records, case.finite[:1]
    reason = str((case.run.metadata or {}).get("stop_reason", ""))
    broken = [r for r in records if not math.isfinite(r.data_bpt) or r.held == "loss not finite"]
    jumps = _jumps(case.finite)
    if broken and broken[-1].step >= records[-1].step - RECENT_STEPS:
        evidence = f"the loss is not finite in {len(broken)} windows, last at step "
        evidence += f"{broken[-1].step}"
        severe = True
    elif jumps:
        top = max(jumps, key=lambda r: r.data_bpt)
        before = [r.data_bpt for r in case.finite if r.step < jumps[0].step]
        best, now = min(before), fmean(r.data_bpt for r in case.finite[-5:])
        evidence = (
            f"DataBPT jumped at step {jumps[0].step}, from {before[-1]:.3g} to "
            f"{jumps[0].data_bpt:.3g}, and was {top.data_bpt:.3g} at step {top.step}; it started "
            f"at {start[0].data_bpt:.3g}, its best before was {best:.3g}, now it is {now:.3g}"
        )
        lost_all = top.data_bpt >= start[0].data_bpt
        # In the warmup there was nothing yet to lose.
        lost_all = lost_all and (top.step > case.warmup_steps or now > 0.9 * best)
        often = len(jumps) > max(1.0, 0.05 * len(case.finite))
        # Still up, or back where it began.
        up = now > min((1.0 + JUMP / 2.0) * best, 0.95 * start[0].data_bpt)
        up = up and len(case.finite) >= MIN_WINDOWS
        severe = (lost_all and len(jumps) > 1) or often or up
    elif reason.startswith("diverged"):
        evidence, severe = f"the run ended itself at step {records[-1].step}: {reason}", True
    else:
        return None
    rate = case.peak_rate
    change = f"--set training.learning_rate={fraction(rate / (10.0 if severe else 3.0))}"
    if case.setting("training.max_grad_norm") == 0.0:
        change += " --set training.max_grad_norm=1.0"
    cause = f"the learning rate, {rate:.2g} at its peak, is too high"
    if case.setting("training.max_grad_norm") == 0.0:
        cause += ", and nothing clips the gradients"
    symptom = "The training diverged: the loss went far up"
    if not severe:
        return Finding(
            "loss-jumped",
            "remark",
            "The loss jumped and came back",
            evidence,
            "a step in a bad direction: a strange batch, or a learning rate near its limit",
            f"nothing, unless it comes again; then {change}",
            "ours",
        )
    return Finding("diverged", "wrong", symptom, evidence, cause, change, "ours")


def _jumps(records: Sequence[StepRecord]) -> list[StepRecord]:
    """Windows whose loss lies far above the windows before the jump began."""
    jumps: list[StepRecord] = []
    quiet: list[float] = []
    for record in records:
        if quiet:
            level = median(quiet[-MIN_WINDOWS:])
            limit = 1.5 * JUMP * level  # one or two windows do not tell how noisy a run is
            if len(quiet) > 2:
                limit = max(JUMP * level, NOISE_FACTOR * _noise(quiet[-MIN_WINDOWS:]))
            # In the first windows the loss falls so fast that it looks like noise: hence the cap.
            if record.data_bpt > level + min(limit, 2.0 * JUMP * level):
                jumps.append(record)
                continue  # the level stays what it was before
        quiet.append(record.data_bpt)
    return jumps


def _noise(values: Sequence[float]) -> float:
    """Standard deviation around a slow trend."""
    steps = [abs(b - a) for a, b in pairwise(values)]
    return 1.48 * median(steps) / math.sqrt(2.0)


def skipped(case: Case) -> Finding | None:
    records = case.run.records
    hit = [r for r in records if r.skipped_steps]
    if not hit:
        return None
    total, steps = sum(r.skipped_steps for r in hit), records[-1].step
    share = total / max(1, steps)
    return Finding(
        "skipped-steps",
        "wrong" if share > SKIPPED else "remark",
        "Steps were skipped: their gradients were not finite",
        f"{total} of {steps} steps ({percent(share)}), in {len(hit)} windows between steps "
        f"{hit[0].step} and {hit[-1].step}; lambda is held in each of them",
        "overflow: a learning rate that is too high, a damaged document, or a model in 16 bit",
        f"--set training.learning_rate={fraction(case.peak_rate / 3.0)}; if it stays, "
        "--set model.precision=fp32",
        "ours",
    )


def nothing_learned(case: Case) -> Finding | None:
    limit = case.run.context_free_bpt
    if limit is None or not case.recent or span(case.free) < RECENT_STEPS:
        return None
    data = fmean(r.data_bpt for r in case.recent)
    param = fmean(r.param_bpt for r in case.recent)
    if data + param < limit:
        return None
    return Finding(
        "nothing-learned",
        "wrong",
        "Nothing is learned: the data look like noise to the model",
        f"DataBPT {data:.3f} + ParamBPT {param:.3f} = {data + param:.3f} bits per token over steps "
        f"{case.recent[0].step} to {case.recent[-1].step}; a code that only knows how often each "
        f"token occurs needs {limit:.3f}",
        "the text is random, encrypted or garbled, or its tokenizer is not the model's",
        "look at the training data: data.train_data, the column that is read, the tokenizer",
        "ours",
    )


def loss_rising(case: Case) -> Finding | None:
    if len(case.free) < 3 * MIN_WINDOWS:
        return None
    blocks = [case.free[i : i + MIN_WINDOWS] for i in range(len(case.free) - MIN_WINDOWS + 1)]
    means = [fmean(r.data_bpt for r in block) for block in blocks]
    best = min(range(len(means)), key=lambda i: means[i])
    last, low = blocks[-1], blocks[best]
    error = _noise([r.data_bpt for r in case.free]) * math.sqrt(2.0 / MIN_WINDOWS)
    rise = means[-1] - means[best]
    if rise < max(RISE * means[best], 4.0 * error):
        return None
    evidence = (
        f"DataBPT was {means[best]:.3f} over steps {low[0].step} to {low[-1].step} and is "
        f"{means[-1]:.3f} over steps {last[0].step} to {last[-1].step}; ParamBPT went from "
        f"{low[-1].param_bpt:.3g} to {last[-1].param_bpt:.3g}, lambda from {low[-1].lam:.3g} to "
        f"{last[-1].lam:.3g}"
    )
    symptom = "The loss increases after its initial drop"
    if last[-1].param_bpt < low[-1].param_bpt:
        cause = "lambda takes back what the adapter had learned beyond S*: the price of holding S*"
        change = f"if the loss matters more: --set scu.target_s={fraction(low[-1].s)}"
        return Finding("loss-rising", "remark", symptom, evidence, cause, change, "what to watch")
    cause = f"the adapter grows and the loss with it: the learning rate {case.peak_rate:.2g} is "
    cause += "too high"
    change = f"--set training.learning_rate={fraction(case.peak_rate / 3.0)}"
    return Finding("loss-rising", "wrong", symptom, evidence, cause, change, "what to watch")


def rate_decays(case: Case) -> Finding | None:
    moved = [r for r in case.trained if r.learning_rate < FULL_RATE * case.peak_rate and not r.held]
    if len(moved) < MIN_WINDOWS:
        return None
    return Finding(
        "rate-decays",
        "remark",
        "S is controlled and judged while the learning rate falls",
        f"the rate is {percent(moved[-1].learning_rate / case.peak_rate)} of its peak at step "
        f"{moved[-1].step}, and lambda still moves in {len(moved)} windows below "
        f"{percent(FULL_RATE)}",
        "the plant slows down with the rate: S that stands still then is no equilibrium",
        "a constant rate with a cooldown (warmup_stable_decay), and lambda held in the cooldown",
        "ours",
    )


def clipped(case: Case) -> Finding | None:
    limit = case.setting("training.max_grad_norm")
    norms = [r.grad_norm for r in case.recent if r.grad_norm is not None]
    if not limit or len(norms) < MIN_WINDOWS or min(norms) <= limit:
        return None
    if median(norms) < CLIPPED * limit:
        return None
    return Finding(
        "always-clipped",
        "remark",
        "Every gradient is clipped, by a large factor",
        f"the gradient norm is {median(norms):.3g} (smallest {min(norms):.3g}) over steps "
        f"{case.recent[0].step} to {case.recent[-1].step}, max_grad_norm is {limit:g}",
        "max_grad_norm is far below what this model's gradients are, so that the largest batches "
        "count no more than the smallest",
        f"--set training.max_grad_norm={fraction(2.0 * median(norms))}",
        "ours",
    )


def penalty_extreme(case: Case) -> Finding | None:
    ratios = [r.penalty_grad_ratio for r in case.recent if r.penalty_grad_ratio is not None]
    rate = shrink_of(case.recent)
    if len(ratios) < MIN_WINDOWS or not rate:
        return None
    steps = f"steps {case.recent[0].step} to {case.recent[-1].step}"
    if rate > 0.5:
        evidence = f"lambda's pull removes {percent(rate)} of ParamBPT per step, {steps}"
        cause = "the pull times the learning rate is so strong that the adapter forgets in a step"
    elif median(ratios) > 1.0:
        evidence = f"the penalty's gradient is {median(ratios):.3g} times the data's, {steps}"
        cause = "lambda / (sigma^2 N) is so large that the prior decides, not the data"
    else:
        return None
    sigma = case.setting("scu.prior_sigma")
    change = f"--set scu.prior_sigma={fraction(3.0 * sigma)}" if sigma else "a wider prior_sigma"
    return Finding(
        "penalty-dominates",
        "remark",
        "The penalty outweighs the data",
        evidence,
        cause,
        f"{change}, or a lower training.learning_rate",
        "ours",
    )


CHECKS = (
    diverged,
    skipped,
    nothing_learned,
    loss_rising,
    rate_decays,
    clipped,
    penalty_extreme,
)
