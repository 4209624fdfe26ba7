"""What the charts are drawn on: colours, long lines made short, matplotlib figures as SVG or PNG.

In SVG every colour becomes a CSS variable, so that a page follows its reader's light or dark
setting; a PNG is light. Text stays text. The same figure gives the same bytes.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

LIGHT = {
    "page": "#fdfdfc",
    "sheet": "#f3f4f5",
    "ink": "#1c2127",
    "soft": "#5a646e",
    "rule": "#e1e5e9",
    "blue": "#0072b2",
    "red": "#d05500",
    "green": "#00805e",
    "purple": "#a8488a",
    "amber": "#a87400",
    "black": "#3c444c",
    "stop": "#e6eef4",
    "dead": "#c3dae9",
    "cooldown": "#f7eeda",
    "pulse": "#ecdff0",
    "equilibrium": "#8fd3bd",
    "saturated": "#f3cf7a",
    "no_authority": "#dcb3cf",
    "oscillating": "#a9cdea",
    "transient": "#d5d9dd",
    "diverged": "#f0a58a",
}
"""A colour per role, after Okabe and Ito. Each stands for its role, so no two may be the same."""
DARK = {
    "page": "#14171b",
    "sheet": "#1c2025",
    "ink": "#e6e9ec",
    "soft": "#9aa5b0",
    "rule": "#2c333a",
    "blue": "#56b4e9",
    "red": "#ff8a3d",
    "green": "#2fc79c",
    "purple": "#d98abf",
    "amber": "#e6b13c",
    "black": "#b9c2ca",
    "stop": "#1d2830",
    "dead": "#2b4354",
    "cooldown": "#2f2919",
    "pulse": "#38283f",
    "equilibrium": "#1d6b55",
    "saturated": "#7a5a10",
    "no_authority": "#6d3f60",
    "oscillating": "#2a587c",
    "transient": "#464d55",
    "diverged": "#8f3f20",
}
_ROLES = {color: role for role, color in LIGHT.items()}
_COLOR = re.compile("|".join(_ROLES))
_FEW = 40
"""Points up to which each gets a dot: one or two would make no line."""
_SHAPES = {
    "o": "M11 6a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
    "s": "M11 3h6v6h-6z",
    "^": "M14 2.5l3.5 6.5h-7z",
    "v": "M14 9.5l3.5 -6.5h-7z",
    "D": "M14 2l4 4l-4 4l-4 -4z",
    "x": "M11 3l6 6M17 3l-6 6",
}
"""Markers, in a box of 28 by 12."""
PX = 72
"""Dots per inch of an SVG: one unit of its own is one pixel at full size."""


def thin(x: Values, y: Values, points: int) -> tuple[Values, Values]:
    """At most about so many points, with the extremes of every stretch among them."""
    if len(x) <= points:
        return x, y
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), points // 2):
        known = part[np.isfinite(y[part])]
        # A stretch without a number stays a gap.
        keep |= {known[y[known].argmin()], known[y[known].argmax()]} if known.size else {part[0]}
    index = np.array(sorted(keep))
    return x[index], y[index]


def smooth(values: Values, width: int) -> Values:
    """Centred mean over width values, at the ends over those there are; gaps count for nothing."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at, half = np.arange(len(values)), width // 2
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    artist: Any
    color: str
    width: float = 0.0
    """Of its line; 0: a filled stretch, or nothing but a marker."""
    dash: Any = "-"
    marker: str = ""
    alpha: float = 1.0


