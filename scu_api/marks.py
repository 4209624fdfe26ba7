"""Numbers as a person reads them: in few digits, and as marks on a line."""

import math
from collections.abc import Sequence

from rich.text import Text

SCALE_CELLS = 41
"""Odd, so that S* has a cell of its own in the middle."""
HISTORY = 60
"""Windows in the sparkline."""

_TICKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # eighths of a block, from low to high
_FULL, _EMPTY, _LINE, _DOT, _TARGET = "\u2588", "\u2591", "\u2500", "\u25cf", "\u2502"


def number(value: float | None) -> str:
    """Three or four significant digits in at most nine characters; "-" where there is none."""
    if value is None:
        return "-"
    if value != 0.0 and math.isfinite(value) and not 1e-3 <= abs(value) < 9999.5:
        return f"{value:.2e}"
    return f"{value:#.4g}".removesuffix(".")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}" if math.isfinite(share) else f"{share}"


def rate(tokens_per_sec: float) -> str:
    return f"{tokens_per_sec:,.0f}" if math.isfinite(tokens_per_sec) else "?"


def bar(share: float, *, cells: int) -> Text:
    full = round(min(max(share, 0.0), 1.0) * cells)
    return Text.assemble((_FULL * full, "cyan"), (_EMPTY * (cells - full), "dim"))


def s_scale(s: float, *, target_s: float, deadband: float) -> Text:
    """S between 0 and 2 S*: S* in the middle, the deadband in brackets, > where S is beyond."""
    top = 2.0 * target_s
    middle = SCALE_CELLS // 2
    half = min(max(1, round(deadband / top * (SCALE_CELLS - 1))), middle)
    cells = [_LINE] * SCALE_CELLS
    cells[middle - half], cells[middle], cells[middle + half] = "[", _TARGET, "]"
    return _marked(cells, s / top, low="0", high=percent(top))


def log_scale(value: float, *, low: float, high: float, middle: float) -> Text:
    """A value between its bounds, on a logarithmic scale; the bar across is the middle."""
    log_low, log_high = math.log(low), math.log(high)

    def share(x: float) -> float:
        return (math.log(x) - log_low) / (log_high - log_low)

    cells = [_LINE] * SCALE_CELLS
    cells[round(share(middle) * (SCALE_CELLS - 1))] = _TARGET
    position = share(value) if value > 0.0 else math.nan
    return _marked(cells, position, low=f"{low:g}", high=f"{high:g} (log)")


def sparkline(history: Sequence[float], *, target_s: float) -> Text:
    """The last windows' S, between their extremes and S*; ends with the height that S* has in it.

    Spans at least a tenth of S* to both sides, so that noise on target looks like noise, and a
    little more above than below, so that S* is inside one of the heights and not between two.
    """
    known = [s for s in history if math.isfinite(s)]
    low = min([*known, 0.9 * target_s])
    high = max([*known, 1.125 * target_s])

    def tick(s: float) -> str:
        if not math.isfinite(s):
            return "x"
        return _TICKS[min(int((s - low) / (high - low) * len(_TICKS)), len(_TICKS) - 1)]

    line = "".join(map(tick, history))
    return Text.assemble((f"{line:<{HISTORY}}", "cyan"), f" {tick(target_s)} S*")


def _marked(cells: list[str], position: float, *, low: str, high: str) -> Text:
    """A scale with a dot at position, a share of its length; no dot where that is nan."""
    line = "".join(cells)
    start, end = (f"{low:>8} ", "dim"), (f" {high}", "dim")
    if not math.isfinite(position):
        return Text.assemble(start, line, end)
    at = round(min(max(position, 0.0), 1.0) * (len(cells) - 1))
    rounding = 1e-9
    mark = "<" if position < -rounding else ">" if position > 1.0 + rounding else _DOT
    return Text.assemble(start, line[:at], (mark, "bold cyan"), line[at + 1 :], end)
