"""Report and picture: complete, self-contained, escaped, and true to the trace."""

import json
import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scu.control import ControlSettings, start, update
from scu.errors import OutputError
from scu.monitor import STATISTICS, Judgment
from scu.numerals import duration, number, percent, whole
from scu.report import page as report
from scu.report import story, write_report
from scu.report.canvas import DARK, LIGHT, Plot, smooth, thin
from scu.report.charts import charts
from scu.report.key_figures import compared, key_figures
from scu.report.panels import PANELS, Track, draw
from scu.report.spans import Span, held_spans, planned_steps, verdict_spans
from scu.run_view import RunView, read_run
from scu.trace import StepRecord, TraceWriter

NAN = math.nan
NASTY = "</title><script>alert('x')</script> & \"$\\frac\" _x"
METADATA = {
    "s_at_start": 0.0,
    "tokens_per_epoch": 4000,
    "optimizer_steps": 300,
    "stop_reason": "equilibrium",
    "stop_detail": "S is at S* & at rest",
    "verdict": "equilibrium",
    "notes": ["N = 4,000 <tokens>"],
}


def window(step: int = 5, **values) -> StepRecord:
    content = {
        "step": step,
        "tokens_seen": 100 * step,
        "loss_nats": 4.0,
        "data_bpt": 6.0,
        "param_bpt": 0.3,
        "s": 0.05,
        "lam": 1.0,
        "integral": 0.0,
        "error": 0.1,
        "learning_rate": 1e-3,
        "grad_norm": None,
        "penalty_grad_ratio": None,
        "tokens_per_sec": 100.0,
        "elapsed_sec": 1.0 * step,
    }
    return StepRecord(**content | values)


def controlled(windows: int = 60, *, target_s: float = 0.05) -> list[StepRecord]:
    """A plant under control, with validation, two pulses, a skipped step and a cooldown."""
    settings = ControlSettings(target_s=target_s)
    state, param, records = start(settings), 1e-4, []
    for i in range(1, windows + 1):
        data = 6.0 - 1.2 * (1.0 - math.exp(-i / 15)) + 0.1 * math.sin(2.0 * i)
        param += 0.3 * (0.3 * state.lam**-0.8 - param)
        held = "cooldown" if i > 0.9 * windows else "pulse" if i in (30, 31) else ""
        held = "skipped steps" if i == 20 else held
        if not held:
            state = update(state, data_bpt=data, param_bpt=param, settings=settings)
        records.append(
            window(
                5 * i,
                data_bpt=data,
                param_bpt=param,
                s=param / (param + data) if held else state.s,
                lam=state.lam,
                integral=state.integral,
                error=state.error,
                held=held,
                skipped_steps=int(i == 20),
                eval_bpt=5.5 - 0.01 * i if i % 10 == 0 else None,
                verdict="" if i < 20 else "transient" if i < 40 else "equilibrium",
            )
        )
    return records


def folder_of(parent: Path, name: str = "run", records=(), *, target_s=0.05, **metadata) -> Path:
    """A run's folder; without metadata it is not finished."""
    folder = parent / name
    folder.mkdir(parents=True)
    with TraceWriter(folder / "trace.jsonl") as writer:
        for record in records:
            writer.write(record)
    (folder / "config.yaml").write_text(
        f"model: {{base_model: embedded}}\nscu: {{target_s: {target_s}}}  # <b>\n"
        "training: {steps: 1200}\ndata: {train_data: text.txt}\n"
    )
    if metadata:
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def a_run(parent: Path, *args, **values) -> RunView:
    return read_run(folder_of(parent, *args, **values))


def page_of(*runs: RunView, into: Path) -> str:
    return write_report(runs, into)[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunView:
    return a_run(tmp_path_factory.mktemp("runs"), "run", controlled(), **METADATA)


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory) -> tuple[Path, Path]:
    return write_report([finished], tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written) -> str:
    return written[0].read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Notes what does not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.wrong, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def says(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text


def test_page_and_picture_are_written_and_named(written):
    assert [path.name for path in written] == ["report.html", "run.png"]
    head = written[1].read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:]) == (1600, 1000)


def test_nothing_but_the_two_files_is_left(written):
    assert sorted(path.name for path in written[0].parent.iterdir()) == ["report.html", "run.png"]


