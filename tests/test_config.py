"""What a run's YAML may say, what it is taken to mean, and how it is refused."""

import ast
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from scu.config import FIELDS, NAMES, SECTIONS, RunConfig
from scu.config_file import check_ready, dump, load
from scu.control import ControlSettings
from scu.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
LEAST = {"model.base_model": "some/model", "scu.target_s": 0.03, "data.train_data": "train.jsonl"}


def nested(settings):
    content = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    return content


@pytest.fixture
def run(tmp_path):
    """Load the least run there is with other settings, by dotted key; or a text as it is."""

    def run(settings=(), *, text=None, **options):
        path = tmp_path / "run.yaml"
        content = yaml.safe_dump(nested(LEAST | dict(settings))) if text is None else text
        path.write_text(content, encoding="utf-8")
        return load(path, **options)

    return run


# ---- Values ------------------------------------------------------------------------------------


def test_the_least_run_and_its_defaults(run):
    config = run()
    assert config.lora.alpha == 32
    assert config.training.warmup_steps == config.training.cooldown_steps == 150
    assert config.scu.control == ControlSettings(target_s=0.03)
    assert config.data.val_data is None
    assert config.data.val_fraction == 0.05
    assert config.output is None
    check_ready(config)


def test_the_controllers_settings_are_declared_in_one_place():
    own = {key.removeprefix("scu.") for key in FIELDS if key.startswith("scu.")}
    declared = {field.name: field.default for field in fields(ControlSettings)}
    assert declared.keys() < own
    for name in declared.keys() - {"target_s"}:
        assert FIELDS[f"scu.{name}"].default == declared[name]


def test_every_setting_is_described():
    declared = {f"scu.{field.name}" for field in fields(ControlSettings)}
    assert [key for key in FIELDS.keys() - declared if not FIELDS[key].description] == []


@pytest.mark.parametrize("key", FIELDS)
def test_every_setting_is_read_by_the_product(key):
    assert key.rpartition(".")[2] in attributes_read(), f"nothing reads config.{key}"


@cache
def attributes_read():
    files = [path for top in ("scu", "scu_api") for path in (ROOT / top).rglob("*.py")]
    return {
        node.attr
        for path in files
        if path != ROOT / "scu/config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value) not in ("torch", "self")
    }


SAMPLES = {
    "lora.targets": ["q_proj"],
    "model.precision": "bf16",
    "data.val_fraction": 0.25,
    "training.learning_rate": 3e-5,
    "lora.dropout": 0.25,
    "lora.use_dora": True,
    "lora.use_rslora": True,
}


def sample(key):
    return SAMPLES.get(key, "else" if str in kinds_of(key) else 7)


def kinds_of(key):
    annotation = FIELDS[key].annotation
    return (annotation, *get_args(annotation))


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def spellings(key):
    return {name for name, meant in NAMES.items() if meant == key and name != key}


ALIASES = sorted((name, key) for name, key in NAMES.items() if name.rpartition(".")[2] not in key)


@pytest.mark.parametrize(("spelling", "key"), ALIASES)
def test_alias_reaches_its_field(run, spelling, key):
    settings = {k: v for k, v in LEAST.items() if k != key} | {spelling: sample(key)}
    text = yaml.safe_dump(nested(settings))
    if spelling == "model":  # also the name of a section
        text = yaml.safe_dump({**nested(settings), "model": sample(key)})
    assert value_of(run(text=text), key) == sample(key)


def test_the_aliases_are_those_that_other_tools_use():
    known = {
        "model.base_model": "model model_name_or_path",
        "model.precision": "dtype",
        "lora.rank": "r lora_r lora_rank",
        "lora.alpha": "lora_alpha",
        "lora.dropout": "lora_dropout",
        "lora.targets": "lora_targets lora_target_modules target_modules",
        "training.learning_rate": "lr",
        "training.batch_size": "per_device_train_batch_size micro_batch_size",
        "training.gradient_accumulation": "gradient_accumulation_steps grad_accumulation_steps",
        "training.block_size": "max_length max_seq_length sequence_len cutoff_len",
        "training.steps": "max_steps",
        "data.train_data": "train_file dataset dataset_name train",
        "data.val_data": "validation_file eval_dataset val",
        "output": "output_dir adapter_out out_dir",
    }
    for key, names in known.items():
        assert set(names.split()) <= spellings(key)


