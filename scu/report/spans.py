"""What is read off a run: how far it got, its stretches of one verdict or of one reason to hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from scu.monitor import Judgment
from scu.run_view import RunView
from scu.trace import StepRecord


@dataclass(frozen=True)
class Span:
    """Steps that have something in common: start < step <= end."""

    start: int
    end: int
    what: str


def verdict_spans(run: RunView, judgments: Sequence[Judgment]) -> list[Span]:
    """The verdict in force over the steps: as traced, else from a replay."""
    if any(r.verdict for r in run.records):
        return [span for span in _spans(run.records, [r.verdict for r in run.records]) if span.what]
    ends = [*(j.step for j in judgments[1:]), last_step(run)]
    steps = [Span(j.step, end, j.verdict) for j, end in zip(judgments, ends, strict=False)]
    merged: list[Span] = []
    for what, group in groupby(steps, key=lambda span: span.what):
        spans = list(group)
        merged.append(Span(spans[0].start, spans[-1].end, what))
    return merged


def held_spans(run: RunView) -> list[Span]:
    """Where lambda was held, and why."""
    return [span for span in _spans(run.records, [r.held for r in run.records]) if span.what]


def last_step(run: RunView) -> int:
    steps = (run.metadata or {}).get("optimizer_steps")
    return steps if isinstance(steps, int) else run.records[-1].step if run.records else 0


def planned_steps(run: RunView) -> int | None:
    """Optimizer steps that the run was to have; None where nothing says."""
    steps = run.steps if run.steps is not None else said(run, "steps_planned")
    return steps if isinstance(steps, int) else None


def said(run: RunView, key: str) -> Any:
    """Of the run's metadata, or of what stood at its start while it has none."""
    return (run.start if run.metadata is None else run.metadata).get(key)


def evaluated_bpt(record: StepRecord) -> float:
    """Validation bits per token; infinite where there are none, so that a minimum passes it by."""
    value = record.eval_bpt
    return value if value is not None and math.isfinite(value) else math.inf


def _spans(records: Sequence[StepRecord], marks: Sequence[str]) -> list[Span]:
    spans, at = [], 0
    for what, group in groupby(zip(records, marks, strict=True), key=lambda pair: pair[1]):
        end = list(group)[-1][0].step
        spans.append(Span(at, end, what))
        at = end
    return spans
