"""The live view of a run: what the controller sees and does, window by window.

On a terminal it is one panel, drawn again in place; anywhere else (a file, a pipe, an ASCII-only
or dumb terminal) it is one plain line per window. It takes StepRecords and nothing else, so it
knows no engine. Marks and words carry the meaning, colour only repeats it.
"""

import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from scu.control import ControlSettings
from scu.numerals import duration
from scu.trace import StepRecord
from scu_api.course import Course
from scu_api.marks import (
    HISTORY,
    bar,
    log_scale,
    number,
    percent,
    rate,
    s_scale,
    sparkline,
)

if TYPE_CHECKING:
    from scu.run_view import RunView

__all__ = ["Panel", "duration", "number", "percent", "plain_line", "time_left_sec"]

WIDTH = 80
REFRESH_PER_SEC = 1
_CELLS = WIDTH - 14
"""What the border and the rows' names leave of the width."""
_HEADER = (
    f"{'step':>7} {'loss':>8} {'data_bpt':>9} {'param_bpt':>9} {'S/S*':>15} {'lambda':>9} "
    f"{'tok/s':>8} {'left':>8}"
)


class Panel:
    """Shows one run; a context manager around the training, which calls record() for each window.

    still: nothing is shown until show() is called.
    """

    def __init__(
        self,
        console: Console,
        run: "RunView",
        *,
        still: bool = False,
        footer: Callable[[], str] = lambda: "",
    ) -> None:
        self._console = console
        self._settings = run.settings
        self.course = Course(run)
        self._footer = footer
        self._ended = False
        self._verdict = self._trouble = ""
        self._recorded_sec = time.monotonic()
        self._boxed = not (console.is_dumb_terminal or console.options.ascii_only)
        self._live: Live | None = None
        self._lines = not still
        if console.is_terminal and self._boxed and not still:
            self._lines = False
            self._live = Live(
                get_renderable=self.render, console=console, refresh_per_second=REFRESH_PER_SEC
            )

    @property
    def is_drawn(self) -> bool:
        """In place, on a terminal."""
        return self._live is not None

    def __enter__(self) -> Self:
        self._recorded_sec = time.monotonic()
        if self._live is not None:
            self._live.start()
        elif self._lines:
            self._line(_HEADER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.end()
        if self._live is not None:
            self._live.stop()

    def record(self, record: StepRecord) -> None:
        self.add([record])

    def add(self, records: Iterable[StepRecord], *, age_sec: float = 0.0) -> None:
        """Take records, the last of which is age_sec old: one diagnosis and one drawing for all."""
        for record in records:
            self._recorded_sec = time.monotonic() - age_sec
            self.course.add(record)
            verdict = self.course.verdict
            if self._lines:
                self._line(
                    plain_line(
                        record,
                        settings=self._settings,
                        end=self.course.end,
                        verdict="" if verdict == self._verdict else verdict,
                    )
                )
                if self.course.trouble not in ("", self._trouble):
                    self._line(self.course.trouble)
                self._trouble = self.course.trouble
            self._verdict = verdict
        if not self._lines:
            self.course.diagnose()
        if self._live is not None:
            self._live.refresh()

    def end(self) -> None:
        """The run is over: no time is left, and none passes any more."""
        self._ended = True

    def show(self) -> None:
        """Print the panel as it stands; in plain lines where it cannot be drawn."""
        if self._boxed:
            self._console.print(self.render())
            return
        self._line(_HEADER)
        if (last := self.course.last) is not None:
            end, verdict = self.course.end, self.course.verdict
            self._line(plain_line(last, settings=self._settings, end=end, verdict=verdict))
        reason = self.course.reason(width=WIDTH)
        for text in (*reason, *self.course.headlines, self._footer()):
            if text:
                self._line(text)

    def render(self) -> Box:
        """The panel as it stands now; its height never changes, so that nothing jumps."""
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(min_width=8, no_wrap=True)
        rows.add_column(no_wrap=True, overflow="crop")
        for name, content in self._rows():
            rows.add_row(Text(name, "bold" if name else ""), content)
        return Box(
            Group(rows, *map(_headline_text, self.course.headlines)),
            title="Shannon control",
            title_align="left",
            subtitle=Text(self._footer()) if self._footer() else None,
            subtitle_align="left",
            width=min(self._console.width, WIDTH),
            padding=(0, 1),
        )

    def _rows(self) -> list[tuple[str, Text]]:
        settings, course = self._settings, self.course
        rows = [("step", self._progress()), ("", Text())]
        record = course.last
        if record is None:
            waiting = f"waiting for the first window of {settings.control_interval} steps"
            return [rows[0], ("", Text(waiting, "dim")), *[("", Text())] * 13]
        bits = f"DataBPT {number(record.data_bpt)}   ParamBPT {number(record.param_bpt)}"
        ratio = number(record.penalty_grad_ratio)
        history = [r.s for r in course.records[-HISTORY:]]
        deadband = settings.effective_deadband
        bounds = {"low": settings.lambda_min, "high": settings.lambda_max}
        first, second = course.reason(width=_CELLS)
        return [
            *rows,
            ("S", _s_text(record.s, settings)),
            ("", s_scale(record.s, target_s=settings.target_s, deadband=deadband)),
            ("history", sparkline(history, target_s=settings.target_s)),
            ("lambda", Text(f"{number(record.lam):<9} integral {number(record.integral)}")),
            ("", log_scale(record.lam, middle=settings.lambda_init, **bounds)),
            ("bits", Text(f"{bits}   loss {number(record.loss_nats)} nats")),
            ("eval", Text(_evaluated(course.evaluated))),
            ("gradient", Text(f"norm {number(record.grad_norm)}   penalty/gradient {ratio}")),
            ("state", _state_text(record, course.state)),
            ("plant", Text(course.plant)),
            ("verdict", Text(course.verdict_line, "bold")),
            ("", Text(first)),
            ("", Text(second)),
        ]

    def _progress(self) -> Text:
        last, end = self.course.last, self.course.end
        step = last.step if last is not None else 0
        # Counted on between two windows, which may be minutes apart.
        since_sec = 0.0 if self._ended else time.monotonic() - self._recorded_sec
        spent_sec = (last.elapsed_sec if last is not None else 0.0) + since_sec
        left_sec = math.nan
        if last is not None and end is not None:
            left_sec = max(time_left_sec(last, end=end) - since_sec, 0.0)
        left = "" if self._ended else f", {duration(left_sec)} left"
        if end is None:
            return Text(f"{step:>6}   {duration(spent_sec)}{left}")
        share = min(step / end, 1.0) if end else 1.0
        return Text.assemble(
            f"{step:>6}/{end} ",
            bar(share, cells=24),
            f" {share:4.0%}  {duration(spent_sec)}{left}",
        )

    def _line(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def plain_line(
    record: StepRecord, *, settings: ControlSettings, end: int | None, verdict: str = ""
) -> str:
    """One window as a line of fixed columns; what is not always there comes last."""
    ratio = f"{percent(record.s)}/{percent(settings.target_s)}"
    left_sec = math.nan if end is None else time_left_sec(record, end=end)
    line = (
        f"{record.step:>7} {number(record.loss_nats):>8} {number(record.data_bpt):>9} "
        f"{number(record.param_bpt):>9} {ratio:>15} {number(record.lam):>9} "
        f"{rate(record.tokens_per_sec):>8} {duration(left_sec):>8}"
    )
    if record.eval_bpt is not None:
        line += f"  validation {number(record.eval_bpt)} bits/token"
    line += f"  held: {record.held}" if record.held else ""
    return line + (f"  verdict: {verdict}" if verdict else "")


def time_left_sec(record: StepRecord, *, end: int) -> float:
    """At the mean pace so far; nan before there is one."""
    if record.step <= 0:
        return math.nan
    return record.elapsed_sec / record.step * max(end - record.step, 0)


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


def _evaluated(record: StepRecord | None) -> str:
    if record is None:
        return "-"
    return f"{number(record.eval_bpt)} bits/token on validation data, at step {record.step}"


def _state_text(record: StepRecord, state: str) -> Text:
    skipped = f", {record.skipped_steps} steps skipped" if record.skipped_steps else ""
    return Text.assemble(
        f"{rate(record.tokens_per_sec)} tokens/s   ",
        (state + skipped, "bold yellow" if record.held else ""),
    )


def _headline_text(line: str) -> Text:
    style = "bold yellow" if line.startswith("!") else ""
    return Text(line, style, no_wrap=True, overflow="ellipsis")
