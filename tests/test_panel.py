"""What a person sees of a run: the panel on a terminal, plain lines anywhere else."""

import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from scu.control import ControlSettings
from scu.monitor import Judgment
from scu.run_view import RunView
from scu.trace import StepRecord
from scu_api.marks import HISTORY
from scu_api.panel import Panel, duration, number, percent, plain_line, time_left_sec

SETTINGS = ControlSettings(target_s=0.15)
NAN = math.nan
TRANSIENT = Judgment(100, "transient", "S is 5% above S*", {"tau_steps": 23.456, "gain": -0.712})
EQUILIBRIUM = Judgment(150, "equilibrium", "S is at S* and lambda at rest")


def window(step: int = 10, **values) -> StepRecord:
    content = {
        "step": step,
        "tokens_seen": 100 * step,
        "loss_nats": 2.5,
        "data_bpt": 3.607,
        "param_bpt": 0.0123,
        "s": 0.15,
        "lam": 0.7332,
        "integral": -0.1,
        "error": 0.0,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "penalty_grad_ratio": 0.02,
        "tokens_per_sec": 12345.6,
        "elapsed_sec": 0.5 * step,
    }
    return StepRecord(**content | values)


NOTHING_FINITE = window(
    loss_nats=NAN,
    data_bpt=NAN,
    param_bpt=math.inf,
    s=NAN,
    lam=NAN,
    integral=NAN,
    grad_norm=NAN,
    penalty_grad_ratio=None,
    tokens_per_sec=NAN,
    elapsed_sec=NAN,
    eval_bpt=NAN,
    skipped_steps=5,
    held="skipped steps",
    verdict="diverged",
)


def run_of(settings: ControlSettings = SETTINGS, steps: int | None = 400, stop="equilibrium"):
    config = None
    if steps is not None:
        config = SimpleNamespace(
            training=SimpleNamespace(steps=steps), scu=SimpleNamespace(stop=stop)
        )
    return RunView(
        folder=Path("run"),
        name="run",
        records=(),
        settings=settings,
        config=config,
        start={"context_free_bpt": 7.5},
        metadata=None,
        notes=(),
    )


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    """Makes the monitor give these judgments from their step on; one by one, or an error."""
    script = []

    class Monitor:
        def __init__(self, settings, *, context_free_bpt=None):
            assert context_free_bpt == 7.5
            self.judgments = []

        def observe(self, record):
            for judgment in script:
                if isinstance(judgment, Exception):
                    raise judgment
                if judgment.step <= record.step and judgment not in self.judgments:
                    self.judgments.append(judgment)
            return self.judgments[-1] if self.judgments else None

    monkeypatch.setattr("scu.monitor.Monitor", Monitor)
    return lambda *judgments: script.extend(judgments)


def finding(headline: str, severity: str = "wrong") -> SimpleNamespace:
    return SimpleNamespace(headline=headline, severity=severity)


@pytest.fixture(autouse=True)
def diagnose(monkeypatch):
    """Makes the diagnosis find these; keeps what it was asked."""
    module, asked, found = ModuleType("scu.diagnose"), [], []

    def findings(run, judgments=None):
        asked.append(SimpleNamespace(run=run, judgments=list(judgments)))
        for item in found:
            if isinstance(item, Exception):
                raise item
        return list(found)

    module.findings = findings
    monkeypatch.setitem(sys.modules, "scu.diagnose", module)
    return SimpleNamespace(finds=found.extend, asked=asked)


def terminal(width: int = 80) -> Console:
    return Console(record=True, force_terminal=True, width=width, file=io.StringIO(), _environ={})


def drawn(
    *records: StepRecord,
    settings: ControlSettings = SETTINGS,
    width: int = 80,
    steps: int | None = 400,
    **panel_options,
) -> str:
    console = terminal(width)
    panel = Panel(console, run_of(settings, steps), **panel_options)
    for record in records:
        panel.record(record)
    console.print(panel.render())
    return console.export_text()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"\u2502 {name}"))


