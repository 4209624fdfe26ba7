"""Watching a run from its folder: what is read, when it ends, what is said when nothing comes."""

import io
import json
from dataclasses import asdict, replace

import pytest
import yaml
from rich.console import Console

from scu.errors import DataError
from scu.trace import StepRecord, write_json
from scu_api.watch import Tail, Watcher, watch

FIRST = StepRecord(
    step=5,
    tokens_seen=500,
    loss_nats=2.5,
    data_bpt=3.607,
    param_bpt=0.0123,
    s=0.15,
    lam=0.7332,
    integral=-0.1,
    error=0.0,
    learning_rate=1e-3,
    grad_norm=0.5,
    penalty_grad_ratio=0.02,
    tokens_per_sec=1000.0,
    elapsed_sec=5.0,
)
METADATA = {"stop_reason": "equilibrium", "duration_sec": 65.0, "optimizer_steps": 20}


def line(step: int, **values) -> str:
    record = replace(FIRST, step=step, elapsed_sec=float(step), **values)
    return json.dumps(asdict(record)) + "\n"


class Folder:
    """A run's folder, and whoever writes into it: an act between each two looks."""

    def __init__(self, path) -> None:
        self.path = path
        self.trace = path / "trace.jsonl"
        self.now_sec = 0.0
        self.acts = []

    def begin(self, steps: int = 100) -> None:
        content = {
            "model": {"base_model": "embedded"},
            "scu": {"target_s": 0.15},
            "training": {"steps": steps, "warmup_steps": 0, "cooldown_steps": 0},
            "data": {"train_data": "train.jsonl"},
        }
        (self.path / "config.yaml").write_text(yaml.safe_dump(content))
        self.trace.write_text("")
        self.now_sec = self.trace.stat().st_mtime

    def write(self, *lines: str) -> None:
        with self.trace.open("a") as file:
            file.writelines(lines)

    def finish(self) -> None:
        write_json(self.path / "metadata.json", METADATA)

    def wait(self, seconds: float) -> None:
        """Stands in for sleep; Ctrl-C after the last act."""
        self.now_sec += seconds
        if not self.acts:
            raise KeyboardInterrupt
        self.acts.pop(0)()

    def watched(self, *acts, path=None, terminal=False, **options) -> str:
        self.acts = list(acts)
        file = io.StringIO()
        console = Console(
            file=file, width=100, height=40, force_terminal=terminal, _environ={}, markup=False
        )
        watch(path or self.path, console, wait=self.wait, now=lambda: self.now_sec, **options)
        return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def run(folder):
    folder.begin()
    folder.write(line(5), line(10))
    folder.now_sec = folder.trace.stat().st_mtime
    return folder


def steps(text: str) -> list[str]:
    """The steps in plain lines."""
    return [row.split()[0] for row in text.splitlines() if row.split()[0].isdigit()]


# ---- Reading -------------------------------------------------------------------------------------


def test_each_complete_line_is_read_once(tmp_path):
    file = tmp_path / "trace.jsonl"
    tail = Tail(file)
    assert tail.read() == []
    file.write_text("one\ntwo\nthr")
    assert tail.read() == ["one", "two"]
    assert tail.read() == []
    file.write_text("one\ntwo\nthree\n\n")
    assert tail.read() == ["three"]


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    file = tmp_path / "trace.jsonl"
    file.write_text("head\n" + "x" * 10_000 + "\n")
    tail = Tail(file)
    tail.read()
    with file.open("a") as trace:
        trace.write("new\n")
    read, sizes = Tail._complete, []
    monkeypatch.setattr(
        Tail, "_complete", lambda self, new: sizes.append(len(new)) or read(self, new)
    )
    assert tail.read() == ["new"]
    assert sizes == [4]


@pytest.mark.parametrize("other", ["1\n", "other\ntwo\nthree\nfour\n", "one\n", None], ids=str)
def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path, other):
    file = tmp_path / "trace.jsonl"
    file.write_text("one\ntwo\n")
    tail = Tail(file)
    tail.read()
    file.unlink()
    if other is not None:
        file.write_text(other)
    assert tail.read() is None
    assert tail.read() == (other.split() if other else [])


def test_a_file_that_is_not_text_is_named(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"cannot read the trace .*trace\.jsonl.*utf-8"):
        Tail(file).read()


# ---- Following -----------------------------------------------------------------------------------


def test_a_run_is_followed_until_it_is_finished(run):
    def end():
        run.write(line(20))
        run.finish()

    text = run.watched(lambda: run.write(line(15)), end)
    assert steps(text) == ["5", "10", "15", "20"]
    assert text.splitlines()[-2:] == [
        "stopped   equilibrium, after 1:05",
        "steps     stopped at step 20 of 100: 80 % saved",
    ]


def test_a_finished_run_is_shown_and_not_waited_for(run):
    run.finish()
    run.wait = None
    assert steps(run.watched()) == ["5", "10"]


def test_a_watcher_that_is_left_says_nothing(run):
    assert run.watched().splitlines()[-1].split()[0] == "10"


def test_a_line_that_is_being_written_waits_for_its_end(run):
    half = line(15)
    text = run.watched(
        lambda: run.write(half[:100]), lambda: None, lambda: run.write(half[100:]), lambda: None
    )
    assert steps(text) == ["5", "10", "15"]


def test_lines_that_came_while_the_run_was_opened_are_not_shown_twice(run, monkeypatch):
    import scu_api.watch

    def read_run(path):
        run.write(line(15))
        monkeypatch.undo()
        return scu_api.watch.read_run(path)

    monkeypatch.setattr(scu_api.watch, "read_run", read_run)
    assert steps(run.watched(lambda: None)) == ["5", "10", "15"]