def test_the_page_asks_for_nothing(page):
    lowered = page.lower()
    for word in (
        "http:",
        "https:",
        "//",
        "<script",
        "@import",
        "<link",
        "<img",
        "<iframe",
        " src=",
    ):
        assert word not in lowered.replace("</", "")
    assert set(re.findall(r"url\((.)", lowered)) <= {"#"}
    assert set(re.findall(r'href="(.)', lowered)) <= {"#"}


def test_what_the_page_refers_to_is_in_it_once(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(ids)


def test_the_page_nests(page):
    tags = Tags(page)
    assert tags.wrong == []
    assert tags.open == []


def test_every_chart_has_words_for_who_cannot_see_it(page):
    pictures = re.findall(r'<svg role="img"[^>]*><title>([^<]+)</title>', page)
    assert len(pictures) == page.count('<svg role="img"') == 2 * len(PANELS)
    says(" ".join(pictures), "first", "highest", "equilibrium up to step 300")


def test_tables_have_headings(page):
    assert page.count("<table") == page.count("<thead>")
    for table in re.findall(r"<table.*?</table>", page, flags=re.S):
        assert table.count('<th scope="col"') == len(re.findall("<t[hd]", table.split("<tr>")[1]))


def test_every_colour_follows_light_and_dark(page):
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= LIGHT.keys() | {"tone"}
    for drawing in re.findall(r'<svg role="img".*?</svg>', page, flags=re.S):
        assert not re.search(r"#[0-9a-f]{6}\b", drawing)


def test_the_page_says_what_happened_and_why_it_ended(page):
    text = " ".join(Tags(page).text)
    says(text, "Ended after step 300 of 1,200: equilibrium (S is at S* & at rest).")
    says(text, "900 not run (75%)", "N = 4,000, 7.5 passes", "S started at 0%, came within 5%")
    says(text, "the controller paused in 3 windows (skipped steps 1, pulse 2)")
    says(text, "1 step was skipped", "kp 0.8, ki 0.15", "# <b>", "N = 4,000 <tokens>")


def test_the_legend_names_bands_pauses_and_validation(page):
    legends = " ".join(re.findall(r'<ul class="legend">(.*?)</ul>', page))
    says(legends, "S* = 5.00%", "\u00b15% of S*", "deadband", "cooldown", "pulse")
    says(legends, "paused: skipped steps", "validation", "P = kp \u00d7 error", "mean of 5 windows")


def test_the_same_run_gives_the_same_bytes(finished, written, tmp_path):
    again = write_report([finished], tmp_path / "new" / "folder")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


def test_a_report_leaves_the_callers_matplotlib_alone(finished):
    import matplotlib

    matplotlib.rcParams["font.size"] = 33.0
    try:
        charts([Track(finished, [], label="run", place=0)])
        assert matplotlib.rcParams["font.size"] == 33.0
    finally:
        matplotlib.rcdefaults()


def test_what_a_run_brings_is_escaped(tmp_path):
    metadata = METADATA | {"stop_reason": NASTY, "notes": [NASTY], "verdict": NASTY}
    run = a_run(tmp_path, "$a <b> _", [window(held=NASTY, verdict=NASTY)] * 2, **metadata)
    page = page_of(run, into=tmp_path / "out")
    assert Tags(page).wrong == []
    assert "<script" not in page
    assert "<b>" not in page


def test_a_name_without_glyphs_or_encoding_is_shown_somehow(tmp_path):
    run = a_run(tmp_path, "\u6a21\u578b \udcff\n", [window()])
    assert "\u6a21\u578b ??" in page_of(run, into=tmp_path / "out")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_that_has_just_begun(tmp_path, count):
    run = a_run(tmp_path, "run", [window(5 * i + 5) for i in range(count)])
    text = " ".join(Tags(page_of(run, into=tmp_path / "out")).text)
    says(text, "not judged", "Not finished", "step 5" if count else "There is nothing to draw yet")


def test_a_run_without_a_finite_number(tmp_path):
    names = "loss_nats data_bpt param_bpt s lam integral error learning_rate tokens_per_sec"
    nothing = dict.fromkeys([*names.split(), "elapsed_sec", "eval_bpt"], NAN)
    records = [window(5 * i, **nothing, held="loss not finite") for i in range(1, 4)]
    text = page_of(a_run(tmp_path, "run", records), into=tmp_path / "out")
    says(text, "S was never measured.", "paused: loss not finite", "nothing to show")


def test_a_run_that_diverged_keeps_its_scale_readable(tmp_path):
    records = controlled(20)
    records += [window(5 * i, data_bpt=10.0**i, param_bpt=1e9, s=NAN) for i in (21, 22, 23)]
    run = a_run(tmp_path, "run", [*records, window(120, data_bpt=math.inf, s=NAN)])
    drawn = {chart.title: chart for chart in charts([Track(run, [], label="run", place=0)])}
    says(drawn["ParamBPT"].remark, "Logarithmic")
    assert "Its highest window was 1e+23, at step 115." in story.story(run, [])[1]


def test_a_record_without_a_step_is_passed_over(tmp_path):
    run = a_run(tmp_path, "run", [window(5), window(10)])
    trace = run.folder / "trace.jsonl"
    trace.write_text(re.sub('"step": [0-9]+', '"step": null', trace.read_text()))
    says(page_of(read_run(run.folder), into=tmp_path / "out"), "There is nothing to draw yet")


def test_a_lone_trace_says_what_was_assumed(tmp_path):
    folder = folder_of(tmp_path, "run", controlled(10))
    (folder / "config.yaml").unlink()
    page = page_of(read_run(folder / "trace.jsonl"), into=tmp_path / "out")
    says(page, "no config.yaml: S* = 5.000%", "<h1>trace</h1>")
    assert "<pre>" not in page


def test_runs_with_the_same_set_point_share_its_band(tmp_path):
    runs = [a_run(tmp_path / d, "same", controlled(20), **METADATA) for d in "ab"]
    page = page_of(*runs, into=tmp_path / "out")
    says(page, "<h1>2 runs compared</h1>", "same (1)", "same (2)", "S* = 5.00%", "cooldown starts")
    assert page.count('<th scope="row">same') == 2
    assert "multiple of" not in page


def test_runs_with_other_set_points_are_drawn_relative_to_them(tmp_path):
    records = [controlled(20), controlled(20, target_s=0.1), []]
    names, targets = ("one", "two", "three"), (0.05, 0.1, 0.05)
    runs = [
        a_run(tmp_path, n, r, target_s=t) for n, r, t in zip(names, records, targets, strict=True)
    ]
    page = page_of(*runs, into=tmp_path / "out")
    says(page, "As a multiple of each run&#x27;s S*", "transient, not finished")


def test_runs_with_other_bounds_say_so(tmp_path):
    runs = [a_run(tmp_path, name, controlled(20)) for name in "ab"]
    settings = ControlSettings(target_s=0.05, lambda_min=0.5)
    runs[1] = RunView(**{**vars(runs[1]), "settings": settings, "config": None})
    tracks = [Track(run, [], label=run.name, place=i) for i, run in enumerate(runs)]
    says(charts(tracks)[1].remark, "The runs' lower bounds differ.", "Logarithmic")


def test_the_multiplicative_laws_integral_is_a_sum_of_errors(tmp_path):
    run = a_run(tmp_path, "run", controlled(20))
    settings = ControlSettings(target_s=0.05, law="multiplicative")
    run = RunView(**{**vars(run), "settings": settings})
    parts = charts([Track(run, [], label="run", place=0)])[4]
    assert "ki \u00d7 I, I the sum of errors" in parts.keys
    says(parts.remark, "as a change per window")


def test_s_far_from_its_set_point_gets_a_logarithmic_axis(tmp_path):
    run = a_run(tmp_path, "run", [window(5 * i, s=0.4) for i in range(1, 9)])
    says(charts([Track(run, [], label="run", place=0)])[0].remark, "Logarithmic")


def test_a_long_trace_makes_a_small_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "judge", lambda *args, **kwargs: [])
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.2, 8_000)
    records = [window(i + 1, data_bpt=6.0 + x, s=0.05 + x / 100) for i, x in enumerate(noise)]
    page, _ = write_report([a_run(tmp_path, "run", records)], tmp_path / "out")
    assert page.stat().st_size < 1_000_000


