"""What is said around a training: the controller before it, why and where it ended after it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scu.control import STOP_TOLERANCE, ControlSettings
from scu.numerals import duration
from scu.trace import StepRecord
from scu_api.marks import number, percent


def controller_line(settings: ControlSettings) -> str:
    deadband = f"deadband {settings.deadband:.3%}"
    if settings.effective_deadband < settings.deadband:
        deadband = (
            f"deadband {settings.effective_deadband:.3%} (narrowed from {settings.deadband:.3%}: "
            f"half of the {STOP_TOLERANCE:.0%} of S* that count as on target)"
        )
    return (
        f"controller: S* = {percent(settings.target_s)}, kp {settings.kp:g} and ki {settings.ki:g} "
        f"per window of {settings.control_interval} steps, {deadband}, "
        f"lambda from {settings.lambda_init:g} within [{settings.lambda_min:g}, "
        f"{settings.lambda_max:g}]"
    )


def summary(
    metadata: Mapping[str, Any], records: Sequence[StepRecord], output: Path, *, budget: int
) -> Iterator[str]:
    """The end of a training, line by line; budget is the steps that were planned."""
    low, high = metadata["lambda_range"]
    s, target = metadata["final_s_ratio"], metadata["target_s"]
    off = "" if s is None else f" ({s / target - 1.0:+.1%})"
    yield ""
    yield from ending(metadata, budget=budget)
    yield f"S         {percent(s)}, S* = {percent(target)}{off}"
    yield f"lambda    {number(metadata['final_lambda'])}, was in [{number(low)}, {number(high)}]"
    if records:
        first, last = records[0].data_bpt, records[-1].data_bpt
        yield f"DataBPT   {number(first)} -> {number(last)} bits/token, in training"
    pulse = metadata.get("pulse") or {}
    if "certified" not in pulse and pulse.get("state", "not asked for") != "not asked for":
        yield f"pulse     {pulse['state']}: whether S follows lambda is not proven"
    if "certified" in pulse:
        answer = "S follows lambda" if pulse["certified"] else "whether S follows is not proven"
        gain, low, high = (number(pulse[name]) for name in ("gain", "low", "high"))
        yield f"pulse     gain {gain}, 90 % in [{low}, {high}]: {answer}"
    if best := metadata.get("best"):
        kept = f", kept in {best['checkpoint']}" if best.get("checkpoint") else ""
        bits = f"{number(best['eval_bpt'])} bits/token on validation data"
        yield f"best      {bits}, at step {best['step']}{kept}"
    yield f"adapter   {output}"


def ending(metadata: Mapping[str, Any], *, budget: int | None) -> Iterator[str]:
    """Why a run ended, what it was judged to be, and what of its budget that saved."""
    why, spent_sec = metadata.get("stop_reason", "unknown"), metadata.get("duration_sec")
    yield f"stopped   {why}" + (f", after {duration(spent_sec)}" if spent_sec is not None else "")
    if detail := metadata.get("stop_detail"):
        yield f"          {detail}"
    if verdict := metadata.get("verdict"):
        reason = metadata.get("verdict_reason")
        yield f"verdict   {verdict}" + (f": {reason}" if reason else "")
    steps = metadata.get("optimizer_steps")
    if steps is not None and budget is not None and steps < budget:
        ended_itself = why in ("equilibrium", "plateau", "guide rule")
        saved = f": {100 * (1 - steps / budget):.0f} % saved" if ended_itself else ""
        yield f"steps     stopped at step {steps} of {budget}{saved}"
