"""How real runs end: verdict, limits, cooldown, pulse test, best checkpoint, trackers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scu.config_file import load
from scu.control import replay
from scu.engines import torch_engine
from scu.monitor import judge
from scu.run_view import read_run
from scu.trace import read_trace


@pytest.fixture
def config_file(tmp_path, tiny_base, text_file) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
model: {{base_model: "{tiny_base}", precision: fp32}}
lora: {{rank: 4, targets: all-linear}}
scu: {{target_s: 0.05, prior_sigma: 0.05, control_interval: 2}}
training:
  learning_rate: 1e-2
  batch_size: 4
  gradient_accumulation: 1
  block_size: 32
  steps: 100
  warmup_steps: 2
data: {{train_data: "{text_file}", val_fraction: 0.1}}
"""
    )
    return path


@pytest.fixture
def easily_pleased(monkeypatch):
    """A monitor with windows of 20 steps to which everything is at rest."""
    monkeypatch.setattr("scu.monitor.WINDOW_STEPS", 20)
    monkeypatch.setattr("scu.monitor.fault", lambda state: None)
    monkeypatch.setattr("scu.monitor.missing", lambda state: iter(()))


def trained(config_file, output, *sets):
    run = torch_engine.prepare(load(config_file, sets=sets), output)
    return run, torch_engine.train(run), read_trace(output / "trace.jsonl")


def test_an_equilibrium_ends_the_run_through_a_cooldown(tmp_path, config_file, easily_pleased):
    output = tmp_path / "out"
    run, metadata, records = trained(config_file, output)
    start = metadata["cooldown_from"]
    assert (metadata["stop_reason"], metadata["verdict"]) == ("equilibrium", "equilibrium")
    assert metadata["stop_detail"] == metadata["verdict_reason"]
    assert start < metadata["optimizer_steps"] < metadata["steps_planned"] == 100
    cool = [r for r in records if r.step > start]
    assert {r.held for r in cool} == {"cooldown"}
    assert {r.lam for r in cool} == {records[-len(cool) - 1].lam}
    rates = [r.learning_rate for r in records if r.step >= start]
    assert rates[0] == pytest.approx(1e-2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.51 * rates[0]
    assert records[-1].step == metadata["optimizer_steps"]
    assert (output / "adapter_model.safetensors").exists()
    view = read_run(output)
    assert view.context_free_bpt == pytest.approx(metadata["context_free_bpt"])
    assert view.start["tokens_per_epoch"] == metadata["tokens_per_epoch"]
    replayed = judge(records, view.settings, context_free_bpt=view.context_free_bpt)
    assert replayed == run.callback.ending.monitor.judgments
    by_step = {j.step: j.verdict for j in replayed}
    assert all(r.verdict == by_step[r.step] for r in records if r.step in by_step)
    assert [s.lam for s in replay(records, view.settings)] == [r.lam for r in records]


def test_never_and_a_verdict_of_equilibrium_use_up_the_steps(tmp_path, config_file, easily_pleased):
    _, metadata, records = trained(
        config_file, tmp_path / "out", "scu.stop=never", "training.steps=60"
    )
    assert (metadata["stop_reason"], metadata["verdict"]) == ("steps done", "equilibrium")
    assert metadata["optimizer_steps"] == 60
    assert metadata["cooldown_from"] == 54
    assert [r.step for r in records if r.held] == [56, 58, 60]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("training.max_tokens=2000", "token limit"), ("training.max_hours=1e-9", "time limit")],
)
def test_a_limit_ends_the_run_with_its_cooldown_and_its_name(tmp_path, config_file, limit, reason):
    _, metadata, records = trained(config_file, tmp_path / "out", limit)
    assert metadata["stop_reason"] == reason
    assert metadata["verdict"] == "not judged"
    assert metadata["optimizer_steps"] < 30
    assert records[-1].held == "cooldown"
    if reason == "token limit":
        assert records[-1].tokens_seen <= 2000


def test_a_pulse_test_moves_lambda_while_the_controller_waits(
    tmp_path, config_file, easily_pleased, monkeypatch
):
    monkeypatch.setattr("scu.pulse.BAND", 100.0)
    sets = ("scu.pulse=true", "scu.stop=never", "training.steps=80")
    _, metadata, records = trained(config_file, tmp_path / "out", *sets)
    tested = [r for r in records if r.held == "pulse"]
    assert len(tested) >= 8
    assert metadata["pulse"]["state"] == "done"
    before = records[records.index(tested[0]) - 1]
    levels = {before.lam, *(r.lam for r in tested[:-1])}
    assert len(levels) == 2
    assert max(levels) / min(levels) == pytest.approx(2.718281828**0.6)
    assert {r.integral for r in tested} == {before.integral}
    assert metadata["pulse"]["low"] <= metadata["pulse"]["gain"] <= metadata["pulse"]["high"]
    assert metadata["pulse"]["certified"] is (metadata["pulse"]["high"] < 0.0)
    states = replay(records, load(config_file).scu.control)
    free = [(s.lam, r.lam) for s, r in zip(states, records, strict=True) if r not in tested]
    assert [one for one, other in free if one != other] in ([], [before.lam], [states[0].lam]) or (
        sum(one != other for one, other in free) == 1
    )


def test_without_a_pulse_test_the_metadata_has_none(tmp_path, config_file):
    _, metadata, _ = trained(config_file, tmp_path / "out", "training.steps=10")
    assert metadata["pulse"] == {"state": "not asked for"}


def test_the_best_evaluation_is_named_and_its_checkpoint_kept(tmp_path, config_file):
    output = tmp_path / "out"
    _, metadata, records = trained(
        config_file, output, "training.steps=20", "training.eval_steps=5"
    )
    evaluated = {r.step: r.eval_bpt for r in records if r.eval_bpt is not None}
    best = min(evaluated.values())
    assert metadata["best"]["eval_bpt"] == pytest.approx(best)
    assert (output / metadata["best"]["checkpoint"] / "adapter_model.safetensors").exists()
    assert metadata["best"]["checkpoint"] == f"checkpoint-{metadata['best']['step']}"


def test_without_evaluations_there_is_no_best_and_no_checkpoint(tmp_path, config_file):
    output = tmp_path / "out"
    _, metadata, _ = trained(config_file, output, "training.steps=10")
    assert metadata["best"] is None
    assert not list(output.glob("checkpoint-*"))


def test_trackers_get_what_the_trace_has(tmp_path, config_file):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "out"
    sets = ("training.steps=10", "training.report_to=tensorboard")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "board")
    try:
        _, _, records = trained(config_file, output, *sets)
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    events = accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for name in ("s", "lam", "data_bpt", "param_bpt", "integral", "error"):
        logged = [(e.step, e.value) for e in events.Scalars(f"train/scu/{name}")]
        expected = [(r.step, getattr(r, name)) for r in records]
        assert logged == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected]
    rates = [e.value for e in events.Scalars("train/learning_rate")]
    assert rates == pytest.approx([r.learning_rate for r in records])


def test_two_processes_end_together_on_a_limit_of_time(tmp_path, config_file):
    """Their clocks differ; the first one's decision counts, or the other would wait for ever."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "scu_api.cli", "train", str(config_file)]
    command += ["--output", str(output), "--set", "training.max_hours=1e-9"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metadata = json.loads((output / "metadata.json").read_text())
    assert (metadata["stop_reason"], metadata["processes"]) == ("time limit", 2)
    assert metadata["optimizer_steps"] == 3
