"""Checks of S and of the integral that should bring it to S*; see checks_lambda."""

import math
from collections.abc import Sequence
from statistics import fmean, median

from scu.control import S_FLOOR, STOP_TOLERANCE
from scu.diagnose.case import (
    FAR,
    KI_PER_KP,
    MIN_WINDOWS,
    NEAR,
    NO_PULL,
    NO_RATE,
    RECENT_STEPS,
    SWINGING_LAW,
    Case,
    Finding,
    fraction,
    percent,
    span,
    tau_of,
)
from scu.trace import StepRecord

STUCK_AT_ZERO = 0.01
"""S below this share of S* after the climb's first 50 steps: it never left 0."""
ABSURD_PASSES = 20.0
"""N beyond so many times the tokens that the whole run will see is a mistake in N."""
LOW_RATE = 1e-4
"""Of LoRA, whose usual rate is 2e-4; the guide's 2e-5 is one for whole models."""
OVERSHOOT_WRONG, OVERSHOOT_SEEN = 1.10, 1.25
"""S this far above S* long after it crossed; a peak worth a remark once it is over."""


def s_at_zero(case: Case) -> Finding | None:
    """Which of four: no rate, no gradient, N absurd, the prior too wide."""
    if not case.recent or case.mean_s > STUCK_AT_ZERO * case.target:
        return None
    last, rate = case.recent[-1], case.peak_rate
    # Without a count: the data cannot be much larger than what a whole run sees of them.
    seen = last.tokens_seen * max(1.0, (case.run.steps or last.step) / last.step)
    n, most = case.tokens_per_epoch, 3.0 * (case.tokens_counted or ABSURD_PASSES / 3.0 * seen)
    if rate < NO_RATE:
        cause = f"the learning rate is {rate:.2g}: the weights do not move"
        change = "--set training.learning_rate=2e-4"
    elif last.param_bpt == 0.0:
        cause = "the weights do not move, though there is a learning rate: no gradient arrives "
        cause += f"(its norm is {last.grad_norm})"
        change = "check that the adapter's weights require gradients, and that labels carry loss"
    elif n is not None and n > most:
        known = case.tokens_counted
        real = f"the data hold {known:,.0f}" if known else f"the whole run sees {seen:,.0f}"
        cause = f"tokens_per_epoch (N) is {n:,.0f}, but {real}; ParamBPT goes as 1 / N"
        change = "--set data.tokens_per_epoch=null (it is counted then)"
    else:
        cause, change = _too_small(case)
    evidence = (
        f"S = {percent(case.mean_s)} in {len(case.recent)} windows up to step {last.step}, S* = "
        f"{percent(case.target)}; ParamBPT {last.param_bpt:.3g}, learning rate {rate:.2g}, "
        f"{last.tokens_seen:,} tokens seen"
    )
    symptom = "S is stuck at 0 %"
    return Finding("s-at-zero", "wrong", symptom, evidence, cause, change, "troubleshooting")


def _too_small(case: Case) -> tuple[str, str]:
    last, sigma = case.recent[-1], case.setting("scu.prior_sigma")
    cause = "ParamBPT = sum((theta - theta0)^2) / (2 sigma^2 N ln 2) is far too small: "
    # Three times the odds of S* without lambda leave lambda its work.
    narrower = f"--set scu.prior_sigma={fraction(sigma * _narrower(case, last))}" if sigma else ""
    if case.tokens_counted and narrower:
        return f"{cause}prior_sigma = {sigma:g} is too wide for how far the weights go", narrower
    cause += "tokens_per_epoch (N) is missing or far too large, or prior_sigma is too wide"
    change = "leave data.tokens_per_epoch out, so that it is counted"
    return cause, f"{change}; if it was, {narrower}" if narrower else change


def _narrower(case: Case, last: StepRecord) -> float:
    """Factor on prior_sigma at which S without lambda would have three times the odds of S*."""
    return math.sqrt(math.exp(case.error(last)) / 3.0)


