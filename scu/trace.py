"""The trace of a run: one JSON line per control window, flushed as written.

Everything that watches a run (live panel, diagnosis, report, benchmark) reads this file and nothing
else, so watching needs no training framework and cannot crash a run. NaN and infinity are written
as null, so that every JSON reader takes the file.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from scu.errors import DataError


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One control window. Rates are per optimizer step; lam is the value that the next window
    uses."""

    step: int
    """Optimizer steps done."""
    tokens_seen: int
    """Tokens that carried loss so far, over all ranks and epochs."""
    loss_nats: float
    """Mean over the window's steps of the token-weighted cross-entropy; without the penalty."""
    data_bpt: float
    """loss_nats in bits: the window's own mean, not the moving average that S is computed from."""
    param_bpt: float
    """At the end of the window, after the actuator."""
    s: float
    lam: float
    integral: float
    error: float
    learning_rate: float
    grad_norm: float | None
    """Before clipping, of the window's last step."""
    penalty_grad_ratio: float | None
    """Norm of the penalty's gradient over grad_norm: what lambda can do beside the data."""
    shrink_rate: float | None = None
    """Share of ParamBPT that lambda's pull removes in one optimizer step; 0: no pull arrives. Its
    inverse is the plant's time constant in steps. None where the engine cannot tell."""
    tokens_per_sec: float
    elapsed_sec: float
    eval_bpt: float | None = None
    """Validation bits per token, when evaluated since the last record."""
    skipped_steps: int = 0
    """Optimizer steps of the window that were skipped because a gradient was not finite."""
    held: str = ""
    """Why the controller did not move in this window ("skipped steps", "cooldown", ...); empty if
    it could."""
    verdict: str = ""


_FIELDS = frozenset(field.name for field in fields(StepRecord))
_NUMBERS = frozenset(f.name for f in fields(StepRecord)) - {"held", "verdict"}
_NULLABLE = frozenset({"grad_norm", "penalty_grad_ratio", "shrink_rate", "eval_bpt"})


class TraceWriter:
    """Appends records to a trace file; each line is on its way to disk before write() returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: StepRecord) -> None:
        self._file.write(json.dumps(jsonable(asdict(record)), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def read_trace(path: Path) -> list[StepRecord]:
    """Read a trace, also of a run that is still being written.

    A last line without its newline is a write in progress and is left out. Raises DataError, with
    the line number, for anything else that is not a record.
    """
    return list(_records(path))


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_text(
        json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    part.replace(path)


def _records(path: Path) -> Iterator[StepRecord]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the trace {path}: {error}") from error
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if line.endswith("\n") and line.strip():
            yield parse_record(line, f"{path}:{number}")


def parse_record(line: str, where: str) -> StepRecord:
    """One line of a trace; where it stands is for the DataError that it raises if it is none."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON line of a trace: {error}") from error
    if not isinstance(raw, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(raw).__name__}")
    if unknown := sorted(set(raw) - _FIELDS):
        raise DataError(f"{where}: unknown field {unknown[0]!r}; is this another version's trace?")
    for name, value in raw.items():
        kind_ok = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _NUMBERS and not kind_ok and value is not None:
            raise DataError(f"{where}: {name} must be a number, got {value!r}")
        if name not in _NUMBERS and not isinstance(value, str):
            raise DataError(f"{where}: {name} must be a string, got {value!r}")
    restored: dict[str, Any] = {
        name: math.nan if value is None and name not in _NULLABLE else value
        for name, value in raw.items()
    }
    try:
        return StepRecord(**restored)
    except TypeError as error:
        raise DataError(f"{where}: {error}") from error


def jsonable(value: Any) -> Any:
    """The same with null for NaN and infinity, as every JSON reader takes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value
