"""Checks of lambda: does it move, does it arrive, does it swing. Each looks for one row of the
guide's tables, or for a fault that the guide does not know: what it found, or None."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from scu.control import S_FLOOR
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
    shrink_of,
    span,
    swings,
)
from scu.trace import StepRecord

AT_ONCE_STEPS = 50
"""Lambda that is at a bound so soon after the warmup went there at once."""
LONG_STUCK = 50
"""Steps at a bound that are no passing visit."""
LAMBDA_SWING, S_SWING = math.log(1.3), 0.15
"""Moves of ln lambda and of ln(S odds) that count as swings. Healthy runs turn at most twice by so
much; gains far too high turn 30 times in 400 steps."""
HALF_CYCLES = 3
"""Two turns are an overshoot and its correction; three are an oscillation."""
SLOW_SWING, DAMPED = math.log(1.25), 0.7
"""A correction that goes as far to the other side, this far at least, is no correction. (Healthy
runs overshoot by up to 25 % and come back to within 10 %.)"""
GUIDE_KP = 0.55
"""The guide: "reduce Kp to 0.5-0.6"."""


def lambda_zero(case: Case) -> Finding | None:
    records = case.run.records
    if len(records) < 2 or any(r.lam != 0.0 for r in records):
        return None
    return Finding(
        "lambda-zero",
        "wrong",
        "Lambda is 0 in every window",
        f"lambda = 0 in all {len(records)} windows, steps {records[0].step} to {records[-1].step}",
        "lambda_min and lambda_max are both 0, so the controller cannot move lambda",
        "--set scu.lambda_min=0.0001 --set scu.lambda_max=2.0 --set scu.lambda_init=1.0",
        "troubleshooting",
    )


def open_loop(case: Case) -> Finding | None:
    settings = case.run.settings
    if case.run.config is None or settings.kp > 0.0 or settings.ki > 0.0:
        return None
    return Finding(
        "open-loop",
        "remark",
        "The loop is open: nothing holds S at S*",
        f"lambda = {case.run.records[-1].lam:.4g} up to step {case.run.records[-1].step}",
        "kp and ki are both 0, so that lambda stays at lambda_init",
        "if that is not meant: --set scu.kp=0.8 --set scu.ki=0.15",
        "ours",
    )


def no_authority(case: Case) -> Finding | None:
    if not case.recent or case.recent[-1].param_bpt <= 0.0:
        return None
    if not (seen := _cut_wire(case) or _weak_pull(case) or _no_answer(case)):
        return None
    if case.setting("scu.actuator") == "none":
        cause = "scu.actuator is none: lambda is computed and does not reach the weights"
        change = "--set scu.actuator=prox"
    elif case.pull_per_window:
        sigma, wanted = case.setting("scu.prior_sigma"), case.pull_per_window
        cause = "the pull lambda / (sigma^2 N) times the learning rate is too weak to be felt"
        change = "raise training.learning_rate, or a narrower scu.prior_sigma"
        if sigma:
            change = f"--set scu.prior_sigma={fraction(sigma * math.sqrt(min(1.0, wanted)))}"
            change += ", or a higher training.learning_rate"
    else:
        cause = "lambda is computed, but its pull does not reach the adapter's weights"
        change = "--set scu.actuator=prox; in a loop of your own, check that the optimizer which "
        change += "steps is the one that is hooked"
    symptom = "Lambda is disconnected: it moves and S does not answer"
    return Finding("no-authority", "wrong", symptom, seen, cause, change, "ours")


def _cut_wire(case: Case) -> str:
    rates = {r.shrink_rate for r in case.recent}
    if rates != {0.0} or case.peak_rate < NO_RATE:
        return ""
    first, last = case.free[0], case.recent[-1]
    low, high = min(r.lam for r in case.finite), max(r.lam for r in case.finite)
    return (
        f"lambda went through {low:.3g} to {high:.3g}, and its pull removed nothing of ParamBPT in "
        f"any step up to {last.step} (shrink rate 0); S went from {percent(first.s)} at step "
        f"{first.step} to {percent(last.s)}"
    )


def _weak_pull(case: Case) -> str:
    pull, last = case.pull_per_window, case.recent[-1]
    if pull is None or not 0.0 < pull < NO_PULL or case.mean_error < NEAR:
        return ""
    if last.lam < 0.5 * case.run.settings.lambda_max:
        return ""  # lambda is still on its way up
    steps = max(RECENT_STEPS, span(case.recent))
    return (
        f"lambda is {last.lam:.3g}, and its pull removes {percent(pull)} of ParamBPT in {steps} "
        f"steps; S = {percent(case.mean_s)}, S* = {percent(case.target)}"
    )


def _no_answer(case: Case) -> str:
    """Without shrink rates: S kept rising by half while lambda stood at its highest."""
    if shrink_of(case.recent) is not None or case.mean_error < FAR:
        return ""
    above = [r for r in case.free if case.error(r) > NEAR]
    low, high = min(r.lam for r in case.finite), max(r.lam for r in case.finite)
    top = [r for r in above if r.lam > 0.9 * high]
    if high < 2.0 * low or len(top) < MIN_WINDOWS or top[-1] is not case.free[-1]:
        return ""
    rise = case.error(top[-1]) - case.error(top[0])
    if span(top) < RECENT_STEPS or rise < math.log(1.5):
        return ""
    return (
        f"lambda rose from {low:.3g} to {high:.3g}, and S went on rising there: "
        f"{percent(top[0].s)} at step {top[0].step}, {percent(top[-1].s)} at step {top[-1].step}"
    )


def lambda_at_bound(case: Case) -> Finding | None:
    """Both of the guide's rows: stuck at a bound, and there at once."""
    stuck = _stuck(case)
    if not stuck:
        return None
    error, lam, s = fmean(case.errors(stuck)), stuck[0].lam, fmean(r.s for r in stuck)
    at_max = error > 0.0
    bound = "lambda_max" if at_max else "lambda_min"
    soon = max(AT_ONCE_STEPS, 2 * case.run.settings.control_interval)
    at_once = stuck[0].step <= case.warmup_steps + soon
    # ParamBPT goes about as 1 / lambda.
    needed = lam * math.exp(error)
    if at_max:
        change = f"--set scu.target_s={fraction(1.1 * s)} (raise S*), or, to hold S*, "
        change += f"--set scu.lambda_max={fraction(1.5 * needed)}"
        cause = "S* is too aggressive for these data: even the strongest pull leaves S above it"
    else:
        change = f"--set scu.target_s={fraction(0.9 * s)} (lower S*), or "
        change += f"--set scu.lambda_min={fraction(needed / 10.0)}"
        cause = "S* is above what the weakest pull allows: S stays below it"
    evidence = (
        f"lambda = {lam:.4g} = {bound} in all {len(stuck)} windows from step {stuck[0].step} to "
        f"{stuck[-1].step}; S = {percent(s)}, S* = {percent(case.target)}"
    )
    if at_once:
        symptom = f"Lambda saturates immediately, at {bound}"
        return Finding(
            "lambda-saturates", "wrong", symptom, evidence, cause, change, "troubleshooting"
        )
    name, symptom = f"lambda-at-{bound[-3:]}", f"Lambda is stuck at {bound}"
    return Finding(name, "wrong", symptom, evidence, cause, change, "what to watch")


