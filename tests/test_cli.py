"""The command line: what it prints, where, and the exit code it leaves with."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from scu.config_file import dump, load
from scu.control import ControlSettings
from scu.errors import DataError, TrainingError
from scu.evaluate import Comparison
from scu.monitor import Judgment
from scu.trace import StepRecord, TraceWriter, write_json
from scu_api import cli, libraries, scorecard

ROOT = Path(__file__).parent.parent
METADATA = {
    "stop_reason": "steps done",
    "duration_sec": 65.0,
    "final_s_ratio": 0.149,
    "target_s": 0.15,
    "final_lambda": 0.7,
    "lambda_range": [0.25, 1.0],
}
COMPARISON = Comparison(
    source="held-out.jsonl",
    documents=30,
    tokens=70_903,
    bytes=238_000,
    base_bpt=6.75,
    adapter_bpt=6.25,
    base_bpb=2.0,
    adapter_bpb=1.9,
    base_perplexity=1107.6,
    adapter_perplexity=76.1,
    saved_bpt=0.5,
    saved_low=0.4,
    saved_high=0.625,
    wins=29,
)


def window(step: int, data_bpt: float) -> StepRecord:
    return StepRecord(
        step=step,
        tokens_seen=100 * step,
        loss_nats=0.693 * data_bpt,
        data_bpt=data_bpt,
        param_bpt=0.01,
        s=0.149,
        lam=0.7,
        integral=0.0,
        error=0.0,
        learning_rate=1e-3,
        grad_norm=0.5,
        penalty_grad_ratio=0.02,
        tokens_per_sec=1000.0,
        elapsed_sec=float(step),
    )


def write_run(folder: Path, config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    (folder / "trace.jsonl").unlink(missing_ok=True)
    with TraceWriter(folder / "trace.jsonl") as trace:
        for record in (window(10, 7.0), window(20, 6.5)):
            trace.write(record)


class FakeEngine:
    """Stands in for both engine modules: remembers what it was asked, trains in no time."""

    def __init__(self) -> None:
        self.settings = ControlSettings(target_s=0.15)
        self.notes = ["training data a:train.jsonl: 50 rows", "WARNING: 3 of 30 are in training"]
        self.metadata = METADATA
        self.error: BaseException | None = None
        self.comparison = COMPARISON
        self.prepared: list[SimpleNamespace] = []
        self.trained: list[Path] = []
        self.evaluated: list[tuple[Path, str | None]] = []

    def prepare(self, config, output, *, overwrite=False):
        self.prepared.append(SimpleNamespace(config=config, output=output, overwrite=overwrite))
        callback = SimpleNamespace(settings=self.settings, context_free_bpt=7.5)
        return SimpleNamespace(config=config, output=output, notes=self.notes, callback=callback)

    def train(self, run, *, on_record):
        on_record(window(10, 7.0))
        if self.error is not None:
            raise self.error
        on_record(window(20, 6.5))
        self.trained.append(run.output)
        write_run(run.output, run.config)
        write_json(run.output / "metadata.json", self.metadata)
        return self.metadata

    def evaluate_adapter(self, folder, *, data=None):
        self.evaluated.append((folder, data))
        return self.comparison


@pytest.fixture
def engine(monkeypatch):
    engine = FakeEngine()
    monkeypatch.setattr(cli, "load_engine", lambda name: engine)
    return engine


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    """Stands in for scu.report, which draws for seconds; keeps what it was asked, or fails."""
    asked = SimpleNamespace(runs=[], error=None)

    def write_report(runs, folder):
        if asked.error is not None:
            raise asked.error
        asked.runs.append(([run.name for run in runs], folder))
        return folder / "report.html", folder / "run.png"

    module = ModuleType("scu.report")
    module.write_report = write_report
    monkeypatch.setitem(sys.modules, "scu.report", module)
    return asked


@pytest.fixture
def diagnosis(monkeypatch):
    """What the monitor and the diagnosis say of any run."""
    said = SimpleNamespace(judgments=[], findings=[], asked=[])

    def findings(run, judgments=None):
        said.asked.append((run, judgments))
        return said.findings

    module = ModuleType("scu.diagnose")
    module.findings = findings
    monkeypatch.setitem(sys.modules, "scu.diagnose", module)
    monkeypatch.setattr("scu.monitor.judge", lambda *a, **k: said.judgments)
    return said


class Finding(SimpleNamespace):
    def as_dict(self):
        return vars(self)


def finding(severity: str = "wrong", **values) -> Finding:
    content = {
        "name": "slow",
        "severity": severity,
        "symptom": "S is slow to move",
        "evidence": "S at 3 % of S* after 200 steps",
        "cause": "lambda starts too high",
        "change": "lower scu.lambda_init to 0.1",
        "source": "ours",
        "headline": "S is slow to move",
    }
    return Finding(**content | values)


@pytest.fixture
def run_file(tmp_path):
    content = {
        "model": {"base_model": "embedded"},
        "scu": {"target_s": 0.15},
        "training": {"steps": 20},
        "data": {"train_data": "train.jsonl"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(folder / "metadata.json", METADATA)
    return folder


@pytest.fixture
def scu(capsys, monkeypatch):
    """Run the command line in this process; return its exit code, stdout and stderr."""

    def run(*arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["scu", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code or 0, out=out, err=err)

    return run


def python(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


# ---- Start-up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["watch"], ["diagnose"], ["report"], ["eval"], ["demo"]],
    ids=str,
)
def test_help_imports_no_framework(command):
    script = (
        "import sys; from scu_api import cli\n"
        f"sys.argv = ['scu', *{command}, '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'scipy'}\n"
        "heavy |= {'statsmodels', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert "Usage: " in python("-c", script)


def test_the_version_is_that_of_the_package(scu):
    assert scu("--version").out == "scu 0.1.0\n"


def test_it_runs_as_a_module():
    assert python("-m", "scu_api.cli", "--version") == "scu 0.1.0\n"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (
            "train_scu.py",
            ["--config", "--output", "--set", "--pulse", "--stop", "--dry-run", "--overwrite"],
        ),
        ("eval_quality.py", ["--adapter", "--data", "--json"]),
    ],
)
def test_the_scripts_take_the_options_of_the_guide(script, options):
    text = python(f"scripts/{script}", "--help")
    assert [option for option in options if option not in text] == []


def test_the_scripts_leave_with_the_same_exit_codes():
    text = python("scripts/train_scu.py", "--config", "no.yaml", "--output", "x", code=2)
    assert text.startswith("error: no.yaml")
    assert "Traceback" not in text


# ---- Training ------------------------------------------------------------------------------------


def test_training_shows_its_notes_its_windows_and_what_came_of_it(scu, engine, run_file, tmp_path):
    done = scu("train", run_file, "--output", tmp_path / "out")
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "loading train.jsonl and embedded ..."
    assert lines[1:3] == engine.notes
    assert lines[3].startswith("controller: S* = 15.00%, kp 0.8 and ki 0.15 per window of 5 steps")
    assert lines[4].split()[0] == "step"
    assert [line.split()[0] for line in lines[5:7]] == ["10", "20"]
    assert lines[7:] == [
        "",
        "stopped   steps done, after 1:05",
        "S         14.90%, S* = 15.00% (-0.7%)",
        "lambda    0.7000, was in [0.2500, 1.000]",
        "DataBPT   7.000 -> 6.500 bits/token, in training",
        f"adapter   {tmp_path / 'out'}",
        f"report    {tmp_path / 'out' / 'report.html'}",
    ]


def test_the_summary_says_why_it_stopped_what_that_saved_and_what_was_best(
    scu, engine, run_file, tmp_path
):
    engine.metadata = METADATA | {
        "stop_reason": "equilibrium",
        "stop_detail": "S held S* over 120 steps, and lambda was at rest",
        "verdict": "equilibrium",
        "verdict_reason": "S is at S* and lambda at rest",
        "pulse": {"gain": -0.9, "low": -1.0, "high": -0.8, "certified": True},
        "optimizer_steps": 11,
        "best": {"step": 10, "eval_bpt": 6.25, "checkpoint": "checkpoint-10"},
    }
    lines = scu("train", run_file, "--output", tmp_path / "out").out.splitlines()
    assert lines[8:12] == [
        "stopped   equilibrium, after 1:05",
        "          S held S* over 120 steps, and lambda was at rest",
        "verdict   equilibrium: S is at S* and lambda at rest",
        "steps     stopped at step 11 of 20: 45 % saved",
    ]
    assert (
        "best      6.250 bits/token on validation data, at step 10, kept in checkpoint-10" in lines
    )


def test_a_best_without_a_checkpoint_names_none(scu, engine, run_file, tmp_path):
    best = {"step": 10, "eval_bpt": 6.25, "checkpoint": None}
    engine.metadata = METADATA | {"best": best, "optimizer_steps": 20}
    out = scu("train", run_file, "--output", tmp_path / "out").out
    assert "best      6.250 bits/token on validation data, at step 10\n" in out
    assert "saved" not in out


def test_the_report_is_written_when_training_ends(scu, engine, run_file, tmp_path, reports):
    scu("train", run_file, "--output", tmp_path / "out")
    assert reports.runs == [(["out"], tmp_path / "out")]


def test_a_report_that_fails_costs_a_line_and_not_the_run(scu, engine, run_file, tmp_path, reports):
    reports.error = ZeroDivisionError("no ink")
    done = scu("train", run_file, "--output", tmp_path / "out")
    assert done.code == 0
    last = done.out.splitlines()[-1]
    assert last == "WARNING: no report was written: ZeroDivisionError: no ink"


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ([], "equilibrium"),
        (["--stop", "guide"], "guide"),
        (["--stop", "never", "--set", "scu.stop=guide"], "never"),
    ],
    ids=str,
)
def test_the_stop_flag_goes_before_a_setting(scu, engine, run_file, tmp_path, options, stop):
    scu("train", run_file, "--output", tmp_path / "out", *options)
    assert engine.prepared[0].config.scu.stop == stop


def test_an_unknown_stop_rule_is_bad_input(scu, engine, run_file):
    done = scu("train", run_file, "--output", "out", "--stop", "soon")
    assert done.code == 2
    assert "soon" in done.err


@pytest.mark.parametrize(
    ("options", "pulse"),
    [([], False), (["--pulse"], True), (["--pulse", "--set", "scu.pulse=false"], True)],
    ids=str,
)
def test_the_pulse_flag_goes_before_a_setting(scu, engine, run_file, tmp_path, options, pulse):
    scu("train", run_file, "--output", tmp_path / "out", *options)
    assert engine.prepared[0].config.scu.pulse is pulse


def test_settings_and_output_reach_the_engine(scu, engine, run_file, tmp_path):
    out = tmp_path / "out"
    scu("train", run_file, "--output", out, "--set", "scu.kp=0.5", "--set", "training.steps=40")
    (run,) = engine.prepared
    assert (run.config.scu.kp, run.config.training.steps) == (0.5, 40)
    assert (run.output, run.overwrite) == (out, False)


def test_overwrite_is_passed_on(scu, engine, run_file, tmp_path):
    scu("train", run_file, "--output", tmp_path / "out", "--overwrite")
    assert engine.prepared[0].overwrite


def test_the_output_may_come_from_the_configuration(scu, engine, run_file, tmp_path):
    assert scu("train", run_file, "--set", f"output={tmp_path / 'mine'}").code == 0
    assert engine.trained == [tmp_path / "mine"]


def test_a_run_without_an_output_is_refused(scu, engine, run_file):
    done = scu("train", run_file)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: no output folder; pass --output DIR")
    assert engine.prepared == []


def test_a_dry_run_prepares_and_trains_nothing(scu, engine, run_file, tmp_path):
    done = scu("train", run_file, "--output", tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert done.out.endswith("dry run: nothing was trained\n")
    assert engine.prepared
    assert engine.trained == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stop_reason", "code"),
    [
        ("steps done", 0),
        ("equilibrium", 0),
        ("diverged: 5 steps in a row without a finite gradient", 1),
        ("interrupted", 130),
    ],
)
def test_the_exit_code_says_how_the_run_ended(scu, engine, run_file, tmp_path, stop_reason, code):
    engine.metadata = METADATA | {"stop_reason": stop_reason}
    done = scu("train", run_file, "--output", tmp_path / "out")
    assert done.code == code
    assert f"stopped   {stop_reason}" in done.out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("the data are empty"), 2, "error: the data are empty\n"),
        (TrainingError("the plant burnt down"), 1, "error: the plant burnt down\n"),
        (KeyboardInterrupt(), 130, "interrupted; the adapter was not saved\n"),
    ],
)
def test_an_error_is_a_line_on_stderr(scu, engine, run_file, tmp_path, error, code, message):
    engine.error = error
    done = scu("train", run_file, "--output", tmp_path / "out")
    assert (done.code, done.err) == (code, message)
    assert "Traceback" not in done.out


def test_a_programming_error_keeps_its_traceback(engine, run_file, tmp_path, monkeypatch):
    engine.error = ZeroDivisionError()
    arguments = ["scu", "train", str(run_file), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_mistyped_setting_is_bad_input(scu, engine, run_file):
    done = scu("train", run_file, "--output", "out", "--set", "scu.kpp=1")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert engine.prepared == []


def test_a_mistyped_option_is_bad_input(scu, run_file):
    done = scu("train", run_file, "--outptu", "out")
    assert done.code == 2
    assert "--outptu" in done.err


def test_the_guides_template_is_refused_until_it_is_filled_in(scu, engine, run_file):
    done = scu("train", run_file, "--output", "out", "--set", "model.base_model=your-model-id")
    assert done.code == 2
    assert "your-model-id" in done.err


@pytest.fixture
def missing(monkeypatch):
    """Make the engine's import fail for want of a module."""

    def missing(name: str) -> None:
        def import_module(_: str) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(libraries, "quiet", lambda: None)
        monkeypatch.setattr(libraries, "import_module", import_module)

    return missing


