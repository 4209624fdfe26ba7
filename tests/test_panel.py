"""What a person sees of a run: the panel on a terminal, plain lines anywhere else."""

import io
import math

import pytest
from rich.console import Console

from scu.control import ControlSettings
from scu.trace import StepRecord
from scu_api.panel import HISTORY, Panel, duration, number, percent, plain_line, time_left_sec

SETTINGS = ControlSettings(target_s=0.15)
NAN = math.nan


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


def terminal(width: int = 80) -> Console:
    return Console(record=True, force_terminal=True, width=width, file=io.StringIO(), _environ={})


def drawn(*records: StepRecord, settings: ControlSettings = SETTINGS, width: int = 80) -> str:
    console = terminal(width)
    panel = Panel(console, settings=settings, steps=400)
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
    with Panel(Console(file=file, **console), settings=SETTINGS, steps=400) as panel:
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
    assert len(lines) == 13
    for line in lines[1:-1]:
        assert line.startswith("\u2502 ")
        assert line.endswith(" \u2502")  # nothing was cropped at the border


def test_a_narrow_terminal_crops_and_never_wraps():
    lines = drawn(window(), width=50).splitlines()
    assert {len(line) for line in lines} == {50}
    assert len(lines) == 13


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


def test_time_left_counts_down_between_windows(monkeypatch):
    now_sec = 1000.0
    monkeypatch.setattr("scu_api.panel.time.monotonic", lambda: now_sec)
    console = terminal()
    panel = Panel(console, settings=SETTINGS, steps=400)
    now_sec = 1050.0
    panel.record(window(100, elapsed_sec=50.0))
    now_sec = 1060.0
    console.print(panel.render())
    assert "100/400" in (text := console.export_text())
    assert "25%  1:00, 2:20 left" in text


def test_the_live_panel_is_drawn_on_a_terminal_and_leaves_the_cursor_as_it_was():
    console = terminal()
    with Panel(console, settings=SETTINGS, steps=400) as panel:
        panel.record(window())
    text = console.file.getvalue()
    assert "Shannon control" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_run_that_has_ended_has_no_time_left():
    console = terminal()
    with Panel(console, settings=SETTINGS, steps=400) as panel:
        panel.record(window())
    console.export_text()
    console.print(panel.render())
    assert "left" not in row(console.export_text(), "step")


def test_an_error_in_training_ends_the_live_panel():
    console = terminal()
    with pytest.raises(RuntimeError), Panel(console, settings=SETTINGS, steps=400):
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
    assert len(plain_line(record, settings=SETTINGS, steps=400)) == len(printed()[0])


def test_a_plain_line_ends_with_validation_and_why_the_controller_was_held():
    line = plain_line(window(eval_bpt=3.5, held="cooldown"), settings=SETTINGS, steps=400)
    assert line.endswith("  validation 3.500 bits/token  held: cooldown")


def test_a_plain_line_without_a_finite_number_is_still_a_line():
    line = plain_line(NOTHING_FINITE, settings=SETTINGS, steps=400)
    assert line.split()[:8] == ["10", "nan", "nan", "inf", "nan/15.00%", "nan", "?", "?"]


def test_a_dumb_terminal_gets_plain_lines():
    lines = printed(window(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    assert len(lines) == 2


def test_a_terminal_without_block_characters_gets_plain_lines():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, force_terminal=True, width=80, _environ={})
    with Panel(console, settings=SETTINGS, steps=400) as panel:
        panel.record(window())
    file.seek(0)
    assert len(file.read().splitlines()) == 2


# ---- Numbers -------------------------------------------------------------------------------------


def test_time_left_is_that_of_the_mean_pace():
    assert time_left_sec(window(100, elapsed_sec=50.0), steps=400) == pytest.approx(150.0)
    assert time_left_sec(window(400, elapsed_sec=50.0), steps=400) == 0.0
    assert math.isnan(time_left_sec(window(0, elapsed_sec=0.0), steps=400))


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
