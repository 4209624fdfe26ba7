"""What a run's pictures show: one panel per quantity, over the optimizer step.

A panel is a function that draws one or several runs on a Plot and says how to read it. Line styles,
markers and words carry what colour carries.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scu.control import STOP_TOLERANCE
from scu.metrics import LN2
from scu.numerals import number, percent
from scu.report import canvas
from scu.report.canvas import LIGHT, Key, Plot, Values, smooth
from scu.report.spans import Span, held_spans
from scu.report.story import NOT_JUDGED, words
from scu.run_view import RunView

_COLORS = tuple(LIGHT[role] for role in ("blue", "red", "green", "purple", "amber", "black"))
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (7, 1.6, 1.2, 1.6)))
_MARKERS = "osD^"
_STRETCHES = 300
"""Shaded stretches that an axis can show apart."""
_LETTER_PX = 6.6
_COOLDOWN_STARTS = "cooldown starts"


class Track:
    """A run, ready to be drawn."""

    def __init__(self, run: RunView, verdicts: Sequence[Span], *, label: str, place: int) -> None:
        """place, among the runs of a picture, picks colour, dash and marker; they cycle by 6, 4
        and 4."""
        self.run = run
        self.verdicts = verdicts
        self.label = label
        self.color = _COLORS[place % len(_COLORS)]
        self.dash = _DASHES[place % len(_DASHES)]
        self.marker = _MARKERS[place % len(_MARKERS)]
        self.steps = self.column("step")

    def column(self, name: str) -> Values:
        """A field of the records; NaN where there is none or it is not finite."""
        values = np.array([getattr(r, name) for r in self.run.records], dtype=np.float64)
        return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True)
class Panel:
    title: str
    height_px: int
    """Of the axis in the page; of the verdicts, of one run's row."""
    draw: Callable[[Plot, Sequence[Track]], str]
    """Returns how to read it."""
    field: str = ""
    """The record's field that it is about."""


def _curve(plot: Plot, tracks: Sequence[Track], track: Track, y: Values, label: str) -> None:
    """The line of one run; among several with its name, and a mark where its cooldown starts."""
    if len(tracks) == 1:
        plot.line(track.steps, y, label, color=track.color)
        return
    plot.line(track.steps, y, track.label, color=track.color, dash=track.dash)
    cool = next((i for i, r in enumerate(track.run.records) if r.held == "cooldown"), 0)
    if cool and np.isfinite(y[cool - 1]):
        at = slice(cool - 1, cool)
        plot.line(track.steps[at], y[at], color=track.color, width=0.0, marker="v")
        artist = plot.ax.get_lines()[-1]
        plot.keys.setdefault(_COOLDOWN_STARTS, Key(artist, LIGHT["soft"], marker="v"))


def _ratio(plot: Plot, tracks: Sequence[Track]) -> str:
    targets = {t.run.settings.target_s for t in tracks}
    relative = len(targets) > 1
    target = 1.0 if relative else min(targets)
    for track in tracks:
        unit = track.run.settings.target_s if relative else 1.0
        _curve(plot, tracks, track, track.column("s") / unit, "S")
    plot.level(target, "each run's S* = 1" if relative else f"S* = {percent(target)}")
    margin = STOP_TOLERANCE * target
    plot.band(target - margin, target + margin, f"\u00b1{STOP_TOLERANCE:.0%} of S*", "stop")
    bands = {t.run.settings.effective_deadband for t in tracks}
    if len(bands) == 1 and not relative:
        band = min(bands)
        plot.band(target - band, target + band, "deadband", "dead")
    top = max([1.15 * target, *(1.06 * s for s in plot.extremes)])
    if top > 4.0 * target:
        plot.log(target / 10.0, top)
    else:
        plot.ax.set_ylim(0.0, top)
    scale, sign = (1.0, "") if relative else (100.0, "%")
    plot.ax.yaxis.set_major_formatter(lambda value, _: f"{scale * value:g}{sign}")
    text = "As a multiple of each run's S*. " if relative else ""
    text += "Logarithmic. " if top > 4.0 * target else ""
    return f"{text}From the average of DataBPT; while the controller pauses, from the window's own."