def test_the_last_judgment_is_a_table_with_meanings(finished, tmp_path, monkeypatch):
    statistics = {"gain": -1.2, "gain_low": -1.5, "gain_high": -1.0, "tau_steps": 7.0}
    judgments = [
        Judgment(100, "transient", "S moves"),
        Judgment(200, "no_authority", "S <did> not answer", statistics),
    ]
    monkeypatch.setattr(report, "judge", lambda *args, **kwargs: judgments)
    page = page_of(finished, into=tmp_path)
    row = f"gain<small>{STATISTICS['gain']}</small></th><td>-1.2</td><td>-1.5 to -1</td>"
    says(page, row, "tau steps<small>", "Step 200, no authority: S &lt;did&gt; not answer.")
    says(page, "All 2 judgments")


def test_a_page_shows_the_newest_of_very_many_judgments(finished, tmp_path, monkeypatch):
    judgments = [Judgment(i, "transient", "S moves") for i in range(1, 302)]
    monkeypatch.setattr(report, "judge", lambda *args, **kwargs: judgments)
    says(page_of(finished, into=tmp_path), "The last 200 of 301 judgments", ">301<")


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a report needs at least one run"):
        write_report([], tmp_path)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(report, "charts", lambda tracks: [])
    monkeypatch.setattr(report, "picture", lambda tracks, **words: b"")
    with pytest.raises(OutputError, match=r"cannot write .*report\.html: "):
        write_report([a_run(tmp_path, "run", [])], tmp_path / "file")


