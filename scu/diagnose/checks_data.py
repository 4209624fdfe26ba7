"""Checks of the validation, of the data and of how the run ended; see checks_lambda."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from scu.diagnose.case import (
    Case,
    Finding,
    fraction,
    percent,
)
from scu.trace import StepRecord

EVAL_RISE = 0.01
"""Of the validation bits above their best."""
N_DIFFERENCE = 0.10
"""The same as where a run announces it."""
DEAD_WINDOWS = 10.0
"""A trace that has not grown for so many usual windows (and three of its longest) is no longer
written."""
DEAD_SEC = 120.0
"""... but not before this: the start of an evaluation or of a save is in no window's duration."""


def ended_without_metadata(case: Case) -> Finding | None:
    """The guide's row on OOM: a trace cannot show it, only that the run is gone."""
    records = case.run.records
    if case.run.config is None or case.run.metadata is not None or len(records) < 3:
        return None
    if records[-1].step >= (case.run.steps or math.inf):
        return None  # all steps are made; the adapter is being saved
    try:
        age = case.now_sec - (case.run.folder / "trace.jsonl").stat().st_mtime
    except OSError:
        return None  # it has just been moved or removed
    times = [r.elapsed_sec for r in records]
    windows = [b - a for a, b in pairwise(times)]
    if age <= max(DEAD_SEC, DEAD_WINDOWS * median(windows), 3.0 * max(windows)):
        return None
    config = case.run.config
    batch, accumulated = config.training.batch_size, config.training.gradient_accumulation
    if batch > 1:
        change = f"--set training.batch_size={batch // 2} "
        change += f"--set training.gradient_accumulation={accumulated * 2}"
    elif not config.training.gradient_checkpointing:
        change = "--set training.gradient_checkpointing=true"
    else:
        change = f"--set training.block_size={config.training.block_size // 2}"
        change += "" if config.model.load_in_4bit else ", or --set model.load_in_4bit=true"
    return Finding(
        "ended-without-metadata",
        "wrong",
        "The run is gone: it left no metadata.json",
        f"the trace ends at step {records[-1].step} of {case.run.steps} and has not grown for "
        f"{age:.0f} s; a window takes {median(windows):.1f} s",
        "it was killed or failed. Out of memory if its last lines, or the system's log, say so "
        '("out of memory", "OOM", "Killed")',
        f"if so: {change}",
        "troubleshooting",
    )


def overtraining(case: Case) -> Finding | None:
    at = case.equilibrium_step
    if at is None:
        return None
    # The last evaluation before it, too: what rose earlier was not equilibrium's doing.
    evals = _evaluations(case)
    before = [r for r in evals if r.step < at]
    if not (seen := _eval_rise([*before[-1:], *evals[len(before) :]])):
        return None
    return Finding(
        "overtraining",
        "wrong",
        "Loss increases after equilibrium: the run went on too long",
        f"equilibrium was reached at step {at}; {seen}",
        "overtraining: S and lambda had settled, what was learned since is the training text",
        f"--set scu.stop=equilibrium, or --set training.steps={at}",
        "troubleshooting",
    )


def overfitting(case: Case) -> Finding | None:
    evals = _evaluations(case)
    if not (seen := _eval_rise(evals)):
        return None
    best = min(evals, key=lambda r: r.eval_bpt or math.inf)
    then = fmean(r.data_bpt for r in _around(case, best.step))
    now = fmean(r.data_bpt for r in case.finite[-5:])
    if now >= then:
        return None
    return Finding(
        "overfitting",
        "wrong",
        "Validation bits rise while training bits fall",
        f"{seen}; DataBPT in training went from {then:.3f} to {now:.3f} in that time",
        f"overfitting: at S* = {percent(case.target)} the adapter may hold the training text",
        f"--set scu.target_s={fraction(0.5 * min(case.target, best.s))} (lower S*), or more data",
        "ours",
    )


def _evaluations(case: Case) -> list[StepRecord]:
    return [r for r in case.finite if r.eval_bpt is not None and math.isfinite(r.eval_bpt)]


def _eval_rise(evals: Sequence[StepRecord]) -> str:
    """Both of the last two evaluations clearly above the best one; empty if they are not."""
    if len(evals) < 3:
        return ""
    bits = [r.eval_bpt or math.nan for r in evals]
    best = min(range(len(bits)), key=lambda i: bits[i])
    if best > len(bits) - 3 or min(bits[-2:]) < (1.0 + EVAL_RISE) * bits[best]:
        return ""
    return (
        f"validation bits per token rose from {bits[best]:.3f} at step {evals[best].step} to "
        f"{bits[-1]:.3f} at step {evals[-1].step}"
    )


def _around(case: Case, step: int) -> list[StepRecord]:
    return sorted(case.finite, key=lambda r: abs(r.step - step))[:5]


def leaked_validation(case: Case) -> Finding | None:
    for note in (case.run.metadata or {}).get("notes", ()):
        if "validation documents are in training" in str(note):
            return Finding(
                "leaked-validation",
                "wrong",
                "Validation documents are in the training data",
                str(note).removeprefix("WARNING: "),
                "the two data sets overlap: validation bits measure memory",
                "remove the duplicates, or let the split be made: leave data.val_data out",
                "ours",
            )
    return None


def n_differs(case: Case) -> Finding | None:
    n, counted = case.tokens_per_epoch, case.tokens_counted
    if not n or not counted or abs(n - counted) <= N_DIFFERENCE * counted:
        return None
    return Finding(
        "n-differs",
        "remark",
        "tokens_per_epoch is not what the data hold",
        f"N = {n:,.0f} is used, {counted:,.0f} tokens carry loss in one pass",
        f"ParamBPT goes as 1 / N: it reads {counted / n:.2g} times what it would",
        "--set data.tokens_per_epoch=null (it is counted then)",
        "ours",
    )


CHECKS = (
    ended_without_metadata,
    overtraining,
    overfitting,
    leaked_validation,
    n_differs,
)
