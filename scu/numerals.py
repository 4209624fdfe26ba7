"""Numbers as people read them."""

import math
from collections.abc import Iterable


def is_real(value: object) -> bool:
    """A finite number, and not None."""
    return isinstance(value, int | float) and math.isfinite(value)


def extent(values: Iterable[float]) -> tuple[float, float]:
    """The smallest and the largest of those that are finite; one of them must be."""
    known = [value for value in values if is_real(value)]
    return min(known), max(known)


def number(value: float | None) -> str:
    """Four significant digits; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else f"{value}"
    if value != 0.0 and not 1e-4 <= abs(value) < 9999.5:
        return f"{value:.3g}"
    return f"{value:.4g}"


def percent(share: float | None) -> str:
    """With two decimals; more for what they would make 0."""
    if share is None or not math.isfinite(share):
        return "-" if share is None else f"{share}"
    if share == 0.0:
        return "0%"
    return f"{share:.2%}" if abs(share) >= 5e-4 else f"{100 * share:.2g}%"


def whole(value: float) -> str:
    """Without decimals; "?" while unknown."""
    return f"{value:,.0f}" if math.isfinite(value) else "?"


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss; "?" while unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
