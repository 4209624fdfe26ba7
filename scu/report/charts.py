"""The panels of panels.py as they are shown: for a page, each by itself; for run.png, the essential
ones in one picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scu.numerals import number, percent
from scu.report import canvas
from scu.report.canvas import LIGHT, Key, Plot
from scu.report.panels import PANELS, Panel, Track, draw
from scu.report.story import words

WIDE_PX, NARROW_PX = 1040, 380
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 58, 14, 8, 38
_PICTURE_IN, _PICTURE_DPI = (10.0, 6.25), 160
_IN_PICTURE = ("s", "lam", "data_bpt", "")
"""The panels of run.png, by field."""
_EDGE, _LETTERS = 0.055, 150
"""Of the picture: where its text begins, how many letters a line of it holds."""
_SPANS_TOLD = 20


@dataclass(frozen=True)
class Chart:
    """A panel for a page."""

    title: str
    remark: str
    """How to read it."""
    keys: Mapping[str, Key]
    """Its legend."""
    wide: str
    """SVG; its colours are CSS variables, its width is the page's."""
    narrow: str
    """The same for a telephone."""


def charts(tracks: Sequence[Track]) -> list[Chart]:
    """Every panel; none where no run has a record."""
    tracks = [track for track in tracks if track.run.records]
    return [_chart(panel, tracks) for panel in PANELS] if tracks else []


def picture(tracks: Sequence[Track], *, title: str, subtitle: str) -> bytes:
    """The essential panels as a PNG of 1600 by 1000 pixels, higher for several runs."""
    tracks = [track for track in tracks if track.run.records]
    with canvas.style("picture", size=8.5):
        width_in, height_in = _PICTURE_IN
        height_in += 0.4 * max(len(tracks) - 1, 0)  # for the other runs' verdicts
        figure = canvas.figure(width_in, height_in, dpi=_PICTURE_DPI)
        figure.text(_EDGE, 0.965, title, size=13, weight="bold", va="center")
        figure.text(_EDGE, 0.93, subtitle, size=9, color=LIGHT["soft"], va="center")
        if not tracks:
            figure.text(0.5, 0.5, "no control window has been recorded yet", ha="center")
            return canvas.png(figure)
        panels = [panel for panel in PANELS if panel.field in _IN_PICTURE]
        heights = [
            panel.height_px if panel.field else (45 if len(tracks) == 1 else 64 * len(tracks))
            for panel in panels
        ]
        grid = figure.add_gridspec(
            len(panels), height_ratios=heights,
            left=_EDGE, right=0.985, top=0.87 - _name(figure, tracks), bottom=0.065, hspace=0.32,
        )  # fmt: skip
        known = {track.label for track in tracks if len(tracks) > 1}
        for panel, cell in zip(panels, grid, strict=True):
            _in_picture(panel, figure.add_subplot(cell), tracks, known)
        figure.axes[-1].set_xlabel("optimizer step", loc="right", labelpad=1.0)
        return canvas.png(figure)


def _name(figure: Any, tracks: Sequence[Track]) -> float:
    """Name several runs under the title; returns how much further down the panels begin."""
    if len(tracks) == 1:
        return 0.0
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=t.color, ls=t.dash, lw=1.6) for t in tracks]
    names = [_short(track.label) for track in tracks]
    columns = max(1, min(len(names), _LETTERS // (max(map(len, names)) + 8)))
    figure.legend(
        lines, names, loc="upper left", bbox_to_anchor=(_EDGE, 0.945), ncols=columns,
        frameon=False, handlelength=2.6, borderaxespad=0.0, borderpad=0.0,
    )  # fmt: skip
    return 0.025 * (math.ceil(len(names) / columns) - 1)


def _in_picture(panel: Panel, ax: Any, tracks: Sequence[Track], known: set[str]) -> None:
    """known are the labels that an upper panel explains; only the lowest one numbers its steps."""
    plot = Plot(ax, points=2 * WIDE_PX)
    draw(panel, plot, tracks)
    ax.set_title(panel.title, loc="left", size=9.5, pad=5)
    if not panel.field:  # the verdicts say themselves what they are
        return
    ax.tick_params(axis="x", labelbottom=False)
    keys = {label: key.artist for label, key in plot.keys.items() if label not in known}
    known.update(keys)
    if keys:
        ax.legend(
            list(keys.values()), list(map(_short, keys)), loc="lower right",
            bbox_to_anchor=(1.0, 0.98), ncols=8, frameon=False, fontsize=8, handlelength=2.2,
            borderaxespad=0.0, columnspacing=1.4,
        )  # fmt: skip


def _chart(panel: Panel, tracks: Sequence[Track]) -> Chart:
    wide, plot, remark = _svg(panel, tracks, WIDE_PX)
    narrow, _, _ = _svg(panel, tracks, NARROW_PX)
    return Chart(panel.title, remark, plot.keys, wide, narrow)


def _svg(panel: Panel, tracks: Sequence[Track], width_px: int) -> tuple[str, Plot, str]:
    axis_px = panel.height_px if panel.field else panel.height_px * len(tracks)
    height_px = axis_px + _TOP_PX + _BOTTOM_PX
    with canvas.style(f"{panel.title} {width_px}"):
        figure = canvas.figure(width_px / canvas.PX, height_px / canvas.PX)
        axis_width, left = width_px - _LEFT_PX - _RIGHT_PX, _LEFT_PX / width_px
        ax = figure.add_axes(
            (left, _BOTTOM_PX / height_px, axis_width / width_px, axis_px / height_px)
        )
        plot = Plot(ax, points=width_px)
        remark = draw(panel, plot, tracks)
        ax.locator_params(axis="x", nbins=min(10, width_px // 75))
        ax.set_xlabel("optimizer step", loc="right", labelpad=1.0)
        return canvas.svg(figure, _alt(panel, tracks)), plot, remark


def _alt(panel: Panel, tracks: Sequence[Track]) -> str:
    """What the picture shows, in words: of every curve its ends and extremes."""
    lines = [f"{track.label}: {_in_words(panel, track) or 'nothing to show'}." for track in tracks]
    return f"{panel.title} over the optimizer steps. " + " ".join(lines)


def _in_words(panel: Panel, track: Track) -> str:
    if not panel.field:
        spans = [f"{words(s.what)} up to step {s.end:,}" for s in track.verdicts]
        more = ["and so on"] if len(spans) > _SPANS_TOLD else []
        return ", ".join(spans[:_SPANS_TOLD] + more)
    values = track.column(panel.field)
    known = values[np.isfinite(values)]
    if not known.size:
        return ""
    say = percent if panel.field == "s" else number
    ends = {"first": known[0], "last": known[-1], "lowest": known.min(), "highest": known.max()}
    return ", ".join(f"{name} {say(float(value))}" for name, value in ends.items())


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else label[: most - 3] + "..."
