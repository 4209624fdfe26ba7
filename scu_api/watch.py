"""A run watched from its folder alone, from another terminal: `scu watch`.

Only plain reads, and only of what is new, so a network mount and a long trace are fine. A last line
that is still being written is left for the next look; a trace that another run has replaced is
read from its start.
"""

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console

from scu.errors import DataError
from scu.numerals import duration
from scu.run_view import RunView, read_run
from scu.trace import StepRecord, parse_record
from scu_api.panel import Panel
from scu_api.summary import ending

RECENT = 20
"""Windows that tell how long a window usually takes."""
SILENT = 10
"""A run seems dead after so many of the longest of them (an evaluation makes one long) ..."""
LEAST_SILENCE_SEC = 60.0
"""... and no earlier than this."""


class Tail:
    """The complete lines of a file that grows, each of them once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._head = b""
        """The first line. The file is another one when this has changed: a network mount's inode
        numbers need not tell."""

    def read(self) -> list[str] | None:
        """What is new; None if the file is not the one that was read before, or is gone."""
        try:
            with self.path.open("rb") as file:
                same = file.read(len(self._head)) == self._head
                if same and file.seek(0, 2) >= self._offset:
                    file.seek(self._offset)
                    return self._complete(file.read())
        except FileNotFoundError:
            if not self._offset:
                return []
        self._offset, self._head = 0, b""
        return None

    def _complete(self, content: bytes) -> list[str]:
        content = content[: content.rfind(b"\n") + 1]
        self._head = self._head or content[: content.find(b"\n") + 1]
        self._offset += len(content)
        try:
            lines = content.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"cannot read the trace {self.path}: {error}") from error
        return [line for line in lines if line.strip()]


class Watcher:
    """Shows a run and looks for what is new at each poll(); a context manager."""

    def __init__(
        self,
        path: Path,
        console: Console,
        *,
        still: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not path.exists():
            raise DataError(
                f"{path} does not exist; a run makes its folder when its first step begins"
            )
        self.path = path
        self.trace = path if path.is_file() else path / "trace.jsonl"
        self.panel: Panel | None = None
        self.run: RunView | None = None
        self._console = console
        self._still = still
        self._now = now
        self._tail = Tail(self.trace)
        self._seen_sec = now()
        self._trouble = ""
        self._told = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._close()

    def poll(self) -> bool:
        """Show what is new; True once the run is finished and all of it was shown."""
        finished = False
        lines: list[str] | None = []
        try:
            # Looked for before the trace is read: it is written last, so nothing can be missed.
            finished = (self.trace.parent / "metadata.json").is_file()
            lines = self._tail.read()
            self._trouble = ""
        except OSError as error:  # a mount may come back
            self._trouble = f"cannot read {self.trace}: {error.strerror or error}"
        if lines is None:
            self._close()
            self._tell("replaced", "the trace was replaced: another run begins")
            return False
        if self.panel is None:
            if not self._open(lines):
                return False
        elif lines:
            self._seen_sec = self._now()
            self.panel.add([parse_record(line, str(self.trace)) for line in lines])
        if finished and not self._trouble:
            return self._finish()
        if self._trouble:
            self._tell("trouble", self._trouble)
        else:
            self._tell("silence" if self.silence else "", self.silence)
        return False

    @property
    def age_sec(self) -> float:
        """Of the last record, or of the trace while it is empty."""
        return max(self._now() - self._seen_sec, 0.0)

    @property
    def silence(self) -> str:
        """That the run seems dead, if it does."""
        records = self.panel.course.records[-RECENT:] if self.panel is not None else []
        usual_sec, longest_sec = _window_sec(records)
        if self.age_sec <= max(SILENT * longest_sec, LEAST_SILENCE_SEC):
            return ""
        usual = f"usually one every {duration(usual_sec)}"
        return f"no record for {duration(self.age_sec)}, {usual}: the run seems dead"

    def _open(self, lines: list[str]) -> bool:
        """Show the run from its start; False while there is nothing to show."""
        configured = (self.trace.parent / "config.yaml").is_file()
        if not self.trace.is_file() or not (lines or configured):
            self._tell("waiting", self._trouble or f"waiting for {self.trace}")
            return False
        self.run = read_run(self.path)
        # Not what was written since the lines were read: the next look finds that.
        records = self.run.records[: len(lines)]
        self._seen_sec = min(self.trace.stat().st_mtime, self._now())
        self.panel = Panel(self._console, self.run, still=self._still, footer=self._footer)
        if not self._still:
            self.panel.__enter__()
        self.panel.add(records, age_sec=self.age_sec)
        return True

    def _finish(self) -> bool:
        assert self.panel is not None
        self.run = read_run(self.path)
        if self.run.metadata is None:  # replaced meanwhile
            return False
        self.panel.end()
        self._close()
        return True

    def _close(self) -> None:
        if self.panel is not None and not self._still:
            self.panel.__exit__(None, None, None)
            self.panel = None

    def _footer(self) -> str:
        if self.run is not None and self.run.metadata is not None:
            return "finished"
        if self._trouble or self.silence:
            return self._trouble or self.silence
        what = "last record" if self.panel and self.panel.course.records else "trace begun"
        return f"{what} {duration(self.age_sec)} ago"

    def _tell(self, state: str, line: str) -> None:
        """A line of its own when a state begins; where a panel is drawn, its footer says it."""
        drawn = self.panel is not None and self.panel.is_drawn
        if state and state != self._told and not drawn and not self._still:
            self._console.print(line, soft_wrap=True)
        self._told = state


def watch(
    path: Path,
    console: Console,
    *,
    once: bool = False,
    every_sec: float = 2.0,
    wait: Callable[[float], None] | None = None,
    now: Callable[[], float] = time.time,
) -> None:
    """Follow a run until it is finished or Ctrl-C; once: print it as it stands."""
    with Watcher(path, console, still=once, now=now) as watcher:
        if once:
            watcher.poll()
            if watcher.panel is None:
                raise DataError(f"{watcher.trace} does not exist yet; there is nothing to show")
            watcher.panel.show()
            return
        try:
            while not watcher.poll():
                (wait or time.sleep)(every_sec)
        except KeyboardInterrupt:  # whoever watched has seen enough; the run goes on
            return
        assert watcher.run is not None
        assert watcher.run.metadata is not None
        for line in ending(watcher.run.metadata, budget=watcher.run.steps):
            console.print(line, soft_wrap=True)


def _window_sec(records: list[StepRecord]) -> tuple[float, float]:
    """How long a window takes, usually and at most; infinite before two are known."""
    times = [r.elapsed_sec for r in records if math.isfinite(r.elapsed_sec)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return (median(gaps), max(gaps)) if gaps else (math.inf, math.inf)
