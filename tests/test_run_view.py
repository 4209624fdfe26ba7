"""What a watcher learns from a run's folder, or from a lone trace."""

import json
from dataclasses import replace

import pytest

from scu.control import ControlSettings
from scu.errors import ConfigError, DataError
from scu.run_view import read_run
from scu.trace import TraceWriter
from tests.plants import simulate

CONFIG = """
model: {base_model: embedded}
scu: {target_s: 0.2, kp: 0.5}
training: {steps: 600}
data: {train_data: data/train.jsonl}
"""


def write(folder, records, name="trace.jsonl"):
    folder.mkdir(exist_ok=True)
    with TraceWriter(folder / name) as trace:
        for record in records:
            trace.write(record)
    return folder


def test_a_folder_tells_settings_steps_start_and_metadata(tmp_path):
    run = write(tmp_path / "run", simulate(steps=50))
    (run / "config.yaml").write_text(CONFIG)
    (run / "start.json").write_text(json.dumps({"context_free_bpt": 8.5}))
    (run / "metadata.json").write_text(json.dumps({"verdict": "transient"}))
    view = read_run(run)
    assert (view.name, view.steps, len(view.records)) == ("run", 600, 10)
    assert (view.settings.target_s, view.settings.kp) == (0.2, 0.5)
    assert view.context_free_bpt == 8.5
    assert view.metadata == {"verdict": "transient"}
    assert view.notes == ()


def test_a_run_that_goes_on_has_no_metadata(tmp_path):
    view = read_run(write(tmp_path / "run", simulate(steps=50)))
    assert view.metadata is None
    assert view.context_free_bpt is None


@pytest.mark.parametrize("growth", [0.05, 0.0])
def test_a_lone_trace_gives_its_set_point_away_and_says_what_is_assumed(tmp_path, growth):
    settings = ControlSettings(target_s=0.07)
    records = simulate(settings, growth=growth, steps=100)
    if not growth:
        records = [replace(r, param_bpt=0.0) for r in records]
    view = read_run(write(tmp_path, records) / "trace.jsonl")
    assert view.settings.target_s == pytest.approx(0.07)
    assert view.steps is None
    assert view.config is None
    assert view.notes == ("no config.yaml: S* = 7.000% from the trace, default gains and bounds",)


def test_a_lone_trace_of_the_other_law_needs_its_config(tmp_path):
    settings = ControlSettings(target_s=0.1, law="multiplicative")
    run = write(tmp_path / "run", simulate(settings, steps=200))
    with pytest.raises(DataError, match=r"put the run's config\.yaml there"):
        read_run(run)


def test_a_trace_without_a_record_tells_nothing(tmp_path):
    with pytest.raises(DataError, match="do not tell S"):
        read_run(write(tmp_path / "run", []))


def test_a_folder_without_a_trace_is_no_run(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"), [("{", "cannot read"), ("[]", "expected a JSON object, got list")]
)
def test_a_broken_json_file_is_named(tmp_path, content, complaint):
    run = write(tmp_path / "run", simulate(steps=50))
    (run / "start.json").write_text(content)
    with pytest.raises(DataError, match=complaint):
        read_run(run)


def test_a_broken_configuration_is_a_configuration_error(tmp_path):
    run = write(tmp_path / "run", simulate(steps=50))
    (run / "config.yaml").write_text("scu: {target_s: 3}")
    with pytest.raises(ConfigError, match="target_s"):
        read_run(run)
