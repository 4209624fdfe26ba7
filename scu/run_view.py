"""A run as whoever watches it sees it: what stands in its folder, finished or not.

Needs no training framework, and no configuration either: of a lone trace it knows the set point,
which the controller's own error gives away, and takes the defaults for the rest.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scu.config import RunConfig
from scu.config_file import load
from scu.control import S_FLOOR, ControlSettings
from scu.errors import DataError
from scu.metrics import logit
from scu.trace import StepRecord, read_trace

AGREED = 0.01
"""Within this fraction of their median the records of a lone trace agree on S*."""


@dataclass(frozen=True)
class RunView:
    """What is known of a run."""

    folder: Path
    """Where it lies; of a lone trace, the folder that holds it."""
    name: str
    records: tuple[StepRecord, ...]
    settings: ControlSettings
    config: RunConfig | None
    """None for a lone trace."""
    start: Mapping[str, Any]
    """start.json: what was measured before the first step; empty without one."""
    metadata: Mapping[str, Any] | None
    """metadata.json; None while the run is not finished."""
    notes: tuple[str, ...]
    """What had to be assumed, one line each."""

    @property
    def steps(self) -> int | None:
        """Planned optimizer steps; None where nothing says."""
        return None if self.config is None else self.config.training.steps

    @property
    def context_free_bpt(self) -> float | None:
        """Bits per token of a code that knows how often each token occurs, and nothing else."""
        value = self.start.get("context_free_bpt")
        return float(value) if isinstance(value, int | float) else None


def read_run(path: Path) -> RunView:
    """Read a run's folder, or a lone trace file. Raises DataError or ConfigError."""
    trace = path if path.is_file() else path / "trace.jsonl"
    if not trace.is_file():
        raise DataError(f"{path} holds no run: there is no {trace.name} in it")
    folder, records = trace.parent, tuple(read_trace(trace))
    file = folder / "config.yaml"
    config = load(file) if file.is_file() else None
    notes: tuple[str, ...] = ()
    if config is not None:
        settings = config.scu.control
    else:
        target = _implied_target(records)
        if target is None:
            raise DataError(
                f"{path}: no config.yaml beside the trace, and its records do not tell S*; put the "
                "run's config.yaml there"
            )
        settings = ControlSettings(target_s=target)
        notes = (f"no config.yaml: S* = {target:.3%} from the trace, default gains and bounds",)
    return RunView(
        folder=folder,
        name=path.stem if path.is_file() else path.resolve().name,
        records=records,
        settings=settings,
        config=config,
        start=_json(folder / "start.json") or {},
        metadata=_json(folder / "metadata.json"),
        notes=notes,
    )


def _implied_target(records: tuple[StepRecord, ...]) -> float | None:
    """S* from e = logit(S) - logit(S*); None where the records do not agree on one."""
    implied = [
        1.0 / (1.0 + math.exp(record.error - logit(min(max(record.s, S_FLOOR), 1.0 - S_FLOOR))))
        for record in records
        if not record.held and math.isfinite(record.s + record.error)
    ]
    if not implied:
        return None
    target = float(f"{median(implied):.4g}")
    # The multiplicative law has another error, and its traces imply another S* in each window.
    agreeing = sum(abs(value / target - 1.0) < AGREED for value in implied) if target else 0
    return target if agreeing >= 0.8 * len(implied) and target < 1.0 else None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content
