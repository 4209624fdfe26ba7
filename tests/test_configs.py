"""Every shipped configuration, and the guide's template to the letter."""

from pathlib import Path

import pytest

from scu.config import RunConfig
from scu.config_file import check_ready, dump, load
from scu.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

TEMPLATE = """\
# configs/my_model_scu.yaml
model:
  base_model: "your-model-id"
  architecture: "transformer"

lora:
  rank: 16
  alpha: 32
  dropout: 0.05
  targets:
    - q_proj
    - k_proj
    - v_proj
    - o_proj
    - gate_proj
    - up_proj
    - down_proj

scu:
  target_s: 0.03
  kp: 0.8
  ki: 0.15
  deadband: 0.003
  lambda_init: 1.0
  lambda_min: 0.0001
  lambda_max: 2.0
  prior_sigma: 0.01

training:
  learning_rate: 2e-5
  batch_size: 1
  gradient_accumulation: 16
  block_size: 2048
  steps: 1500
  warmup_steps: 150
  weight_decay: 0.0  # CRITICAL: Must be 0!

data:
  train_data: "path/to/train.jsonl"
  val_data: "path/to/val.jsonl"
  tokens_per_epoch: 98304000  # Required for ParamBPT calculation
"""


def load_text(text: str, folder: Path) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    config = load(path)
    text = dump(config)
    again = load_text(text, tmp_path)
    assert again == config
    assert again.sources["scu.target_s"] == "run.yaml"


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "demo"], ids=str)
def test_config_opens_with_the_command_that_uses_it(path):
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("# python scripts/train_scu.py --config ")
    assert f"--config configs/{path.name} --output adapters/" in first


def test_the_guides_template_means_what_it_says(tmp_path):
    config = load_text(TEMPLATE, tmp_path)
    assert config.model.base_model == "your-model-id"
    assert config.model.architecture == "transformer"
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (16, 32, 0.05)
    assert config.lora.targets == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]
    control = config.scu.control
    assert (control.target_s, control.kp, control.ki, control.deadband) == (0.03, 0.8, 0.15, 0.003)
    assert (control.lambda_init, control.lambda_min, control.lambda_max) == (1.0, 0.0001, 2.0)
    assert config.scu.prior_sigma == 0.01
    assert config.scu.prior_mean == "init"
    training = config.training
    assert training.learning_rate == 2e-5
    assert (training.batch_size, training.gradient_accumulation) == (1, 16)
    assert (training.block_size, training.steps, training.warmup_steps) == (2048, 1500, 150)
    assert training.weight_decay == 0.0
    assert config.data.train_data == "path/to/train.jsonl"
    assert config.data.val_data == "path/to/val.jsonl"
    assert config.data.tokens_per_epoch == 98_304_000


def test_the_shipped_template_is_the_guides():
    text = (ROOT / "configs/my_model_scu.yaml").read_text(encoding="utf-8")
    assert text.partition("\n")[2] == TEMPLATE


def test_the_template_is_not_ready_until_its_placeholders_are_replaced(tmp_path):
    config = load_text(TEMPLATE, tmp_path)
    with pytest.raises(
        ConfigError, match=r"model\.base_model is still .*'your-model-id'"
    ) as caught:
        check_ready(config)
    for key in ("model.base_model", "data.train_data", "data.val_data"):
        assert key in str(caught.value)
    own = ["base_model=my/model", "train_data=train.jsonl", "val_data=val.jsonl"]
    check_ready(load(tmp_path / "run.yaml", sets=own))


@pytest.mark.parametrize(
    ("name", "base_model", "target_s", "steps"),
    [
        ("llama_3_2_1b", "meta-llama/Llama-3.2-1B", 0.01, 500),
        ("llama_3_2_3b", "meta-llama/Llama-3.2-3B", 0.03, 500),
        ("vibethinker_1_5b", "WeiboAI/VibeThinker-1.5B", 0.01, 500),
        ("olmo_3_7b", "allenai/Olmo-3-1025-7B", 0.03, 1500),
    ],
)
def test_the_guides_published_runs(name, base_model, target_s, steps):
    config = load(ROOT / f"configs/{name}.yaml")
    assert config.model.base_model == base_model
    assert (config.scu.target_s, config.lora.rank, config.training.steps) == (target_s, 16, steps)
    assert config.scu.prior_mean == "zero"
    assert config.data.tokens_per_epoch == (98_304_000 if name == "olmo_3_7b" else None)
    check_ready(config)