def below(text: str, name: str) -> str:
    lines = text.splitlines()
    return lines[lines.index(row(text, name)) + 1]


def printed(*records: StepRecord, **console) -> list[str]:
    file = io.StringIO()
    with Panel(Console(file=file, **console), run_of()) as panel:
        for record in records:
            panel.record(record)
    return file.getvalue().splitlines()


# ---- The panel on a terminal ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "records",
    [
        [],
        [window()],
        [window(i, s=i / 1000, eval_bpt=4.321, held="cooldown") for i in range(1, 401)],
        [window(100_000, lam=1e-4, loss_nats=1e9, param_bpt=1e-9, tokens_per_sec=9e9, s=0.999)],
        [NOTHING_FINITE],
    ],
    ids=["nothing yet", "one window", "many windows", "wide numbers", "nothing finite"],
)
def test_the_panel_keeps_its_size_at_80_columns_whatever_it_shows(records):
    lines = drawn(*records).splitlines()
    assert {len(line) for line in lines} == {80}
    assert len(lines) == 19
    for line in lines[1:-1]:
        assert line.startswith("\u2502 ")
        assert line.endswith(" \u2502")  # nothing was cropped at the border


LONG = Judgment(
    1, "saturated", "a reason " * 40, {"tau_steps": 1e9, "gain": -1e9, "gain_low": -1.0}
)


@pytest.mark.parametrize("found", [0, 1, 2, 9])
@pytest.mark.parametrize("footer", ["", "last record 0:01 ago " * 9])
def test_the_panel_keeps_its_size_whatever_is_judged_and_found(judge, diagnose, found, footer):
    judge(LONG)
    diagnose.finds([finding("a headline " * 9)] * found)
    lines = drawn(window(held="cooldown"), footer=lambda: footer).splitlines()
    assert {len(line) for line in lines} == {80}
    assert len(lines) == 19


def test_a_narrow_terminal_crops_and_never_wraps():
    lines = drawn(window(), width=50).splitlines()
    assert {len(line) for line in lines} == {50}
    assert len(lines) == 19


def test_before_the_first_window_the_panel_says_what_it_waits_for():
    assert f"waiting for the first window of {SETTINGS.control_interval} steps" in drawn()


@pytest.mark.parametrize(
    ("s", "words"),
    [
        (0.15, "inside the deadband"),
        (0.16, "above S*"),
        (0.10, "below S*"),
        (NAN, "not measured"),
    ],
)
def test_words_say_where_s_stands_without_colour(s, words):
    assert words in row(drawn(window(s=s)), "S ")


def test_the_s_scale_has_s_star_in_the_middle_between_the_brackets_of_the_deadband():
    line = "\u2500"
    empty = line * 19 + "[\u2502]" + line * 19
    assert f" 0 {empty} 30.00%" in below(drawn(window(s=NAN)), "S ")
    assert f" 0 {line * 19}[\u25cf]{line * 19} " in below(drawn(window(s=0.15)), "S ")
    assert f" 0 \u25cf{line * 18}[" in below(drawn(window(s=0.0)), "S ")
    assert f"]{line * 18}> 30.00%" in below(drawn(window(s=0.4)), "S ")


def test_a_deadband_wider_than_the_stop_tolerance_is_shown_as_narrowed():
    text = drawn(window(s=0.01), settings=ControlSettings(target_s=0.01, deadband=0.003))
    assert "S* 1.00% +- 0.025%" in row(text, "S ")


def test_the_multiplicative_law_shows_the_deadband_that_it_uses():
    settings = ControlSettings(target_s=0.01, deadband=0.003, law="multiplicative")
    text = drawn(window(s=0.012), settings=settings)
    assert "+- 0.3%" in row(text, "S ")
    assert "inside the deadband" in text
    assert "\u2500" * 14 + "[" in below(text, "S ")  # 0.003 of 0.02: six of forty cells


