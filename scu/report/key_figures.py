"""The figures of a run that are worth a glance."""

import math
from dataclasses import dataclass

from scu.numerals import duration, extent, is_real, number, percent, whole
from scu.report.spans import evaluated_bpt, last_step, planned_steps, said
from scu.report.story import words
from scu.run_view import RunView

COMPARED = ("verdict", "steps", "S", "S*", "lambda", "DataBPT", "ParamBPT", "validation", "time")


@dataclass(frozen=True)
class KeyFigure:
    label: str
    value: str
    note: str = ""


def key_figures(run: RunView) -> list[KeyFigure]:
    """The numbers worth a glance; those that the run does not tell are left out."""
    if not run.records:
        return [_controller(run)]
    first, last, settings = run.records[0], run.records[-1], run.settings
    low, high = extent([settings.lambda_init, *(r.lam for r in run.records)])
    bounds = f"{number(settings.lambda_min)} to {number(settings.lambda_max)}"
    evaluated = [r for r in run.records if r.eval_bpt is not None]
    figures = [
        KeyFigure("S, last window", percent(last.s), distance(last.s, settings.target_s)),
        KeyFigure(
            "lambda, last window",
            number(last.lam),
            f"was in {number(low)} to {number(high)}; bounds {bounds}",
        ),
        KeyFigure(
            "DataBPT", _change(first.data_bpt, last.data_bpt), "bits/token, first and last window"
        ),
        KeyFigure(
            "ParamBPT", _change(first.param_bpt, last.param_bpt), "bits/token of the adapter"
        ),
    ]
    if evaluated:
        best = min(evaluated, key=evaluated_bpt)
        figures.append(
            KeyFigure(
                "Validation",
                _change(evaluated[0].eval_bpt, evaluated[-1].eval_bpt),
                f"bits/token; lowest {number(best.eval_bpt)} at step {best.step:,}",
            )
        )
    return [*figures, _steps(run), _tokens(run), _time(run), _controller(run)]


def compared(run: RunView, verdict: str) -> list[str]:
    """A run's row in a table of runs; COMPARED are its headings."""
    last = run.records[-1] if run.records else None
    planned = planned_steps(run)
    steps = f"{last_step(run):,}" + (f" of {planned:,}" if planned else "")
    if last is None:
        return [words(verdict), steps, "-", percent(run.settings.target_s), *["-"] * 5]
    validation = [r.eval_bpt for r in run.records if r.eval_bpt is not None]
    return [
        words(verdict) if run.metadata is not None else f"{words(verdict)}, not finished",
        steps,
        percent(last.s),
        percent(run.settings.target_s),
        number(last.lam),
        number(last.data_bpt),
        number(last.param_bpt),
        number(validation[-1] if validation else None),
        duration(last.elapsed_sec),
    ]


def distance(s: float, target: float) -> str:
    """S* and how far S is from it."""
    away = ""
    if is_real(s):
        ratio = s / target
        side = "above" if ratio > 1.0 else "below"
        away = (
            f", S is {ratio:.1f} times that" if ratio > 2.0 else f", {abs(ratio - 1.0):.1%} {side}"
        )
    return f"S* = {percent(target)}{away}"


def _steps(run: RunView) -> KeyFigure:
    done, planned = last_step(run), planned_steps(run)
    if not planned:
        return KeyFigure("Steps", f"{done:,}")
    left = max(planned - done, 0)
    what = "to go" if run.metadata is None else "not run"
    note = f"{left:,} {what} ({left / planned:.0%})" if left else "the whole budget"
    return KeyFigure("Steps", f"{done:,} of {planned:,}", note)


def _tokens(run: RunView) -> KeyFigure:
    seen, distinct = run.records[-1].tokens_seen, said(run, "tokens_per_epoch")
    if not (isinstance(distinct, int) and distinct > 0 and is_real(seen)):
        return KeyFigure("Tokens seen", whole(seen))
    return KeyFigure("Tokens seen", whole(seen), f"N = {distinct:,}, {seen / distinct:.1f} passes")


def _time(run: RunView) -> KeyFigure:
    last = run.records[-1]
    pace = last.tokens_seen / last.elapsed_sec if last.elapsed_sec > 0.0 else math.nan
    note = f"{whole(pace)} tokens/s on average" if is_real(pace) else ""
    return KeyFigure("Time", duration(last.elapsed_sec), note)


def _controller(run: RunView) -> KeyFigure:
    s = run.settings
    note = f"{s.law} law, every {s.control_interval} steps, deadband "
    note += f"\u00b1{100 * s.effective_deadband:.2g} % in S"
    return KeyFigure("Controller", f"kp {s.kp:g}, ki {s.ki:g}", note)


def _change(before: float | None, after: float | None) -> str:
    return f"{number(before)} \u2192 {number(after)}"