def target_above_reach(case: Case) -> Finding | None:
    if not case.recent or case.mean_error > -math.log(1.10) or not _pulls_nothing(case):
        return None
    last, sigma = case.recent[-1], case.setting("scu.prior_sigma")
    comes = case.steps_to_target <= case.steps_left
    pull = case.pull_per_window
    felt = "" if pull is None else f", whose pull removes {pull:.1g} of ParamBPT in that time"
    evidence = (
        f"S = {percent(last.s)} at step {last.step}, S* = {percent(case.target)}; lambda is down "
        f"to {last.lam:.3g}{felt}"
    )
    reachable = f"--set scu.target_s={fraction(0.7 * last.s)}"
    # Without lambda the odds of S go as 1 / sigma^2.
    if sigma:
        reachable += f", or --set scu.prior_sigma={fraction(sigma * _narrower(case, last))}"
    return Finding(
        "target-above-reach",
        "remark" if comes else "wrong",
        "The constraint does not bind: S stays below S* with no pull",
        evidence,
        "S* is above what these data buy in this run, so there is nothing for lambda to hold back",
        f"none yet: at this rate S arrives in {case.steps_to_target:.0f} steps"
        if comes
        else reachable,
        "ours",
    )


def _pulls_nothing(case: Case) -> bool:
    if case.pull_per_window is not None:
        return case.pull_per_window < NO_PULL
    ratios = [r.penalty_grad_ratio for r in case.recent if r.penalty_grad_ratio is not None]
    # At equilibrium the penalty's gradient is 5 to 20 % of the data's, noise included.
    return bool(ratios) and median(ratios) < 1e-3


def integral_zero(case: Case) -> Finding | None:
    records = case.trained
    if len(records) < MIN_WINDOWS or span(records) < RECENT_STEPS:
        return None
    if any(r.integral != 0.0 for r in records):
        return None
    held = [r for r in records if r.held]
    error, ki = fmean(case.errors(records[-MIN_WINDOWS:])), case.run.settings.ki
    evidence = (
        f"integral = 0 in all {len(records)} windows after the warmup, up to step "
        f"{records[-1].step}; S = {percent(records[-1].s)}, S* = {percent(case.target)}"
    )
    change = "--set scu.ki=0.15"
    if len(held) == len(records):
        reasons = ", ".join(sorted({r.held for r in held}))
        cause = f"every window since step {held[0].step} is held ({reasons}): nothing controls S"
        change = "let the loop act: a cooldown belongs at the end of a run"
        if case.run.steps:
            change = f"--set training.cooldown_steps={case.run.steps // 10}"
    elif abs(error) <= NEAR or (case.run.config is not None and ki > 0.0):
        return None  # it waits while S is on its way
    elif case.run.config is None and case.steps_to_target <= case.steps_left:
        return None
    else:
        cause = "ki = 0: the proportional part alone rests wherever kp * e happens to balance"
    symptom = "The integral is always 0: nothing brings S to S*"
    return Finding("integral-zero", "wrong", symptom, evidence, cause, change, "what to watch")