@pytest.mark.parametrize(("lam", "cell"), [(0.01, 0), (0.1, 10), (1.0, 20), (100.0, 40)])
def test_lambda_moves_on_a_logarithmic_scale_between_its_bounds(lam, cell):
    settings = ControlSettings(target_s=0.15, lambda_min=0.01, lambda_max=100.0)
    scale = below(drawn(window(lam=lam), settings=settings), "lambda")
    assert scale.index("\u25cf") == scale.index("0.01 ") + len("0.01 ") + cell
    assert " 100 (log)" in scale


def test_history_draws_s_between_its_extremes_and_marks_the_height_of_s_star():
    history = row(drawn(window(s=0.0), window(s=0.15), window(s=NAN), window(s=0.3)), "history")
    assert "\u2581\u2585x\u2588 " in history
    assert history.rstrip(" \u2502").endswith("\u2585 S*")


def test_noise_on_target_looks_like_noise():
    history = row(drawn(window(s=0.1501), window(s=0.1499), window(s=0.15)), "history")
    assert " \u2584\u2584\u2584 " in history


def test_history_holds_the_last_windows():
    records = [window(i, s=0.0 if i == 1 else 0.3) for i in range(1, HISTORY + 2)]
    assert "\u2588" * HISTORY in row(drawn(*records), "history")


def test_the_last_validation_stays_in_view_with_its_step():
    text = drawn(window(20, eval_bpt=3.21), window(30))
    assert "3.210 bits/token on validation data, at step 20" in row(text, "eval")


def test_the_state_names_why_the_controller_was_held():
    assert "controlling" in row(drawn(window()), "state")
    text = drawn(window(held="skipped steps", skipped_steps=2))
    assert "held: skipped steps, 2 steps skipped" in row(text, "state")


# ---- Verdict, plant, findings --------------------------------------------------------------------


def test_the_verdict_in_force_stands_with_its_step_and_its_reason(judge):
    judge(TRANSIENT, EQUILIBRIUM)
    text = drawn(window(90), window(100), window(110))
    assert "transient, at step 100  " in row(text, "verdict")
    assert "S is 5% above S*" in below(text, "verdict")
    text = drawn(window(100), window(150))
    assert "equilibrium, at step 150" in row(text, "verdict")


def test_a_long_reason_takes_two_lines_and_says_that_it_goes_on(judge):
    judge(LONG)
    first, second = drawn(window()).split("verdict")[1].splitlines()[1:3]
    assert "a reason a reason" in first
    assert second.rstrip(" \u2502").endswith("...")


def test_before_the_first_judgment_it_says_that_there_is_none():
    text = drawn(window())
    assert "none yet" in row(text, "verdict")
    assert "not judged before the first full window" in below(text, "verdict")


def test_a_verdict_in_the_trace_stands_until_there_is_a_judgment():
    assert "oscillating" in row(drawn(window(verdict="oscillating")), "verdict")


def test_another_stop_rule_is_named_beside_the_verdict(judge):
    judge(TRANSIENT)
    console = terminal()
    panel = Panel(console, run_of(stop="never"))
    panel.record(window(100))
    console.print(panel.render())
    assert "transient, at step 100   (stop: never)" in console.export_text()


@pytest.mark.parametrize(
    ("judgment", "shrink_rate", "words"),
    [
        (None, None, "plant     - "),
        (None, 0.04, "time constant 25 steps from the pull  "),
        (None, 0.0, "no pull arrives at the weights"),
        (TRANSIENT, 0.04, "time constant 23.5 steps from the pull, gain -0.712 (assumed)"),
        (
            replace(TRANSIENT, statistics={"tau_steps": 9.0, "gain": -0.8, "gain_low": -0.9}),
            0.04,
            "time constant 9 steps from the pull, gain -0.8 (this run)",
        ),
        (
            replace(TRANSIENT, statistics={"tau_steps": 9.0, "gain": -0.8, "pulse_gain": -0.9}),
            0.04,
            "time constant 9 steps from the pull, gain -0.9 (from a pulse)",
        ),
        (EQUILIBRIUM, 0.04, "time constant 25 steps from the pull  "),
    ],
)
def test_the_plant_is_as_judged_and_before_that_as_the_pull_tells(
    judge, judgment, shrink_rate, words
):
    judge(*[judgment] * (judgment is not None))
    assert words in row(drawn(window(150, shrink_rate=shrink_rate)), "plant")


