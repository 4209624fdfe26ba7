"""What an evaluation shows: base beside adapter, and the guide's checks of the run's metadata."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from scu.control import STOP_TOLERANCE
from scu.errors import DataError
from scu_api.panel import number, percent

if TYPE_CHECKING:
    from scu.evaluate import Comparison


def table(comparison: "Comparison") -> Table:
    c = comparison
    grid = Table(
        title=f"{c.source}: {c.documents:,} documents, {c.tokens:,} tokens",
        caption=f"The adapter is better on {c.wins:,} of {c.documents:,} documents.",
        title_justify="left",
        caption_justify="left",
    )
    grid.add_column("")
    for heading in ("base", "adapter", "difference"):
        grid.add_column(heading, justify="right")
    interval = f"95 % in [{-c.saved_high:+.4f}, {-c.saved_low:+.4f}]"
    for name, base, adapter, digits, more in (
        ("bits per token", c.base_bpt, c.adapter_bpt, 4, f"\n{interval}"),
        ("bits per byte", c.base_bpb, c.adapter_bpb, 4, ""),
        ("perplexity", c.base_perplexity, c.adapter_perplexity, 2, ""),
    ):
        difference = f"{adapter - base:+,.{digits}f}{more}"
        grid.add_row(name, f"{base:,.{digits}f}", f"{adapter:,.{digits}f}", difference)
    return grid


def print_checks(console: Console, folder: Path) -> None:
    ascii_only = console.options.ascii_only
    tick, cross = ("ok", "NO") if ascii_only else ("\u2713", "\u2717")
    for passed, line in checks(folder):
        mark, style = (tick, "cyan") if passed else (cross, "bold yellow")
        console.print(f"{mark} {line}", style=style, soft_wrap=True)


def checks(folder: Path) -> list[tuple[bool, str]]:
    """What the guide's step 8 looks for in a run's metadata: (is it so, the line that says it)."""
    file = folder / "metadata.json"
    if not file.is_file():
        return [(False, "metadata.json is missing: the run did not finish")]
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        lam, s = _float(metadata["final_lambda"]), _float(metadata["final_s_ratio"])
        low, high = map(_float, metadata["lambda_range"])
        target = _float(metadata["target_s"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a run's metadata: {error!r}") from error

    def not_if(condition: bool) -> str:
        return "not " if condition else ""

    near = abs(s - target) <= STOP_TOLERANCE * target
    return [
        (lam > 0.0, f"final_lambda {number(lam)} is {not_if(lam > 0.0)}0"),
        (high > 0.0, f"lambda_range [{number(low)}, {number(high)}] is {not_if(high > 0.0)}[0, 0]"),
        (
            near,
            f"final_s_ratio {percent(s)} is {not_if(not near)}within {STOP_TOLERANCE:.0%} "
            f"of target_s {percent(target)}",
        ),
    ]


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