def test_a_missing_library_names_the_extra_to_install(scu, run_file, missing):
    missing("trl.trainer")
    done = scu("train", run_file, "--output", "out")
    assert done.code == 2
    assert done.err == (
        "error: trl is not installed; run pip install 'shannon-control-unit[torch]'\n"
    )


def test_a_missing_module_of_our_own_is_a_programming_error(scu, run_file, missing):
    missing("scu.engines.gone")
    with pytest.raises(ModuleNotFoundError):
        scu("train", run_file, "--output", "out")


def test_a_run_without_a_measured_s_still_has_a_summary(scu, engine, run_file, tmp_path):
    engine.metadata = METADATA | {"final_s_ratio": None}
    done = scu("train", run_file, "--output", tmp_path / "out")
    assert "S         -, S* = 15.00%\n" in done.out


def test_a_narrowed_deadband_is_announced(scu, engine, run_file, tmp_path):
    engine.settings = ControlSettings(target_s=0.03)
    done = scu("train", run_file, "--output", tmp_path / "out", "--dry-run")
    assert "deadband 0.075% (narrowed from 0.300%: half of the 5% of S*" in done.out


def test_the_multiplicative_law_keeps_its_deadband(scu, engine, run_file, tmp_path):
    engine.settings = ControlSettings(target_s=0.03, law="multiplicative")
    done = scu("train", run_file, "--output", tmp_path / "out", "--dry-run")
    assert "deadband 0.300%, lambda" in done.out