def _stuck(case: Case) -> list[StepRecord]:
    """The windows up to now in which lambda stood at a bound, S wanting it further out."""
    if not case.recent:
        return []
    lam, settings = case.recent[-1].lam, case.run.settings
    known = case.run.config is not None
    # Of a lone trace the bounds are not known, but only a bound (or the deadband) stops lambda.
    if known and not (lam >= 0.999 * settings.lambda_max or lam <= 1.001 * settings.lambda_min):
        return []
    stuck: list[StepRecord] = []
    for record in reversed(case.finite):
        if not record.held:  # a held window says nothing about bounds
            if record.lam != lam:
                break
            stuck.append(record)
    stuck.reverse()
    if len(stuck) < MIN_WINDOWS or span(stuck) < LONG_STUCK:
        return []
    if not known and all(r.lam == lam for r in case.finite):
        return []  # it may be an open loop
    error = fmean(case.errors(stuck[-MIN_WINDOWS:]))
    if abs(error) <= NEAR or (known and (error > 0.0) != (lam >= 0.999 * settings.lambda_max)):
        return []
    return stuck


def oscillates(case: Case) -> Finding | None:
    records = _since_arrival(case)
    errors, moves = case.errors(records), [math.log(max(r.lam, S_FLOOR)) for r in records]
    peaks = swings(errors, S_SWING)
    turns = swings(moves, LAMBDA_SWING)
    if not peaks or not turns:
        return None
    # Both: S alone swings with the noise of small batches.
    if min(len(peaks), len(turns)) < HALF_CYCLES:
        peaks = _undamped(errors, peaks)
    if len(peaks) < 2:
        return None
    steps = [records[i].step for i in peaks]
    period = 2.0 * (steps[-1] - steps[0]) / (len(peaks) - 1)
    lately = [abs(e) for e in case.errors(case.recent)]
    quiet = records[-1].step - records[max(peaks[-1], turns[-1])].step
    if quiet > max(2.0 * period, 0.5 * RECENT_STEPS) and max(lately, default=0.0) < SLOW_SWING:
        return None  # it did, and no longer does
    s_swing = median(abs(errors[a] - errors[b]) for a, b in pairwise(peaks))
    lam_swing = median(max(part) - min(part) for part in _parts(moves, peaks))
    evidence = (
        f"S turned {len(peaks)} times between steps {steps[0]} and {steps[-1]}, period "
        f"{period:.0f} steps; from peak to trough its odds change by a factor of "
        f"{math.exp(s_swing):.2g}, lambda by {math.exp(lam_swing):.2g}"
    )
    cause, change = _calmer(case, period, lam_swing / s_swing)
    symptom = "Lambda oscillates, and S with it"
    return Finding("oscillates", "wrong", symptom, evidence, cause, change, "when to adjust")