def test_a_story_of_s_that_never_arrives(tmp_path):
    run = a_run(tmp_path, "run", [window(5, s=0.2, lam=2.0), window(10, s=0.1, lam=2.0)])
    text = " ".join(story.story(run, []))
    says(text, "S was 20.00% in its first window (step 5) and never came within 5%")
    says(text, "the nearest was 10.00% at step 10, the last 10.00%.")
    says(text, "moved between 1 and 2", "It stood at its upper bound, 2, in 2 of 2 windows.")
    says(key_figures(run)[0].note, "100.0% above")
    says(key_figures(a_run(tmp_path, "far", [window(s=0.2)]))[0].note, "S is 4.0 times that")


def test_a_story_of_lambda_that_rests(tmp_path):
    says(" ".join(story.story(a_run(tmp_path, "run", [window()]), [])), "Lambda stayed at 1.")


def test_a_story_compares_the_cooldown_with_the_windows_before_it(tmp_path):
    steady = [window(5 * i, data_bpt=6.0, s=0.05, lam=0.7) for i in range(1, 9)]
    cool = [
        window(5 * i, data_bpt=5.0, s=0.06, lam=0.7, held="cooldown", learning_rate=1e-5)
        for i in range(9, 17)
    ]
    text = " ".join(story.story(a_run(tmp_path, "run", steady + cool), []))
    says(text, "The cooldown began after step 40, with lambda held at 0.7")
    says(text, "fell to 1e-05", "DataBPT went from 6 to 5 and S from 5.00% to 6.00%")
    says(text, "(means of the 2 windows before it and the last 2 in it)")


def test_a_cooldown_with_nothing_to_compare_is_only_told(tmp_path):
    run = a_run(tmp_path, "all", [window(5, held="cooldown")])
    says(" ".join(story.story(run, [])), "The cooldown began after step 0")
    run = a_run(tmp_path, "nan", [window(5, s=NAN), window(10, held="cooldown")])
    assert "From before it" not in " ".join(story.story(run, []))


def test_a_story_of_many_verdicts_counts_their_steps(tmp_path):
    verdicts = ["transient", "oscillating"] * 3
    run = a_run(
        tmp_path, "run", [window(5 * i, verdict=v) for i, v in enumerate(verdicts, start=1)]
    )
    text = " ".join(story.story(run, []))
    says(text, "The verdict changed 5 times: transient for 15, oscillating for 15 steps in all.")


def test_a_replayed_verdict_is_called_one(tmp_path):
    run = a_run(tmp_path, "run", [window(5 * i) for i in range(1, 41)])
    judgments = [Judgment(50, "transient", "S moves"), Judgment(100, "transient", "S moves")]
    judgments.append(Judgment(150, "no_authority", "S did not answer"))
    text = " ".join(story.story(run, judgments))
    says(text, "In a replay of the trace the verdict was transient from step 50, no authority")
    says(text, "Judged last at step 150, no authority: S did not answer.")
    assert verdict_spans(run, judgments) == [
        Span(50, 150, "transient"),
        Span(150, 200, "no_authority"),
    ]