def test_only_the_first_process_of_a_distributed_run_speaks_and_reports(
    scu, engine, run_file, tmp_path, monkeypatch, reports
):
    monkeypatch.setenv("RANK", "1")
    assert scu("train", run_file, "--output", tmp_path / "out").out == ""
    assert engine.trained
    assert reports.runs == []


def test_a_run_goes_on_when_its_reader_has_gone(run_file, tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import test_cli; from scu_api import cli, scorecard\n"
        "engine = test_cli.FakeEngine(); cli.load_engine = lambda name: engine\n"
        f"sys.argv = ['scu', 'train', {str(run_file)!r}, '--output', {str(tmp_path / 'out')!r}]\n"
        "cli.main()"
    )
    read, write = cli.os.pipe()
    cli.os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    cli.os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "metadata.json").is_file()


# ---- Watching, diagnosis, report -----------------------------------------------------------------


@pytest.fixture
def finished(run_file, tmp_path):
    """The folder of a run."""
    folder = tmp_path / "finished"
    write_run(folder, load(run_file))
    write_json(folder / "metadata.json", METADATA)
    return folder


def test_watch_follows_a_run_to_its_end(scu, finished):
    done = scu("watch", finished)
    assert done.code == 0
    header, *windows, stopped = done.out.splitlines()
    assert header.split()[0] == "step"
    assert [line.split()[0] for line in windows] == ["10", "20"]
    assert stopped == "stopped   steps done, after 1:05"