def _undamped(errors: Sequence[float], peaks: Sequence[int]) -> list[int]:
    """A slow swing shows before its third turn: S went from far above S* to as far below, or the
    other way round. The last peak may still be growing."""
    tail = range(peaks[-1], len(errors))
    up = errors[peaks[-1]] < 0.0
    last = max(tail, key=lambda i: errors[i] if up else -errors[i])
    for every in ([*peaks, last], list(peaks)):
        heights = [errors[i] for i in every]
        far = min(abs(height) for height in heights) > SLOW_SWING
        sides = all(a * b < 0.0 for a, b in pairwise(heights))
        damped = abs(heights[-1]) < DAMPED * max(abs(height) for height in heights)
        if len(every) > 1 and far and sides and not damped:
            return every
    return []


def _parts(values: Sequence[float], cuts: Sequence[int]) -> list[Sequence[float]]:
    return [values[a : b + 1] for a, b in pairwise(cuts)]


def _calmer(case: Case, period: float, gain: float) -> tuple[str, str]:
    """gain: lambda's swing over S's, which is the gain at which this loop just goes on swinging."""
    settings = case.run.settings
    if settings.law == "multiplicative":
        return SWINGING_LAW
    windows = period / settings.control_interval
    # Tyreus and Luyben: a third of the ultimate gain, an integral time of 2.2 periods.
    kp = min(GUIDE_KP, 0.7 * settings.kp or GUIDE_KP, max(0.1, gain / 3.2))
    ki = min(KI_PER_KP * kp, settings.ki or math.inf, kp / (2.2 * windows))
    if settings.kp > 0.8 or settings.ki <= 1.5 * KI_PER_KP * settings.kp:
        cause = (
            f"kp = {settings.kp:g}{case.assumed} is too high for how fast this run answers lambda"
        )
    else:
        cause = f"ki = {settings.ki:g} is too high for kp = {settings.kp:g}: the integral swings"
    return cause, f"--set scu.kp={fraction(kp)} --set scu.ki={fraction(ki)}"


def _since_arrival(case: Case) -> list[StepRecord]:
    """Free windows since S first came near S*: the climb is no oscillation."""
    near = (i for i, r in enumerate(case.free) if case.error(r) > -NEAR)
    return case.free[next(near, len(case.free)) :]


CHECKS = (
    lambda_zero,
    open_loop,
    no_authority,
    oscillates,
    lambda_at_bound,
)