def test_no_spelling_means_two_things():
    bare = [name for name in NAMES if "." not in name]
    for name in bare:
        meant = {key for dotted, key in NAMES.items() if dotted.rpartition(".")[2] == name}
        assert meant == {NAMES[name]}
    assert set(bare) & set(SECTIONS) == {"model"}


def test_a_flat_file_in_the_names_of_transformers(run):
    config = run(
        text="model_name_or_path: some/model\nlora_r: 8\nlearning_rate: 1e-4\ntarget_s: 0.02\n"
        "max_steps: 200\ndataset_name: some/data\noutput_dir: out\n"
    )
    assert (config.model.base_model, config.data.train_data) == ("some/model", "some/data")
    assert (config.lora.rank, config.lora.alpha, config.training.steps) == (8, 16, 200)
    assert (config.training.learning_rate, config.scu.target_s) == (1e-4, 0.02)
    assert config.output == "out"


@pytest.mark.parametrize(
    ("text", "value"), [("2e-5", 2e-5), ("2.0e-5", 2e-5), ("'0.001'", 0.001), ("1", 1.0)]
)
def test_numbers_as_yaml_writers_write_them(run, text, value):
    assert run(sets=[f"training.learning_rate={text}"]).training.learning_rate == value


@pytest.mark.parametrize("text", ["1e3", "1000", "1000.0", "1.0e+3", "1_000"])
def test_whole_numbers_as_yaml_writers_write_them(run, text):
    steps = run(sets=[f"training.steps={text}"]).training.steps
    assert steps == 1000
    assert type(steps) is int


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("lora.targets", "all", "all-linear"),
        ("model.precision", "bfloat16", "bf16"),
        ("model.precision", "float32", "fp32"),
    ],
)
def test_other_spellings_of_values(run, key, written, meant):
    assert value_of(run({key: written}), key) == meant


def test_null_and_an_empty_section_mean_not_given(run):
    config = run({"lora.alpha": None, "lora.rank": 4, "data.val_data": None})
    assert config.lora.alpha == 8
    assert config.sources["lora.alpha"] == "derived: 2 x rank"
    text = "model:\ntraining:\nmodel_name_or_path: a\ntarget_s: 0.03\ntrain: b\n"
    assert run(text=text).training == config.training
    assert run({"training.lr": 1e-3}, sets=["lr=null"]).training == config.training


def test_short_runs_need_no_warmup(run):
    training = run({"training.steps": 5}).training
    assert (training.warmup_steps, training.cooldown_steps) == (0, 0)


def test_a_config_is_frozen(run):
    config = run()
    with pytest.raises(ValidationError, match="frozen"):
        config.output = "elsewhere"
    with pytest.raises(ValidationError, match="frozen"):
        config.training.steps = 3
    with pytest.raises(AttributeError, match="kp"):
        config.scu.kp = 3.0


# ---- Overrides, sources, dump ------------------------------------------------------------------


def test_set_overrides_the_file_and_output_overrides_both(run):
    sets = ["scu.kp=0.4", "lora_r=8", "training.lr=1e-3", "output=first", "scu.kp=0.5"]
    config = run({"scu.kp": 0.1, "lora.r": 32, "output": "file"}, sets=sets, output="last")
    assert (config.scu.kp, config.lora.rank, config.training.learning_rate) == (0.5, 8, 1e-3)
    assert config.output == "last"


def test_set_takes_yaml(run):
    config = run(sets=["lora.targets=[q_proj, v_proj]", "scu={ki: 0.1}", "model=other/model"])
    assert config.lora.targets == ["q_proj", "v_proj"]
    assert config.scu.ki == 0.1
    assert config.model.base_model == "other/model"