class Plot:
    """An axis while it is drawn on, and what its legend has to say."""

    def __init__(self, ax: Any, *, points: int) -> None:
        self.ax = ax
        self.points = points
        """Most points of a line."""
        self.keys: dict[str, Key] = {}
        self.extremes: list[float] = []
        """Of the lines so far."""

    def line(
        self, x: Values, y: Values, label: str = "", *, color: str, width: float = 1.6,
        dash: Any = "-", marker: str = "", alpha: float = 1.0,
    ) -> None:  # fmt: skip
        """NaN is a gap. Where there are few points each gets a dot."""
        known = y[np.isfinite(y)]
        if not known.size:
            return
        dot = marker or ("o" if known.size <= _FEW and alpha == 1.0 else "")
        x, y = thin(x, y, self.points)
        (artist,) = self.ax.plot(
            x, y, color=color, lw=width, ls=dash, alpha=alpha,
            marker=dot, ms=5.5 if marker else 3.0, mec=color, mew=0.5,
        )  # fmt: skip
        self.extremes += [float(known.min()), float(known.max())]
        if label:
            self.keys.setdefault(label, Key(artist, color, width, dash, marker, alpha))

    def level(self, y: float, label: str) -> None:
        color, dash = LIGHT["ink"], (0, (4, 3))
        artist = self.ax.axhline(y, color=color, lw=1.0, ls=dash, zorder=1.5)
        self.keys.setdefault(label, Key(artist, color, 1.0, dash))

    def band(self, low: float, high: float, label: str, role: str) -> None:
        artist = self.ax.axhspan(low, high, color=LIGHT[role], lw=0, zorder=0.6)
        self.keys.setdefault(label, Key(artist, LIGHT[role]))

    def stretch(self, start: float, end: float, label: str, role: str) -> None:
        artist = self.ax.axvspan(start, end, color=LIGHT[role], lw=0, zorder=0.5)
        self.keys.setdefault(label, Key(artist, LIGHT[role]))

    def marks(self, x: Values, label: str, marker: str, *, color: str) -> None:
        """Along the lower edge."""
        (artist,) = self.ax.plot(
            x, np.full(len(x), 0.03), transform=self.ax.get_xaxis_transform(), ls="none",
            marker=marker, color=color, ms=5.0, clip_on=False,
        )  # fmt: skip
        self.keys.setdefault(label, Key(artist, color, marker=marker))

    def log(self, low: float, high: float) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axis = self.ax.yaxis
        self.ax.set_yscale("log")
        self.ax.set_ylim(low, high)
        wide = high / low > 300.0
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:g}")


@contextmanager
def style(salt: str, *, size: float = 11.5) -> Iterator[None]:
    """matplotlib's own defaults, whatever the user's are, and reproducible ids made from salt."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": salt,
                "font.size": size,
                "text.parse_math": False,  # a run may be named $x
                "text.color": LIGHT["ink"],
                "axes.edgecolor": LIGHT["soft"],
                "axes.labelcolor": LIGHT["soft"],
                "xtick.color": LIGHT["soft"],
                "ytick.color": LIGHT["soft"],
                "grid.color": LIGHT["rule"],
                "axes.unicode_minus": False,
            }
        )
        # A name in a script that the picture's font lacks is shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def figure(width_in: float, height_in: float, *, dpi: float = PX) -> Any:
    """A matplotlib Figure, and no pyplot: nothing global."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), dpi=dpi)


def plain(ax: Any) -> None:
    """Horizontal rules, one line below, nothing else."""
    ax.set_axisbelow(True)
    ax.grid(axis="y", lw=0.8)
    ax.tick_params(length=0, pad=5)
    ax.tick_params(axis="x", length=3, width=0.8)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.spines["bottom"].set_linewidth(0.8)
    ax.locator_params(axis="y", nbins=5)


def svg(figure: Any, alt: str) -> str:
    """For the middle of a page: no size, no ids of its own making, colours as var(--role)."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    body = _COLOR.sub(lambda match: f"var(--{_ROLES[match[0]]})", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return f'<svg role="img" {box[0]}><title>{escape(alt)}</title>{body}</svg>'


def png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def swatch(key: Key) -> str:
    """The sample of a legend, as a small SVG."""
    color = f"var(--{_ROLES[key.color]})"
    shape = ""
    if key.width:
        dash = "" if key.dash == "-" else " ".join(f"{length:g}" for length in key.dash[1])
        shape = (
            f'<path d="M0 6H28" style="stroke: {color}; stroke-width: {key.width:g}; '
            f'stroke-dasharray: {dash or "none"}; opacity: {key.alpha:g}"/>'
        )
    elif not key.marker:
        shape = f'<rect width="28" height="12" rx="2" style="fill: {color}"/>'
    if key.marker:
        path = _SHAPES[key.marker]
        shape += f'<path d="{path}" style="fill: {color}; stroke: {color}"/>'
    return f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{shape}</svg>'