def test_a_watcher_that_is_left_has_not_failed(scu, finished, monkeypatch):
    def interrupted(seconds):
        assert seconds == 3.0
        raise KeyboardInterrupt

    monkeypatch.setattr("scu_api.watch.time.sleep", interrupted)
    (finished / "metadata.json").unlink()
    assert scu("watch", finished, "--every", "3").code == 0


def test_watch_once_prints_the_panel(scu, finished):
    done = scu("watch", finished, "--once")
    assert done.code == 0
    assert "Shannon control" in done.out
    assert "20/20" in done.out


def test_watching_what_is_not_there_is_bad_input(scu, tmp_path):
    done = scu("watch", tmp_path / "gone")
    assert done.code == 2
    assert "gone does not exist" in done.err


def test_a_diagnosis_names_evidence_cause_and_change_and_fails(scu, finished, diagnosis):
    diagnosis.judgments = [Judgment(20, "transient", "S is 5% above S*")]
    diagnosis.findings = [finding("remark", symptom="a remark"), finding()]
    done = scu("diagnose", finished)
    assert done.code == 1
    assert done.out.splitlines() == [
        f"run       {finished}: 20 of 20 steps, steps done",
        "verdict   transient, at step 20: S is 5% above S*",
        "",
        "WRONG: S is slow to move",
        "  evidence  S at 3 % of S* after 200 steps",
        "  cause     lambda starts too high",
        "  change    lower scu.lambda_init to 0.1",
        "",
        "REMARK: a remark",
        "  evidence  S at 3 % of S* after 200 steps",
        "  cause     lambda starts too high",
        "  change    lower scu.lambda_init to 0.1",
    ]
    ((run, judgments),) = diagnosis.asked
    assert [record.step for record in run.records] == [10, 20]
    assert judgments == diagnosis.judgments


