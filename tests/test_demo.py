"""The demo as a newcomer runs it: whole, in a process of its own."""

import json
import subprocess
import sys

import pytest

from scu.config_file import load
from scu.control import STOP_TOLERANCE, replay
from scu.trace import read_trace


@pytest.mark.slow
def test_the_demo_holds_s_at_its_set_point_and_pays_on_held_out_files(tmp_path):
    output = tmp_path / "demo"
    command = [sys.executable, "-m", "scu_api.cli", "demo", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    metadata = json.loads((output / "metadata.json").read_text())
    target = metadata["target_s"]
    assert abs(metadata["final_s_ratio"] - target) <= STOP_TOLERANCE * target
    low, high = metadata["lambda_bounds"]
    assert low < metadata["lambda_range"][0] <= metadata["lambda_range"][1] < high
    evaluation = json.loads((output / "eval.json").read_text())
    assert evaluation["saved_low"] > 0.0
    assert evaluation["adapter_bpt"] < evaluation["base_bpt"]
    records = read_trace(output / "trace.jsonl")
    settings = load(output / "config.yaml").scu.control
    assert [state.lam for state in replay(records, settings)] == [r.lam for r in records]