def test_validation_is_told_with_its_lowest_value(tmp_path):
    values = [6.0, NAN, 5.0, 5.5]
    run = a_run(tmp_path, "run", [window(5 * i, eval_bpt=v) for i, v in enumerate(values, start=1)])
    says(
        story.story(run, [])[1], "cost 6 bits/token at step 5 and 5.5 at step 20; the lowest was 5"
    )
    assert any(f.label == "Validation" and "5 at step 15" in f.note for f in key_figures(run))
    once = a_run(tmp_path, "once", [window(5, eval_bpt=6.0)])
    says(" ".join(story.story(once, [])), "Validation text cost 6 bits/token at step 5.")


@pytest.mark.parametrize(("certified", "did"), [(True, "showed"), (False, "did not show")])
def test_a_pulse_test_is_told_with_its_result(tmp_path, certified, did):
    run = a_run(tmp_path, "run", [window()], pulse={"certified": certified})
    says(" ".join(story.story(run, [])), f"The pulse test {did} that S follows lambda.")


def test_the_runs_own_verdict_goes_before_a_replay(tmp_path):
    replay = [Judgment(5, "transient", "S moves")]
    told = a_run(tmp_path, "told", [window(verdict="saturated")], verdict="equilibrium")
    traced = a_run(tmp_path, "traced", [window(verdict="saturated")], verdict="not judged")
    bare = a_run(tmp_path, "bare", [window()])
    found = [story.verdict(run, replay) for run in (told, traced, bare)]
    assert found == ["equilibrium", "saturated", "transient"]
    assert story.verdict(bare, []) == "not judged"


def test_planned_steps_come_from_the_metadata_of_a_lone_trace(tmp_path):
    folder = folder_of(tmp_path, "run", [window(error=0.1)], steps_planned=70)
    assert planned_steps(read_run(folder)) == 1200
    (folder / "config.yaml").unlink()
    assert planned_steps(read_run(folder)) == 70


def test_a_run_without_records_has_a_row_in_the_comparison(tmp_path):
    assert compared(a_run(tmp_path), "not judged")[:4] == ["not judged", "0 of 1,200", "-", "5.00%"]


def test_held_windows_are_stretches(finished):
    assert held_spans(finished) == [
        Span(95, 100, "skipped steps"),
        Span(145, 155, "pulse"),
        Span(270, 300, "cooldown"),
    ]


def test_many_held_windows_are_few_shaded_stretches(tmp_path):
    from matplotlib.figure import Figure

    held = ["pulse" if i % 2 else "" for i in range(4000)]
    run = a_run(tmp_path, "run", [window(i + 1, held=h) for i, h in enumerate(held)])
    plot = Plot(Figure().subplots(), points=100)
    draw(PANELS[0], plot, [Track(run, [], label="run", place=0)])
    assert len(plot.ax.patches) < 10


def test_thinning_keeps_ends_extremes_and_gaps():
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000.0))
    y[1234], y[5678], y[8000:9000] = 50.0, -50.0, NAN
    thin_x, thin_y = thin(x, y, 400)
    assert len(thin_x) <= 402
    assert (thin_x[0], thin_x[-1]) == (0.0, 9999.0)
    assert {1234.0, 5678.0} <= set(thin_x)
    assert np.isnan(thin_y[(thin_x > 8000.0) & (thin_x < 9000.0)]).all()
    assert thin(x, y, 10_000)[0] is x


def test_smoothing_is_a_centred_mean_that_passes_over_gaps():
    values = np.array([1.0, 2.0, NAN, 4.0, 6.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    assert np.isnan(smooth(np.array([NAN, NAN]), 3)).all()
    np.testing.assert_allclose(smooth(values, 1)[3:], [4.0, 6.0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "-"),
        (number(NAN), "nan"),
        (number(0.0), "0"),
        (number(0.34412), "0.3441"),
        (number(0.0001), "0.0001"),
        (number(3.333e-5), "3.33e-05"),
        (number(123456.0), "1.23e+05"),
        (percent(None), "-"),
        (percent(math.inf), "inf"),
        (percent(0.0), "0%"),
        (percent(0.08127), "8.13%"),
        (percent(0.000123), "0.012%"),
        (whole(1234.5), "1,234"),
        (whole(NAN), "?"),
        (duration(NAN), "?"),
        (duration(61.0), "1:01"),
        (duration(3661.0), "1:01:01"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected


def test_a_configuration_whose_file_is_gone_is_still_shown(tmp_path):
    run = a_run(tmp_path, "run", [window()])
    (run.folder / "config.yaml").unlink()
    says(page_of(run, into=tmp_path / "out"), "<pre>", "target_s: 0.05")
