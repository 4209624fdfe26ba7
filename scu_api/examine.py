"""A run looked at from its folder: what is wrong with it (`scu diagnose`), its report."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scu.errors import InputError, OutputError
from scu.run_view import RunView, read_run
from scu.trace import jsonable
from scu_api.marks import number

if TYPE_CHECKING:
    from scu.diagnose import Finding
    from scu.monitor import Judgment


def diagnose(path: Path, console: Console, *, as_json: bool = False) -> bool:
    """Print what there is to say about a run; whether something is wrong with it."""
    from scu.diagnose import findings
    from scu.monitor import judge

    run = read_run(path)
    judgments = judge(run.records, run.settings, context_free_bpt=run.context_free_bpt)
    found = findings(run, judgments)
    judgment = judgments[-1] if judgments else None
    if as_json:
        print(json.dumps(_as_dict(run, judgment, found), indent=2, allow_nan=False))
    else:
        for line in _lines(run, judgment, found):
            console.print(line, soft_wrap=True)
    return any(finding.severity == "wrong" for finding in found)


def report(paths: Sequence[Path], output: Path | None) -> tuple[Path, Path]:
    """Write the report of one run, by default into its folder, or of several side by side."""
    from scu.report import write_report

    runs = [read_run(path) for path in paths]
    if output is None and len(runs) > 1:
        raise InputError("a report of several runs needs a folder of its own; pass --output DIR")
    folder = output or runs[0].folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_report(runs, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write a report to {folder}: {error.strerror or error}"
        ) from error


def report_line(folder: Path) -> str:
    """Write the report of a run that has just ended; where it is, or why there is none."""
    try:
        page, _ = report([folder], None)
    except Exception as error:  # the run is saved, and a picture of it is not worth more
        return f"WARNING: no report was written: {type(error).__name__}: {error}"
    return f"report    {page}"


def _as_dict(
    run: RunView, judgment: "Judgment | None", found: Sequence["Finding"]
) -> dict[str, Any]:
    content = {
        "run": str(run.folder),
        "verdict": judgment and judgment.verdict,
        "reason": judgment and judgment.reason,
        "statistics": _statistics(judgment),
        "findings": [dict(finding.as_dict()) for finding in found],
    }
    finite: dict[str, Any] = jsonable(content)
    return finite


def _lines(run: RunView, judgment: "Judgment | None", found: Sequence["Finding"]) -> Iterator[str]:
    steps = f"{run.records[-1].step if run.records else 0}"
    planned = f" of {run.steps}" if run.steps is not None else ""
    why = "not finished" if run.metadata is None else run.metadata.get("stop_reason", "finished")
    yield f"run       {run.folder}: {steps}{planned} steps, {why}"
    yield from (f"note      {note}" for note in run.notes)
    if judgment is None:
        yield "verdict   none: the run is shorter than the first window that is judged"
    else:
        yield f"verdict   {judgment.verdict}, at step {judgment.step}: {judgment.reason}"
    for finding in sorted(found, key=lambda finding: finding.severity != "wrong"):
        yield ""
        yield f"{finding.severity.upper()}: {finding.symptom}"
        yield f"  evidence  {finding.evidence}"
        yield f"  cause     {finding.cause}"
        yield f"  change    {finding.change}"
    if not any(finding.severity == "wrong" for finding in found):
        known = _statistics(judgment)
        checked = ", ".join(f"{name} {number(known[name])}" for name in _TOLD if name in known)
        yield ""
        yield f"nothing wrong in {len(run.records)} windows" + (f": {checked}" if checked else "")


_TOLD = ("mean_error", "lambda_trend", "long_loss_trend", "tau_steps", "gain")
"""Statistics that a healthy run is summed up by; --json has them all."""


def _statistics(judgment: "Judgment | None") -> Mapping[str, float]:
    statistics = judgment.statistics if judgment is not None else {}
    return {name: float(value) for name, value in statistics.items() if math.isfinite(value)}