def test_a_run_that_is_overwritten_is_followed_from_its_start(run):
    def overwrite():
        run.begin(steps=50)
        run.write(line(5, s=0.2), line(10))

    text = run.watched(run.trace.unlink, overwrite, lambda: None)
    assert steps(text) == ["5", "10", "5", "10"]
    assert "the trace was replaced: another run begins" in text
    assert "20.00%/15.00%" in text
    assert "0:40" in text  # of 50 steps, at one second each


def test_a_folder_without_a_trace_is_waited_for(folder):
    text = folder.watched(lambda: None, folder.begin, lambda: folder.write(line(5)), lambda: None)
    assert text.count(f"waiting for {folder.trace}") == 1
    assert steps(text) == ["5"]


def test_a_lone_trace_is_followed(folder):
    trace = folder.path / "kept.jsonl"
    trace.write_text(line(5) + line(10))
    text = folder.watched(lambda: None, path=trace)
    assert steps(text) == ["5", "10"]
    assert "15.00%/15.00%" in text


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="gone does not exist; a run makes its folder when"):
        Watcher(tmp_path / "gone", Console())


def test_a_line_that_is_no_record_is_an_error(run):
    with pytest.raises(DataError, match="not a JSON line"):
        run.watched(lambda: run.write("{\n"), lambda: None)


def test_a_mount_that_goes_away_is_waited_for(run, monkeypatch):
    read = Tail.read

    def stale(self):
        raise OSError(116, "Stale file handle")

    text = run.watched(
        lambda: monkeypatch.setattr(Tail, "read", stale),
        lambda: None,
        lambda: monkeypatch.setattr(Tail, "read", read),
        lambda: run.write(line(15)),
        lambda: None,
    )
    assert text.count(f"cannot read {run.trace}: Stale file handle") == 1
    assert steps(text) == ["5", "10", "15"]


def test_a_run_that_is_replaced_as_it_ends_is_followed_on(run):
    run.finish()
    watcher = Watcher(run.path, Console(file=io.StringIO()), now=lambda: run.now_sec)
    read = watcher._tail.read

    def read_and_lose():
        (run.path / "metadata.json").unlink()
        return read()

    watcher._tail.read = read_and_lose
    assert not watcher.poll()


# ---- How old it is -------------------------------------------------------------------------------


def drawn(run, *acts, after_sec: float = 0.0) -> str:
    """The panel, after what was done, as a watcher without a terminal draws it."""
    console = Console(record=True, file=io.StringIO(), width=100, _environ={})
    with Watcher(run.path, console, still=True, now=lambda: run.now_sec) as watcher:
        watcher.poll()
        for act in acts:
            act()
            watcher.poll()
        run.now_sec += after_sec
        watcher.poll()
        watcher.panel.show()
    return console.export_text()


def test_the_age_of_the_last_record_is_shown(run):
    assert "last record 0:09 ago" in drawn(run, after_sec=9.0)


def test_the_age_counts_from_when_a_record_came(run):
    def later():
        run.now_sec += 50.0
        run.write(line(15))

    assert "last record 0:03 ago" in drawn(run, later, after_sec=3.0)


def test_a_clock_behind_that_of_the_trace_is_no_negative_age(run):
    run.now_sec -= 3600.0
    assert "last record 0:00 ago" in drawn(run)


def test_an_empty_trace_is_as_old_as_it_is(folder):
    folder.begin()
    text = drawn(folder, after_sec=600.0)
    assert "trace begun 10:00 ago" in text
    assert "waiting for the first window" in text


def test_a_run_seems_dead_after_ten_of_its_longest_windows_and_a_minute(run):
    assert "last record 1:00 ago" in drawn(run, after_sec=60.0)  # 5 seconds a window
    run.now_sec = run.trace.stat().st_mtime
    dead = "no record for 1:01, usually one every 0:05: the run seems dead"
    assert dead in drawn(run, after_sec=61.0)
    run.write(line(15), line(115))  # an evaluation took longer
    run.now_sec = run.trace.stat().st_mtime
    assert "last record 16:40 ago" in drawn(run, after_sec=1000.0)
    run.now_sec = run.trace.stat().st_mtime
    assert "the run seems dead" in drawn(run, after_sec=1001.0)


def test_a_run_that_seems_dead_is_said_so_once_in_plain_lines(run):
    text = run.watched(lambda: None, lambda: None, lambda: run.write(line(15)), every_sec=100.0)
    assert text.count("the run seems dead") == 1
    assert steps(text) == ["5", "10", "15"]


def test_a_finished_run_has_no_age(run):
    run.finish()
    assert "finished" in (text := drawn(run, after_sec=999.0))
    assert "left" not in text
    assert "seems dead" not in text


# ---- On a terminal, and once ---------------------------------------------------------------------


def test_on_a_terminal_there_is_one_panel_drawn_in_place(run):
    text = run.watched(lambda: run.write(line(15)), run.finish, terminal=True)
    assert "Shannon control" in text
    assert "15/100" in text
    assert " finished " in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "stopped   equilibrium" in text


def test_on_a_terminal_the_panel_itself_says_that_the_run_seems_dead(run):
    text = run.watched(lambda: None, every_sec=100.0, terminal=True)
    assert "\n" + "no record" not in text
    assert "no record for" in text


def test_once_prints_the_panel_and_does_not_wait(run):
    run.wait = None
    text = run.watched(once=True)
    assert len(text.splitlines()) == 19
    assert "10/100" in text
    assert "left" in text


def test_once_without_a_trace_is_an_error(folder):
    with pytest.raises(DataError, match=r"trace\.jsonl does not exist yet; there is nothing to"):
        folder.watched(once=True)