def test_a_diagnosis_without_a_fault_says_what_was_checked(scu, finished, diagnosis):
    statistics = {"tau_steps": 23.456, "gain": -0.7, "period_steps": float("nan")}
    diagnosis.judgments = [Judgment(20, "equilibrium", "all is at rest", statistics)]
    diagnosis.findings = [finding("remark")]
    done = scu("diagnose", finished)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "nothing wrong in 2 windows: tau_steps 23.46, gain -0.7000"


def test_a_run_that_is_too_short_to_judge_says_so(scu, finished, diagnosis):
    (finished / "metadata.json").unlink()
    done = scu("diagnose", finished)
    assert done.code == 0
    assert "20 of 20 steps, not finished" in done.out
    assert "verdict   none: the run is shorter than the first window that is judged" in done.out
    assert done.out.endswith("nothing wrong in 2 windows\n")


def test_a_lone_trace_is_diagnosed_with_what_was_assumed(scu, finished, diagnosis, tmp_path):
    trace = tmp_path / "kept.jsonl"
    trace.write_text((finished / "trace.jsonl").read_text())
    out = scu("diagnose", trace).out
    assert "20 steps, not finished" in out
    assert "note      no config.yaml: S* = 14.900% from the trace" in out


def test_a_diagnosis_is_valid_json_whatever_was_measured(scu, finished, diagnosis):
    statistics = {"gain": -0.7, "period_steps": float("nan"), "tau_steps": float("inf")}
    diagnosis.judgments = [Judgment(20, "transient", "S is off", statistics)]
    diagnosis.findings = [finding(evidence=float("nan"))]
    done = scu("diagnose", finished, "--json")
    assert done.code == 1

    def refuse(constant):
        raise AssertionError(constant)

    said = json.loads(done.out, parse_constant=refuse)
    assert said == {
        "run": str(finished),
        "verdict": "transient",
        "reason": "S is off",
        "statistics": {"gain": -0.7},
        "findings": [vars(finding()) | {"evidence": None}],
    }