def test_each_value_knows_where_it_came_from(run):
    config = run({"lora.lora_r": 8, "scu.kp": 0.7}, sets=["lr=1e-4"], output="out")
    assert config.sources.keys() == FIELDS.keys()
    expected = {
        "lora.rank": "run.yaml",
        "scu.kp": "run.yaml",
        "scu.ki": "guide step 4",
        "scu.lambda_max": "guide step 4",
        "scu.ema": "default",
        "lora.alpha": "derived: 2 x rank",
        "training.learning_rate": "--set",
        "training.warmup_steps": "derived: 10 % of steps",
        "training.cooldown_steps": "derived: 10 % of steps",
        "training.optim": "default",
        "output": "--output",
    }
    assert {key: config.sources[key] for key in expected} == expected
    with pytest.raises(TypeError, match="item assignment"):
        config.sources["scu.kp"] = "elsewhere"


def test_a_config_made_in_python_claims_no_sources():
    config = RunConfig.model_validate(nested(LEAST) | {"training": {"learning_rate": "2e-5"}})
    assert config.sources == {}
    assert config.training.learning_rate == 2e-5
    assert "#" not in dump(config)


AWKWARD = [
    {},
    {"training.report_to": ["wandb", "tensorboard"], "training.eval_steps": 50, "output": "a #b"},
    {
        "model.revision": "1e10",
        "data.train_data": "a: 'b'\n\"c\" \u00e9 \U0001f600",
        "data.packing": False,
    },
    {"data.val_data": "val.jsonl", "training.learning_rate": 1.2345678901234567e-7},
    {"data.val_fraction": 0.1, "training.cooldown_steps": 0, "lora.targets": "all"},
]


@pytest.mark.parametrize("settings", AWKWARD)
def test_dump_loads_to_an_equal_config(run, settings):
    config = run(settings, sets=["scu.kp=0.5"])
    text = dump(config)
    again = run(text=text)
    assert again == config
    assert again != run(text=text, sets=["scu.kp=0.6"])
    assert config != text
    assert "  kp: 0.5  # --set\n" in text
    assert "  ki: 0.15  # guide step 4\n" in text


def test_dump_shows_a_source_on_every_line(run):
    for line in dump(run()).splitlines():
        assert line.removesuffix(":") in SECTIONS or "  # " in line
    assert "# val_fraction: 0.05 is not used" in dump(run({"data.val_data": "val.jsonl"}))


