"""The live view of a run: what the controller sees and does, window by window.

On a terminal it is one panel, drawn again in place; anywhere else (a file, a pipe, an ASCII-only
or dumb terminal) it is one plain line per window. It takes StepRecords and nothing else, so it
knows no engine. Marks and words carry the meaning, colour only repeats it.
"""

import math
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from scu.control import ControlSettings
from scu.trace import StepRecord

WIDTH = 80
SCALE_CELLS = 41
"""Odd, so that S* has a cell of its own in the middle."""
HISTORY = 60
"""Windows in the sparkline."""
REFRESH_PER_SEC = 1

_TICKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # eighths of a block, from low to high
_FULL, _EMPTY, _LINE, _DOT, _TARGET = "\u2588", "\u2591", "\u2500", "\u25cf", "\u2502"
_HEADER = (
    f"{'step':>7} {'loss':>8} {'data_bpt':>9} {'param_bpt':>9} {'S/S*':>15} {'lambda':>9} "
    f"{'tok/s':>8} {'left':>8}"
)


class Panel:
    """Shows the records of one run; a context manager around the training, which calls record()."""

    def __init__(self, console: Console, *, settings: ControlSettings, steps: int) -> None:
        self._console = console
        self._settings = settings
        self._steps = steps
        # Replaced, never changed in place: the panel is drawn from another thread too.
        self._records: tuple[StepRecord, ...] = ()
        self._eval: StepRecord | None = None
        self._ended = False
        self._started_sec = self._recorded_sec = time.monotonic()
        drawn = console.is_terminal and not (console.is_dumb_terminal or console.options.ascii_only)
        self._live: Live | None = None
        if drawn:
            self._live = Live(
                get_renderable=self.render, console=console, refresh_per_second=REFRESH_PER_SEC
            )

    def __enter__(self) -> Self:
        self._started_sec = time.monotonic()
        if self._live is not None:
            self._live.start()
        else:
            self._line(_HEADER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._ended = True
        if self._live is not None:
            self._live.stop()

    def record(self, record: StepRecord) -> None:
        self._records = (*self._records, record)[-HISTORY:]
        self._recorded_sec = time.monotonic()
        if record.eval_bpt is not None:
            self._eval = record
        if self._live is not None:
            self._live.refresh()
        else:
            self._line(plain_line(record, settings=self._settings, steps=self._steps))

    def render(self) -> Box:
        """The panel as it stands now; its height never changes, so that nothing jumps."""
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(min_width=8, no_wrap=True)
        rows.add_column(no_wrap=True, overflow="crop")
        for name, content in self._rows():
            rows.add_row(Text(name, "bold" if name else ""), content)
        width = min(self._console.width, WIDTH)
        return Box(rows, title="Shannon control", title_align="left", width=width, padding=(0, 1))

    def _rows(self) -> list[tuple[str, Text]]:
        settings = self._settings
        rows = [("step", self._progress())]
        if not self._records:
            waiting = f"waiting for the first window of {settings.control_interval} steps"
            return [*rows, ("", Text(waiting, "dim")), *[("", Text())] * 9]
        record = self._records[-1]
        bits = f"DataBPT {number(record.data_bpt)}   ParamBPT {number(record.param_bpt)}"
        ratio = number(record.penalty_grad_ratio)
        return [
            *rows,
            ("", Text()),
            ("S", _s_text(record.s, settings)),
            ("", _s_scale(record.s, settings)),
            ("history", _sparkline([r.s for r in self._records], settings.target_s)),
            ("lambda", Text(f"{number(record.lam):<9} integral {number(record.integral)}")),
            ("", _lambda_scale(record.lam, settings)),
            ("bits", Text(f"{bits}   loss {number(record.loss_nats)} nats")),
            ("eval", Text(self._evaluated())),
            ("gradient", Text(f"norm {number(record.grad_norm)}   penalty/gradient {ratio}")),
            ("state", _state_text(record)),
        ]

    def _progress(self) -> Text:
        last = self._records[-1] if self._records else None
        step = last.step if last is not None else 0
        share = min(step / self._steps, 1.0) if self._steps else 1.0
        full = round(share * 24)
        now_sec, left_sec = time.monotonic(), math.nan
        if last is not None:
            # Counted down between two windows, which may be minutes apart.
            since_sec = now_sec - self._recorded_sec
            left_sec = max(time_left_sec(last, steps=self._steps) - since_sec, 0.0)
        return Text.assemble(
            f"{step:>6}/{self._steps} ",
            (_FULL * full, "cyan"),
            (_EMPTY * (24 - full), "dim"),
            f" {share:4.0%}  {duration(now_sec - self._started_sec)}",
            "" if self._ended else f", {duration(left_sec)} left",
        )

    def _evaluated(self) -> str:
        if self._eval is None:
            return "-"
        bits, step = number(self._eval.eval_bpt), self._eval.step
        return f"{bits} bits/token on validation data, at step {step}"

    def _line(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def plain_line(record: StepRecord, *, settings: ControlSettings, steps: int) -> str:
    """One window as a line of fixed columns; what is not always there comes last."""
    ratio = f"{percent(record.s)}/{percent(settings.target_s)}"
    line = (
        f"{record.step:>7} {number(record.loss_nats):>8} {number(record.data_bpt):>9} "
        f"{number(record.param_bpt):>9} {ratio:>15} {number(record.lam):>9} "
        f"{_rate(record.tokens_per_sec):>8} {duration(time_left_sec(record, steps=steps)):>8}"
    )
    if record.eval_bpt is not None:
        line += f"  validation {number(record.eval_bpt)} bits/token"
    return line + (f"  held: {record.held}" if record.held else "")


def time_left_sec(record: StepRecord, *, steps: int) -> float:
    """At the mean pace so far; nan before there is one."""
    if record.step <= 0:
        return math.nan
    return record.elapsed_sec / record.step * max(steps - record.step, 0)


def number(value: float | None) -> str:
    """Three or four significant digits in at most nine characters; "-" where there is none."""
    if value is None:
        return "-"
    if value != 0.0 and math.isfinite(value) and not 1e-3 <= abs(value) < 9999.5:
        return f"{value:.2e}"
    return f"{value:#.4g}".removesuffix(".")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}" if math.isfinite(share) else f"{share}"


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss; "?" while unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(tokens_per_sec: float) -> str:
    return f"{tokens_per_sec:,.0f}" if math.isfinite(tokens_per_sec) else "?"


def _s_text(s: float, settings: ControlSettings) -> Text:
    band = settings.effective_deadband
    where, style = "not measured", "bold red"
    if math.isfinite(s):
        off = s - settings.target_s
        inside = abs(off) <= band
        where = "inside the deadband" if inside else "above S*" if off > 0.0 else "below S*"
        style = "bold cyan" if inside else "bold yellow"
    target = f"S* {percent(settings.target_s)} +- {100 * band:.2g}%"
    return Text.assemble((f"{percent(s):<9} ", style), f"{target}   ", (where, style))


def _s_scale(s: float, settings: ControlSettings) -> Text:
    """S between 0 and 2 S*: S* in the middle, the deadband in brackets, > where S is beyond."""
    top = 2.0 * settings.target_s
    middle = SCALE_CELLS // 2
    half = min(max(1, round(settings.effective_deadband / top * (SCALE_CELLS - 1))), middle)
    cells = [_LINE] * SCALE_CELLS
    cells[middle - half], cells[middle], cells[middle + half] = "[", _TARGET, "]"
    return _marked(cells, s / top, low="0", high=percent(top))


def _lambda_scale(lam: float, settings: ControlSettings) -> Text:
    """Lambda between its bounds, on a logarithmic scale; the bar across is lambda_init."""
    low, high = math.log(settings.lambda_min), math.log(settings.lambda_max)
    cells = [_LINE] * SCALE_CELLS
    share = (math.log(settings.lambda_init) - low) / (high - low)
    cells[round(share * (SCALE_CELLS - 1))] = _TARGET
    position = (math.log(lam) - low) / (high - low) if lam > 0.0 else math.nan
    return _marked(
        cells, position, low=f"{settings.lambda_min:g}", high=f"{settings.lambda_max:g} (log)"
    )


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


def _sparkline(history: Iterable[float], target_s: float) -> Text:
    """The last windows' S, between their extremes and S*; ends with the height that S* has in it.

    Spans at least a tenth of S* to both sides, so that noise on target looks like noise, and a
    little more above than below, so that S* is inside one of the heights and not between two.
    """
    history = list(history)
    known = [s for s in history if math.isfinite(s)]
    low = min([*known, 0.9 * target_s])
    high = max([*known, 1.125 * target_s])

    def tick(s: float) -> str:
        if not math.isfinite(s):
            return "x"
        return _TICKS[min(int((s - low) / (high - low) * len(_TICKS)), len(_TICKS) - 1)]

    line = "".join(map(tick, history))
    return Text.assemble((f"{line:<{HISTORY}}", "cyan"), f" {tick(target_s)} S*")


def _state_text(record: StepRecord) -> Text:
    state = f"held: {record.held}" if record.held else "controlling"
    skipped = f", {record.skipped_steps} steps skipped" if record.skipped_steps else ""
    return Text.assemble(
        f"{_rate(record.tokens_per_sec)} tokens/s   ",
        (state + skipped, "bold yellow" if record.held else ""),
        f"   {record.verdict}" if record.verdict else "",
    )