def _strength(plot: Plot, tracks: Sequence[Track]) -> str:
    for track in tracks:
        lam = track.column("lam")
        _curve(plot, tracks, track, np.where(lam > 0.0, lam, np.nan), "lambda")
    drawn = plot.extremes or [t.run.settings.lambda_init for t in tracks]
    low, high = min(drawn) / 1.4, max(drawn) * 1.4
    if high / low < 5.0:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(5.0), middle * math.sqrt(5.0)
    shown, remarks = [], []
    for name, side in (("lambda_min", "lower"), ("lambda_max", "upper")):
        bounds = {getattr(t.run.settings, name) for t in tracks}
        bound = min(bounds)
        if len(bounds) > 1:
            remarks.append(f"The runs' {side} bounds differ.")
        elif low / 6.0 <= bound <= high * 6.0:
            shown.append((bound, side))
            low, high = min(low, bound / 1.15), max(high, bound * 1.15)
        else:
            remarks.append(f"The {side} bound, {number(bound)}, is beyond the scale.")
    for bound, side in shown:
        plot.level(bound, "bounds" if len(shown) > 1 else f"{side} bound")
    plot.log(low, high)
    return " ".join(["Logarithmic; the value that the next window uses.", *remarks])


def _data(plot: Plot, tracks: Sequence[Track]) -> str:
    alone = len(tracks) == 1
    width = max(_smoothing(track) for track in tracks)
    for track in tracks:
        bits = track.column("data_bpt")
        if alone and width > 1:
            plot.line(track.steps, bits, "each window", color=track.color, width=0.8, alpha=0.55)
        label = f"mean of {width} windows" if width > 1 else "each window"
        _curve(plot, tracks, track, smooth(bits, width), label)
        evaluated = track.column("eval_bpt")
        at = np.isfinite(evaluated)
        plot.line(
            track.steps[at], evaluated[at], "validation",
            color=LIGHT["red"] if alone else track.color,
            width=0.9, dash=(0, (3, 1.5)), marker="D" if alone else track.marker,
        )  # fmt: skip
    if plot.extremes and max(plot.extremes) > 20.0 * min(plot.extremes) > 0.0:
        plot.log(min(plot.extremes) / 1.2, max(plot.extremes) * 1.2)
    means = f" The heavy line is the centred mean of {width} of them." if width > 1 else ""
    if not alone:
        means = f" Lines are centred means of {width} windows, markers are validation text."
    return f"Bits per token that the training data cost. A window's own mean is noisy.{means}"


def _parameters(plot: Plot, tracks: Sequence[Track]) -> str:
    for track in tracks:
        _curve(plot, tracks, track, track.column("param_bpt"), "ParamBPT")
    scale = _from_zero(plot, np.concatenate([t.column("param_bpt") for t in tracks]))
    return f"Bits per token that the adapter costs, as distance from where it started.{scale}"


def _parts(plot: Plot, tracks: Sequence[Track]) -> str:
    alone, laws = len(tracks) == 1, {t.run.settings.law for t in tracks}
    label = "I, the sum of ki \u00d7 error"
    if laws == {"multiplicative"}:
        label = "ki \u00d7 I, I the sum of errors"
    shown: list[Values] = []
    for track in tracks:
        settings, error = track.run.settings, track.column("error")
        integral = track.column("integral")
        if settings.law == "multiplicative":
            integral = settings.ki * integral
        if alone:
            part = settings.kp * error
            plot.line(
                track.steps, part, "P = kp \u00d7 error",
                color=LIGHT["red"], width=1.1, dash=(0, (3, 1.2)),
            )  # fmt: skip
            close = np.abs(error) < LN2
            shown.append(part[close] if close.any() and settings.law == "positional" else part)
        _curve(plot, tracks, track, integral, label)
        shown.append(integral)
    plot.ax.axhline(0.0, color=LIGHT["soft"], lw=0.8, zorder=0.9)
    cut = _show(plot, np.concatenate(shown))
    if not alone:
        return "Of several runs the integral part only."
    text = "What error and integral ask of ln lambda"
    text += ", counted from lambda_init." if laws == {"positional"} else ", as a change per window."
    return text + (" P is off the scale while S is far from S*." if cut else "")


def _rate(plot: Plot, tracks: Sequence[Track]) -> str:
    for track in tracks:
        _curve(plot, tracks, track, track.column("learning_rate"), "learning rate")
    scale = _from_zero(plot, np.concatenate([t.column("learning_rate") for t in tracks]))
    plot.ax.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    return f"At the end of each window.{scale}"