def test_findings_stand_at_the_bottom_the_wrong_ones_first(judge, diagnose):
    judge(TRANSIENT)
    diagnose.finds([finding("lambda is near a bound", "remark"), finding("S is off S*")])
    first, second = drawn(window(100)).splitlines()[-3:-1]
    assert first.startswith("\u2502 ! S is off S* ")
    assert second.startswith("\u2502 - lambda is near a bound ")


def test_more_findings_than_fit_are_counted(judge, diagnose):
    judge(TRANSIENT)
    diagnose.finds([finding(f"finding {i}") for i in range(4)])
    first, second = drawn(window(100)).splitlines()[-3:-1]
    assert "! finding 0" in first
    assert "and 3 more findings: scu diagnose" in second


def test_no_findings_is_said_once_there_was_a_diagnosis(judge):
    judge(TRANSIENT)
    assert "no findings" not in drawn(window(90))
    assert "no findings" in drawn(window(100))


def test_there_is_one_diagnosis_for_each_judgment_of_all_windows_so_far(judge, diagnose):
    judge(TRANSIENT, EQUILIBRIUM)
    records = [window(step) for step in range(80, 200, 10)]
    drawn(*records)
    assert [asked.run.records[-1].step for asked in diagnose.asked] == [100, 150]
    assert diagnose.asked[1].run.records == tuple(records[:8])
    assert diagnose.asked[1].judgments == [TRANSIENT, EQUILIBRIUM]


def test_a_trace_that_is_caught_up_with_is_diagnosed_once(judge, diagnose):
    judge(TRANSIENT, EQUILIBRIUM)
    Panel(terminal(), run_of()).add([window(step) for step in range(80, 200, 10)])
    assert [asked.run.records[-1].step for asked in diagnose.asked] == [190]


def test_a_diagnosis_that_fails_is_shown_and_goes_when_the_next_succeeds(judge, diagnose):
    judge(TRANSIENT, EQUILIBRIUM)
    console = terminal()
    panel = Panel(console, run_of())
    diagnose.finds([ZeroDivisionError("of\nwhat")])
    panel.record(window(100))
    console.print(panel.render())
    assert "the diagnosis failed: ZeroDivisionError: of what" in console.export_text()
    sys.modules["scu.diagnose"].findings = lambda run, judgments: []
    panel.record(window(150))
    console.print(panel.render())
    assert "no findings" in console.export_text()


def test_a_monitor_that_fails_is_shown_and_does_not_stop_the_run(judge):
    judge(ValueError("no such window"))
    text = drawn(window(10), window(20))
    assert "judging failed: ValueError: no such window" in text
    assert "20/400" in text


# ---- Cooldown and the end ------------------------------------------------------------------------


def cooldown(step: int, rate: float) -> StepRecord:
    return window(step, held="cooldown", learning_rate=rate)


def test_in_the_cooldown_the_rate_tells_where_the_run_ends():
    records = [window(200), cooldown(205, 0.16), cooldown(210, 0.11)]  # 0.01 per step: last at 220
    text = drawn(*records)
    assert "cooldown: lambda held, ends at step 220" in row(text, "state")
    assert "210/220" in row(text, "step")
    assert "0:05 left" in row(text, "step")  # half a second per step


def test_the_first_window_of_a_cooldown_tells_its_end_already():
    text = drawn(window(200, learning_rate=0.2), cooldown(205, 0.16))
    assert "cooldown: lambda held, ends at step 220" in row(text, "state")


def test_a_cooldown_of_which_only_one_window_is_known_keeps_the_planned_end():
    text = drawn(cooldown(205, 0.16))
    assert "cooldown: lambda held, ends at step 400" in row(text, "state")