def test_the_real_diagnosis_finds_a_lambda_that_is_disconnected(scu, finished):
    (finished / "trace.jsonl").unlink()
    with TraceWriter(finished / "trace.jsonl") as trace:
        for step in range(5, 305, 5):
            record = window(step, 6.0)
            lam = min(2.0, 0.25 * 1.1 ** (step / 5))
            trace.write(replace(record, s=0.5, param_bpt=6.0, lam=lam, shrink_rate=0.0))
    done = scu("diagnose", finished)
    assert done.code == 1
    assert "verdict   no_authority, at step " in done.out
    assert "WRONG: " in done.out
    (finding,) = json.loads(scu("diagnose", finished, "--json").out)["findings"]
    assert finding["name"] == "no-authority"


def test_json_of_a_run_without_a_judgment_has_no_verdict(scu, finished, diagnosis):
    done = scu("diagnose", finished, "--json")
    assert done.code == 0
    said = json.loads(done.out)
    assert (said["verdict"], said["reason"], said["statistics"]) == (None, None, {})


def test_diagnosing_what_is_no_run_is_bad_input(scu, diagnosis, tmp_path):
    done = scu("diagnose", tmp_path)
    assert done.code == 2
    assert "holds no run" in done.err


def test_the_report_of_a_run_goes_into_its_folder(scu, finished, reports):
    done = scu("report", finished)
    assert done.code == 0
    assert done.out.splitlines() == [str(finished / "report.html"), str(finished / "run.png")]
    assert reports.runs == [(["finished"], finished)]


def test_a_report_of_several_runs_needs_a_folder(scu, finished, tmp_path, reports):
    done = scu("report", finished, finished)
    assert done.code == 2
    assert "a report of several runs needs a folder of its own; pass --output DIR" in done.err
    output = tmp_path / "new" / "both"
    assert scu("report", finished, finished, "--output", output).code == 0
    assert reports.runs == [(["finished", "finished"], output)]


def test_a_report_that_cannot_be_written_is_an_error(scu, finished, tmp_path):
    (tmp_path / "file").touch()
    done = scu("report", finished, "--output", tmp_path / "file")
    assert done.code == 2
    assert f"error: cannot write a report to {tmp_path / 'file'}: File exists" in done.err


# ---- Evaluation ----------------------------------------------------------------------------------


def test_evaluation_prints_base_adapter_and_difference_with_its_interval(scu, engine, adapter):
    done = scu("eval", adapter)
    assert done.code == 0
    assert "held-out.jsonl: 30 documents, 70,903 tokens" in done.out
    cells = [line.replace("\u2502", " ").split() for line in done.out.splitlines()]
    assert ["bits", "per", "token", "6.7500", "6.2500", "-0.5000"] in cells
    assert ["bits", "per", "byte", "2.0000", "1.9000", "-0.1000"] in cells
    assert ["perplexity", "1,107.60", "76.10", "-1,031.50"] in cells
    assert "95 % in [-0.6250, -0.4000]" in done.out
    assert "better on 29 of 30 documents" in done.out
    assert engine.evaluated == [(adapter, None)]


def test_evaluation_data_may_be_named(scu, engine, adapter):
    scu("eval", adapter, "--data", "other.jsonl")
    assert engine.evaluated == [(adapter, "other.jsonl")]