# ---- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scu.kpp": 1}, r"unknown key scu\.kpp; did you mean scu\.kp\?"),
        ({"lora.lora_rnk": 1}, r"unknown key lora\.lora_rnk; did you mean lora\.lora_rank\?"),
        ({"training.kp": 1}, r"unknown key training\.kp; `kp` belongs under scu"),
        ({"training.lora_r": 1}, r"unknown key training\.lora_r; `lora_r` belongs under lora"),
        ({"data.output_dir": "x"}, r"`output_dir` belongs outside the sections"),
        ({"learning_rte": 1}, r"unknown key learning_rte; did you mean training\.learning_rate\?"),
        ({"scu.learning_rte": 1}, r"did you mean training\.learning_rate\?"),
        ({"scu.zzz": 1}, r"unknown key scu\.zzz; expected one of scu\.target_s, scu\.kp, "),
        ({"trainin.steps": 1}, r"unknown key trainin; did you mean training\?"),
        ({"zzz": 1}, r"unknown key zzz; expected one of model, lora, scu, training, data"),
        ({"lora": 3}, r"lora: expected a section with its settings, got 3"),
        ({"lora.r": 8, "lora.rank": 8}, r"lora\.rank is given twice, as lora\.r and as lora\.rank"),
        ({"lora.r": 8, "lora_r": 8}, r"lora\.rank is given twice, as lora\.r and as lora_r"),
        ({"training.steps": "many"}, r"training\.steps: expected a whole number, got 'many'"),
        ({"training.steps": 1.5}, r"training\.steps: expected a whole number, got 1\.5"),
        ({"training.steps": True}, r"training\.steps: expected a whole number, got True"),
        ({"training.steps": "1e-3"}, r"training\.steps: expected a whole number, got '1e-3'"),
        ({"scu.kp": True}, r"scu\.kp: expected a number, got True"),
        ({"scu.kp": [1]}, r"scu\.kp: expected a number, got \[1\]"),
        ({"scu.kp": float("nan")}, r"scu\.kp: must be a finite number, got nan"),
        ({"model.load_in_4bit": "yes"}, r"load_in_4bit: expected true or false, got 'yes'"),
        ({"model.load_in_4bit": 1}, r"load_in_4bit: expected true or false, got 1"),
        ({"model.revision": 123}, r"model\.revision: expected text or null, got 123"),
        ({"output": False}, r"output: expected text or null, got False"),
        ({"model.precision": "fp16"}, r"precision: expected auto or bf16 or fp32, got 'fp16'"),
        ({"model.architecture": "rnn"}, r"architecture: expected transformer, got 'rnn'"),
        (
            {"lora.targets": "q_proj"},
            r"expected a list of names or auto or all-linear, got 'q_proj'",
        ),
        ({"lora.targets": [1, 2]}, r"lora\.targets: expected a list of names .*, got \[1, 2\]"),
        ({"lora.targets": []}, r"lora\.targets: expected a list of names .*, got \[\]"),
        ({"data.packing": "yes"}, r"data\.packing: expected true or false or auto, got 'yes'"),
        ({"lora.rank": 0}, r"lora\.rank: must be positive, got 0"),
        ({"lora.dropout": 1.0}, r"lora\.dropout: must be less than 1, got 1\.0"),
        ({"training.batch_size": -1}, r"training\.batch_size: must be positive, got -1"),
        ({"training.eval_steps": 0}, r"training\.eval_steps: must be positive, got 0"),
        ({"training.save_steps": 0}, r"training\.save_steps: must be positive, got 0"),
        (
            {"training.warmup_steps": -1},
            r"warmup_steps: must be greater than or equal to 0, got -1",
        ),
        ({"data.tokens_per_epoch": 0}, r"data\.tokens_per_epoch: must be positive, got 0"),
        ({"data.val_size": 500}, r"data\.val_fraction: must be less than 1, got 500"),
        ({"scu.prior_sigma": 0}, r"scu\.prior_sigma: must be positive, got 0"),
        (
            {"scu.actuator": "magic"},
            r"scu\.actuator: expected prox or gradient or none, got 'magic'",
        ),
        ({"scu.lambda_min": 0, "scu.lambda_max": 0}, r"scu\.lambda_min: need 0 < lambda_min"),
        ({"scu.lambda_init": 5}, r"scu\.lambda_init: lambda_init 5\.0 is outside"),
        ({"scu.ema": 0}, r"scu\.ema: must be in"),
        ({"scu.target_s": 3}, r"scu\.target_s: must be a fraction.*did you mean 0\.03\?"),
        ({"scu.target_s": None}, r"scu\.target_s: missing; give S\* as a fraction, such as 0\.03"),
        ({"scu.target_s": "guide"}, r"target_s: expected a number, got 'guide'; .* such as 0\.03"),
        ({"scu.target_s": "auto"}, r"target_s: expected a number, got 'auto'; .* such as 0\.03"),
        ({"model.base_model": None}, r"model\.base_model: missing\. Hub id or folder"),
        ({"data.train_data": None}, r"data\.train_data: missing\. A file, a folder"),
        ({"training.weight_decay": 0.1}, r"weight_decay: must be 0, got 0\.1: lambda is the only"),
        (
            {"training.steps": 100, "training.warmup_steps": 91},
            r"warmup_steps 91 \+ cooldown_steps 10 exceed steps 100",
        ),
        (
            {"data.val_data": "v.jsonl", "data.val_fraction": 0.05},
            r"data\.val_fraction: val_fraction has no meaning beside val_data; give one",
        ),
        *(
            ({"training.optim": optim}, rf"scu\.actuator: prox needs .*optim {optim} .*gradient")
            for optim in ("adamw_bnb_8bit", "paged_adamw_8bit", "sgd", "adafactor")
        ),
    ],
    ids=str,
)
def test_refused_in_one_line(run, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(settings)
    assert len(str(caught.value).splitlines()) == 1
    assert "run.yaml: " in str(caught.value)


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_bnb_8bit"])
@pytest.mark.parametrize("actuator", ["gradient", "none"])
def test_other_actuators_take_any_optimizer(run, optim, actuator):
    assert run({"training.optim": optim, "scu.actuator": actuator}).training.optim == optim


def test_all_problems_come_at_once(run):
    with pytest.raises(ConfigError, match="12 problems") as caught:
        run(
            {
                "scu.target_s": "guide",
                "scu.kpp": 1,
                "scu.ki": -1,
                "scu.ema": 2,
                "scu.lambda_min": "low",
                "scu.lambda_init": 5,  # not blamed: its bounds are not known
                "model.base_model": None,
                "lora.rank": 0,
                "training.optim": "sgd",
                "training.weight_decay": 0.1,
                "training.warmup_steps": 5000,
                "data.val_data": "v.jsonl",
                "data.val_fraction": 0.2,
            },
            sets=["scu.control_interval=0"],
        )
    keys = [line.split(":")[0].split(";")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(keys) == [
        "data.val_fraction",
        "lora.rank",
        "model.base_model",
        "scu.actuator",
        "scu.control_interval",
        "scu.ema",
        "scu.ki",
        "scu.lambda_min",
        "scu.target_s",
        "training.warmup_steps",
        "training.weight_decay",
        "unknown key scu.kpp",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kp", "--set kp: expected section.key=value"),
        ("kpp=1", r"--set kpp=1: unknown key kpp; did you mean scu\.kp\?"),
        ("scu.kp=[1", "--set scu.kp=.*not valid YAML"),
        ("scu.kp=x", r"scu\.kp: expected a number, got 'x' \(--set\)"),
        ("scu={kp: 1, kp: 2}", "--set .*: line 1: kp is given twice"),
        ("scu=1", "--set scu=1: scu: expected a section with its settings, got 1"),
    ],
)
def test_set_refused(run, text, message):
    with pytest.raises(ConfigError, match=message):
        run(sets=[text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scu:\n  kp: 1\n  ki: 2\n  kp: 3\n", "line 4: kp is given twice, first in line 2"),
        ("scu: {kp: 1, kp: 1}\n", "line 1: kp is given twice, first in line 1"),
        ("scu:\n  kp: 1\nlora:\n  r: 1\nscu:\n  ki: 1\n", "line 5: scu is given twice"),
        ("scu:\n  kp: [1\nlora: 2\n", r"run\.yaml, line 3: not valid YAML: "),
        ("scu:\n\tkp: 1\n", r"run\.yaml, line 2: not valid YAML: "),
        ("? [a]\n: 1\n", r"run\.yaml, line 1: not valid YAML: "),
        ("a: 2026-99-99\n", r"run\.yaml: not valid YAML: month must be"),
        ("a: \0\n", r"run\.yaml: not valid YAML: unacceptable character"),
        ("- 1\n", r"run\.yaml: expected the sections model, .*, found \[1\]"),
        ("", r"run\.yaml: expected the sections model, .*, found None"),
    ],
)
def test_file_refused(run, text, message):
    with pytest.raises(ConfigError, match=message):
        run(text=text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not text in UTF-8"):
        load(tmp_path / "latin.yaml")


def test_placeholders_are_named(run):
    config = run({"data.train_data": "path/to/train.jsonl"})
    with pytest.raises(ConfigError, match=r"data\.train_data is still the template's 'path/to/tr"):
        check_ready(config)