def test_a_cooldown_after_a_window_of_one_step_keeps_the_planned_end():
    text = drawn(window(204, learning_rate=0.2), cooldown(205, 0.2))
    assert "cooldown: lambda held, ends at step 400" in row(text, "state")


def test_a_cooldown_that_was_planned_ends_as_planned():
    text = drawn(cooldown(390, 0.105), cooldown(395, 0.05))
    assert "395/400" in row(text, "step")


def test_the_last_record_of_a_cooldown_is_the_end():
    text = drawn(cooldown(215, 0.06), cooldown(220, 0.01))
    assert "220/220" in row(text, "step")
    assert "cooldown: lambda held, ended at step 220" in row(text, "state")
    assert "100%" in row(text, "step")


@pytest.mark.parametrize("rate", [0.2, NAN, 0.3])
def test_a_rate_that_does_not_fall_tells_nothing_about_the_end(rate):
    assert "/400" in row(drawn(cooldown(205, 0.2), cooldown(210, rate)), "step")


def test_a_run_without_a_plan_has_steps_and_no_bar():
    text = drawn(window(100), steps=None)
    assert " 100   0:50, ? left" in row(text, "step")
    assert "verdict" in text
    held = row(drawn(cooldown(100, 0.1), steps=None), "state")
    assert "cooldown: lambda held, ends at learning rate 0" in held


def test_records_that_are_old_when_they_come_count_as_old(monkeypatch):
    monkeypatch.setattr("scu_api.panel.time.monotonic", lambda: 1000.0)
    console = terminal()
    panel = Panel(console, run_of())
    panel.add([window(100, elapsed_sec=50.0)], age_sec=30.0)
    console.print(panel.render())
    assert "1:20, 2:00 left" in console.export_text()


def test_a_pulse_is_named_for_what_it_does():
    text = drawn(window(held="pulse"))
    assert "pulse: lambda is moved, to see S answer" in row(text, "state")


def test_time_left_counts_down_between_windows(monkeypatch):
    now_sec = 1000.0
    monkeypatch.setattr("scu_api.panel.time.monotonic", lambda: now_sec)
    console = terminal()
    panel = Panel(console, run_of())
    now_sec = 1050.0
    panel.record(window(100, elapsed_sec=50.0))
    now_sec = 1060.0
    console.print(panel.render())
    assert "100/400" in (text := console.export_text())
    assert "25%  1:00, 2:20 left" in text


def test_the_live_panel_is_drawn_on_a_terminal_and_leaves_the_cursor_as_it_was():
    console = terminal()
    with Panel(console, run_of()) as panel:
        panel.record(window())
    text = console.file.getvalue()
    assert "Shannon control" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_run_that_has_ended_has_no_time_left():
    console = terminal()
    with Panel(console, run_of()) as panel:
        panel.record(window())
    console.export_text()
    console.print(panel.render())
    assert "left" not in row(console.export_text(), "step")


def test_an_error_in_training_ends_the_live_panel():
    console = terminal()
    with pytest.raises(RuntimeError), Panel(console, run_of()):
        raise RuntimeError
    assert "\x1b[?25h" in console.file.getvalue()


# ---- Plain lines ---------------------------------------------------------------------------------


def test_anything_but_a_terminal_gets_a_header_and_one_plain_line_per_window():
    header, first, second = printed(window(10), window(20))
    assert header.split() == [
        "step", "loss", "data_bpt", "param_bpt", "S/S*", "lambda", "tok/s", "left"
    ]  # fmt: skip
    assert first.split() == [
        "10", "2.500", "3.607", "0.01230", "15.00%/15.00%", "0.7332", "12,346", "3:15"
    ]  # fmt: skip
    assert len(header) == len(first) == len(second)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-4, 0.5, 9999.9, 1e9, 1e30, NAN, math.inf])