def _verdicts(plot: Plot, tracks: Sequence[Track]) -> str:
    ax, alone = plot.ax, len(tracks) == 1
    ax.set_ylim(len(tracks), 0.0)
    ax.set_yticks([])
    axis_px = ax.get_window_extent().width * canvas.PX / ax.figure.dpi
    letters_per_step = axis_px / (ax.get_xlim()[1] * _LETTER_PX)
    for row, track in enumerate(tracks):
        top, height = (row, 1.0) if alone else (row + 0.5, 0.42)
        if not alone:
            ax.text(0.0, row + 0.44, track.label, va="bottom", color=LIGHT["soft"], clip_on=True)
        start = track.verdicts[0].start if track.verdicts else int(track.steps[-1])
        for span in (Span(0, start, NOT_JUDGED), *track.verdicts):
            text, steps = words(span.what), span.end - span.start
            color = LIGHT.get(span.what, LIGHT["rule"])
            (bar,) = ax.barh(
                top, steps, height, span.start, align="edge", color=color, ec=LIGHT["page"], lw=1.0
            )
            plot.keys.setdefault(text, Key(bar, color))
            room = steps * letters_per_step
            fits = text if room > len(text) + 1 else text[:1].upper() if room > 1.5 else ""
            at = (span.start + steps / 2.0, top + height / 2.0)
            ax.text(*at, fits, ha="center", va="center")
    return "In force over the steps; a narrow stretch bears its first letter."


PANELS = (
    Panel("Information ratio S", 260, _ratio, "s"),
    Panel("Regularization strength lambda", 190, _strength, "lam"),
    Panel("DataBPT", 220, _data, "data_bpt"),
    Panel("ParamBPT", 150, _parameters, "param_bpt"),
    Panel("The controller's parts", 170, _parts, "integral"),
    Panel("Learning rate", 110, _rate, "learning_rate"),
    Panel("Verdict", 44, _verdicts),
)


def draw(panel: Panel, plot: Plot, tracks: Sequence[Track]) -> str:
    """Draw a panel and return how to read it. Every track has a record."""
    canvas.plain(plot.ax)
    last = max(float(track.steps[-1]) for track in tracks)
    few = all(len(track.steps) < 3 for track in tracks)  # a dot on the frame would be half a dot
    plot.ax.set_xlim(0.0, max(1.0, 1.25 * last if few else last))
    plot.ax.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}" if step % 1 == 0.0 else "")
    remark = panel.draw(plot, tracks)
    if cooldown := plot.keys.pop(_COOLDOWN_STARTS, None):
        plot.keys[_COOLDOWN_STARTS] = cooldown  # last in the legend
    if len(tracks) == 1 and panel.field:
        _mark_held(plot, held_spans(tracks[0].run))
    return remark


def _mark_held(plot: Plot, spans: Sequence[Span]) -> None:
    """Cooldown and pulses as shading, anything else as crosses along the lower edge."""
    gap = plot.ax.get_xlim()[1] / _STRETCHES
    for reason in sorted({span.what for span in spans}):
        stretches = _joined([span for span in spans if span.what == reason], gap)
        if reason in ("cooldown", "pulse"):
            for start, end in stretches:
                plot.stretch(start, end, reason, reason)
        else:
            middles = np.array([(start + end) / 2.0 for start, end in stretches])
            plot.marks(middles, f"paused: {reason}", "x", color=LIGHT["red"])


def _joined(spans: Iterable[Span], gap: float) -> list[tuple[float, float]]:
    """Stretches, made one where they are closer than gap."""
    joined: list[tuple[float, float]] = []
    for span in spans:
        if joined and span.start - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], span.end
        else:
            joined.append((span.start, span.end))
    return joined


def _smoothing(track: Track) -> int:
    """Windows in a mean: odd, about a thirtieth of the run; 1 for a short one."""
    windows = len(track.run.records)
    return 1 if windows < 12 else max(5, windows // 30) // 2 * 2 + 1


def _from_zero(plot: Plot, values: Values) -> str:
    """Scale an axis of amounts; logarithmic where a few tower over most."""
    known = values[np.isfinite(values) & (values > 0.0)]
    if not known.size:
        return ""
    top, middle = float(known.max()), float(np.median(known))
    if top > 20.0 * middle:
        plot.log(max(float(known.min()), middle / 100.0) / 1.3, top * 1.3)
        return " Logarithmic."
    plot.ax.set_ylim(0.0, 1.08 * top)
    return ""


def _show(plot: Plot, values: Values) -> bool:
    """Choose the axis for these values; whether something of the lines lies outside."""
    known = values[np.isfinite(values)]
    if not known.size:
        return False
    low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
    margin = 0.12 * (high - low) or 1.0
    plot.ax.set_ylim(low - margin, high + margin)
    return min(plot.extremes) < low - margin or max(plot.extremes) > high + margin