def test_the_comparison_is_kept_with_the_adapter(scu, engine, adapter):
    scu("eval", adapter)
    assert json.loads((adapter / "eval.json").read_text()) == COMPARISON.as_dict()


def test_json_is_printed_alone(scu, engine, adapter):
    done = scu("eval", adapter, "--json")
    assert json.loads(done.out) == COMPARISON.as_dict()


def test_an_adapter_folder_that_cannot_be_written_is_named(scu, engine, tmp_path):
    done = scu("eval", tmp_path / "gone")
    assert done.code == 2
    assert "error: cannot write" in done.err


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, [True, True, True]),
        ({"final_lambda": 0.0}, [False, True, True]),
        ({"lambda_range": [0.0, 0.0]}, [True, False, True]),
        ({"final_s_ratio": 0.1426}, [True, True, True]),
        ({"final_s_ratio": 0.1424}, [True, True, False]),
        ({"final_s_ratio": 0.1576}, [True, True, False]),
        ({"final_s_ratio": None}, [True, True, False]),
    ],
    ids=str,
)
def test_the_metadata_are_checked_as_the_guide_says(adapter, change, passed):
    write_json(adapter / "metadata.json", METADATA | change)
    assert [ok for ok, _ in scorecard.checks(adapter)] == passed


def test_a_check_shows_its_value_behind_a_tick_or_a_cross(scu, engine, adapter):
    write_json(adapter / "metadata.json", METADATA | {"final_s_ratio": 0.1})
    done = scu("eval", adapter)
    assert "\u2713 final_lambda 0.7000 is not 0" in done.out
    assert "\u2713 lambda_range [0.2500, 1.000] is not [0, 0]" in done.out
    assert "\u2717 final_s_ratio 10.00% is not within 5% of target_s 15.00%" in done.out


def test_missing_metadata_fail_the_check(tmp_path):
    assert scorecard.checks(tmp_path) == [
        (False, "metadata.json is missing: the run did not finish")
    ]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"final_lambda": "much"}'])
def test_broken_metadata_are_named(scu, engine, adapter, content):
    (adapter / "metadata.json").write_text(content)
    done = scu("eval", adapter)
    assert done.code == 2
    assert done.err.startswith(f"error: {adapter / 'metadata.json'} is not a run's metadata")


# ---- The demo ------------------------------------------------------------------------------------


def test_the_demo_trains_evaluates_and_says_what_to_try_next(scu, engine, tmp_path):
    folder = tmp_path / "demo"
    done = scu("demo", "--output", folder, "--set", "training.steps=30")
    assert done.code == 0
    (run,) = engine.prepared
    assert (run.config.model.base_model, run.config.training.steps) == ("embedded", 30)
    assert engine.evaluated == [(folder, None)]
    assert "stopped   steps done" in done.out
    assert "bits per token" in done.out
    another, own = done.out.splitlines()[-2:]
    assert "scu demo --set scu.target_s=" in another
    assert "scu train" in own


def test_an_interrupted_demo_is_not_evaluated(scu, engine, tmp_path):
    engine.metadata = METADATA | {"stop_reason": "interrupted"}
    assert scu("demo", "--output", tmp_path / "demo").code == 130
    assert engine.evaluated == []


@pytest.mark.parametrize(
    ("earlier", "options", "overwrite"),
    [
        ("embedded", [], True),
        ("meta-llama/Llama-3.2-1B", [], False),
        ("meta-llama/Llama-3.2-1B", ["--overwrite"], True),
        (None, [], False),
    ],
)
def test_the_demo_replaces_only_its_own_earlier_run(
    scu, engine, run_file, tmp_path, earlier, options, overwrite
):
    folder = tmp_path / "demo"
    folder.mkdir()
    if earlier is not None:
        text = run_file.read_text().replace("embedded", earlier)
        (folder / "config.yaml").write_text(text)
    scu("demo", "--output", folder, *options)
    assert engine.prepared[0].overwrite is overwrite