def test_columns_stay_in_line_for_any_number(value):
    record = window(loss_nats=value, data_bpt=value, param_bpt=value, lam=value)
    assert len(plain_line(record, settings=SETTINGS, end=400)) == len(printed()[0])


def test_a_plain_line_ends_with_validation_and_why_the_controller_was_held():
    line = plain_line(window(eval_bpt=3.5, held="cooldown"), settings=SETTINGS, end=400)
    assert line.endswith("  validation 3.500 bits/token  held: cooldown")


def test_a_plain_line_without_a_finite_number_is_still_a_line():
    line = plain_line(NOTHING_FINITE, settings=SETTINGS, end=400)
    assert line.split()[:8] == ["10", "nan", "nan", "inf", "nan/15.00%", "nan", "?", "?"]


def test_a_plain_line_ends_with_the_verdict_when_it_changes(judge):
    judge(TRANSIENT, EQUILIBRIUM)
    lines = printed(*(window(step) for step in (90, 100, 110, 150, 160)))[1:]
    ends = [line.partition("  verdict: ")[2] for line in lines]
    assert ends == ["", "transient", "", "equilibrium", ""]


def test_in_plain_lines_a_monitor_that_fails_is_a_line_once(judge):
    judge(ValueError("no such window"))
    lines = printed(window(10), window(20))
    assert lines[2] == "judging failed: ValueError: no such window"
    assert [line.split()[0] for line in lines] == ["step", "10", "judging", "20"]


def test_plain_lines_need_no_diagnosis(judge, diagnose):
    judge(TRANSIENT)
    printed(window(100))
    assert diagnose.asked == []


def test_a_still_panel_shows_nothing_until_it_is_asked(judge, diagnose):
    judge(TRANSIENT)
    diagnose.finds([finding("S is off S*")])
    file = io.StringIO()
    panel = Panel(Console(file=file, width=80), run_of(), still=True, footer=lambda: "as it was")
    panel.record(window(100))
    assert file.getvalue() == ""
    panel.show()
    lines = file.getvalue().splitlines()
    assert len(lines) == 19
    assert "! S is off S*" in lines[-3]
    assert " as it was " in lines[-1]


def test_a_still_panel_is_plain_lines_where_it_cannot_be_drawn(judge, diagnose):
    judge(TRANSIENT)
    diagnose.finds([finding("S is off S*")])
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    panel = Panel(Console(file=file, width=80), run_of(), still=True, footer=lambda: "as it was")
    panel.record(window(100))
    panel.show()
    file.seek(0)
    header, line, *rest = file.read().splitlines()
    assert header.split()[0] == "step"
    assert line.endswith("  verdict: transient")
    assert rest == ["S is 5% above S*", "! S is off S*", "as it was"]


def test_a_dumb_terminal_gets_plain_lines():
    lines = printed(window(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    assert len(lines) == 2


def test_a_terminal_without_block_characters_gets_plain_lines():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, force_terminal=True, width=80, _environ={})
    with Panel(console, run_of()) as panel:
        panel.record(window())
    file.seek(0)
    assert len(file.read().splitlines()) == 2


# ---- Numbers -------------------------------------------------------------------------------------


def test_time_left_is_that_of_the_mean_pace():
    assert time_left_sec(window(100, elapsed_sec=50.0), end=400) == pytest.approx(150.0)
    assert time_left_sec(window(400, elapsed_sec=50.0), end=400) == 0.0
    assert math.isnan(time_left_sec(window(0, elapsed_sec=0.0), end=400))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3600.0, "1:00:00"), (NAN, "?")],
)
def test_durations_read_as_on_a_clock(seconds, text):
    assert duration(seconds) == text


def test_numbers_have_one_form_each():
    assert [number(v) for v in (None, 0.0, 0.5, 1234.56, 1e-4, 1e5, NAN)] == [
        "-", "0.000", "0.5000", "1235", "1.00e-04", "1.00e+05", "nan"
    ]  # fmt: skip
    assert [percent(v) for v in (None, 0.0321, NAN)] == ["-", "3.21%", "nan"]