def far_from_target(case: Case) -> Finding | None:
    """The guide's two rows: S stays far from target; convergence is slow."""
    if span(case.free) < RECENT_STEPS or abs(case.mean_error) < FAR:
        return None
    late = case.recent[-(len(case.recent) // 2) :]
    s, steps = fmean(r.s for r in late), case.steps_to_target
    # Relative to S*, too: near S = 1 the odds change much where S hardly does.
    if abs(math.log(max(s, S_FLOOR) / case.target)) < FAR or not steps > case.steps_left:
        return None
    comes = "no closer in" if math.isinf(steps) else f"{steps:.0f} more steps needed after"
    evidence = (
        f"S = {percent(s)} on average over steps {late[0].step} to "
        f"{late[-1].step}, S* = {percent(case.target)}: {comes} {span(case.recent)} steps; lambda "
        f"{late[-1].lam:.3g}, kp {case.run.settings.kp:g}, ki {case.run.settings.ki:g}"
    )
    symptom = "Convergence is slow: S will not be at S* in time"
    why = _slow_because(case, late)
    if why is None:
        why = (
            f"the integral is too slow for this run, though its gains are usual{case.assumed}",
            (f"--set scu.kp=1.0 --set scu.ki={fraction(2.0 * case.run.settings.ki)}"),
        )
        if math.isinf(steps):
            symptom = "S stays far from its target"
            return Finding("s-far-from-target", "wrong", symptom, evidence, *why, "what to watch")
    return Finding("slow-convergence", "wrong", symptom, evidence, *why, "when to adjust")


def _slow_because(case: Case, late: Sequence[StepRecord]) -> tuple[str, str] | None:
    """Cause and change; None where neither the gains nor the plant are slow."""
    settings, tau = case.run.settings, tau_of(late)
    if settings.law == "multiplicative":
        return SWINGING_LAW
    if settings.kp < 0.8 or settings.ki < 0.1:
        cause = f"the gains are too low: kp = {settings.kp:g}, ki = {settings.ki:g}{case.assumed}"
        return cause, f"--set scu.kp=0.9 --set scu.ki={max(settings.ki, 0.15):g}"
    sigma, wanted = case.setting("scu.prior_sigma"), (case.run.steps or case.free[-1].step) / 8.0
    if tau <= wanted:  # the run has the 8 time constants that a settling takes
        return None
    cause = f"the plant is slow: its time constant is {tau:.0f} steps, and no gain makes it faster"
    factor = min(10.0, tau / wanted)
    change = f"--set training.steps={8.0 * tau:.0f}" if math.isfinite(tau) else "more steps"
    if case.peak_rate < LOW_RATE:
        faster = fraction(case.peak_rate * factor)
        change = f"--set training.learning_rate={faster}, or about {change}"
    elif sigma:  # the same S is then a smaller distance and a stronger pull
        change = f"--set scu.prior_sigma={fraction(sigma / min(3.0, factor))}, or about {change}"
    return cause, change


def overshoot(case: Case) -> Finding | None:
    windows = case.steered
    s = [r.s / case.target for r in windows]
    crossed = next((i for i, ratio in enumerate(s) if ratio > 1.0), None)
    if crossed is None or len(s) < crossed + MIN_WINDOWS:
        return None
    smooth = [fmean(s[i - 1 : i + 2]) for i in range(max(1, crossed), len(s) - 1)]
    peak, at = max((ratio, i) for i, ratio in enumerate(smooth))
    first, top, last = windows[crossed], windows[max(1, crossed) + at], windows[-1]
    if peak < OVERSHOOT_SEEN:
        return None
    near = (1.0 + STOP_TOLERANCE) * case.target
    back = next((r for r in windows if r.step > top.step and r.s < near), None)
    lasts = back is None and fmean(s[-MIN_WINDOWS:]) > OVERSHOOT_WRONG
    lasts = lasts and last.step - first.step >= RECENT_STEPS
    lasts = lasts and case.steps_to_target > case.steps_left
    if back is None and not lasts:
        return None  # still going on, and not long enough to be judged
    evidence = (
        f"S crossed S* = {percent(case.target)} at step {first.step} and peaked at "
        f"{percent(top.s)} at step {top.step}; "
    )
    if back is not None:
        cause, change = _overshoots_less(case)
        evidence += f"back at step {back.step}"
        symptom = "S overshot S* on its way, and came back"
        return Finding("overshoot", "remark", symptom, evidence, cause, change, "when to adjust")
    evidence += f"it is {percent(last.s)} at step {last.step}, lambda {last.lam:.3g}"
    cause, change = _overshoots_less(case)
    symptom = "S overshoots S* and stays above it"
    return Finding("overshoot", "wrong", symptom, evidence, cause, change, "when to adjust")


def _overshoots_less(case: Case) -> tuple[str, str]:
    settings = case.run.settings
    if settings.law == "multiplicative":
        return SWINGING_LAW
    kp, ki = max(0.8, settings.kp), settings.ki
    backwards = 'the guide\'s "increase Ki" is backwards: the integral is what overshoots'
    if ki > 1.2 * KI_PER_KP * settings.kp:
        cause = f"ki = {ki:g} is high for kp = {settings.kp:g}: the integral leads, the "
        cause += f"proportional part comes too late{case.assumed}"
        calmer = min(ki if kp > settings.kp else 0.5 * ki, KI_PER_KP * kp)
        return cause, f"--set scu.kp={kp:g} --set scu.ki={fraction(calmer)} ({backwards})"
    if settings.kp < 0.5:
        cause = f"kp = {settings.kp:g}{case.assumed}: lambda answers the climb too weakly"
        return cause, f"--set scu.kp=0.8 --set scu.ki={fraction(KI_PER_KP * 0.8)} ({backwards})"
    # Where lambda ended is where it should have begun.
    cause = "S rose faster than lambda could follow from where it stood"
    begin = case.free[-1].lam if case.free else settings.lambda_init
    change = f"--set scu.lambda_init={fraction(begin)} --set scu.ki={fraction(0.5 * ki)}"
    return cause, f"{change} ({backwards})"


CHECKS = (
    s_at_zero,
    target_above_reach,
    integral_zero,
    overshoot,
    far_from_target,
)
