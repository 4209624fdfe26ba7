"""A run as data: a YAML file, and what overrides it, as one frozen and checked RunConfig.

    config = load(Path("run.yaml"), sets=["scu.kp=0.5"], output="adapters/mine")

Sections and names are the scaling guide's. What users of transformers, PEFT and TRL type in their
place is accepted too (Also, next to each field), under the section or without one. Null means "not
given". All problems of a file come out at once, in one ConfigError, one line each.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from scu.control import ControlSettings
from scu.errors import ConfigError

_BASE = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Also(tuple[str, ...]):
    """Other spellings of a field."""

    def __new__(cls, *names: str) -> Self:
        return super().__new__(cls, names)


class From(str):
    """Where a field's default comes from, if it is more than a default."""


def _spelled(**values: str) -> BeforeValidator:
    """Other spellings of a value."""
    return BeforeValidator(lambda v: values.get(v, v) if isinstance(v, str) else v)


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a field takes: its types and, each by itself, its literal values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (UnionType, Union):
        for arm in get_args(annotation):
            yield from _kinds(arm)
    elif origin is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _lax(cls: Any, value: Any, info: ValidationInfo) -> Any:
    """YAML 1.1 reads 1e3 as text and `yes` as a truth value, which pydantic would take for 1."""
    assert info.field_name is not None
    kinds = list(_kinds(cls.__pydantic_fields__[info.field_name].annotation))
    if isinstance(value, bool) and bool not in kinds:
        raise PydanticCustomError("bool_type", "a truth value")
    if int in kinds and isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d+", value):
        return float(value)  # pydantic makes an int of it if it is whole
    return value


class _Section(BaseModel):
    model_config = ConfigDict(**_BASE, frozen=True)
    _checked_kinds = field_validator("*", mode="before")(_lax)


Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0.0)]


class Model(_Section):
    base_model: Annotated[str, Also("model", "model_name_or_path")]
    """The base model: a hub id or a folder."""
    architecture: Literal["transformer"] = "transformer"
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Also("dtype"), _spelled(bfloat16="bf16", float32="fp32")
    ] = "auto"
    """Of the base model's weights and of the arithmetic; the adapter is fp32 always."""
    load_in_4bit: StrictBool = False
    trust_remote_code: StrictBool = False
    """Run code that comes with the base model."""
    attn_implementation: str | None = None
    """As in transformers; None leaves the choice to it."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""


class Lora(_Section):
    rank: Annotated[Count, Also("r", "lora_r", "lora_rank")] = 16
    alpha: Annotated[Count, Also("lora_alpha"), From("derived: 2 x rank")] = Field(
        default_factory=lambda data: 2 * data["rank"]
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0), Also("lora_dropout")] = 0.0
    targets: Annotated[
        Annotated[list[str], Field(min_length=1)] | Literal["auto", "all-linear"],
        Also("lora_targets", "lora_target_modules", "target_modules"),
        _spelled(all="all-linear"),
    ] = "auto"
    """auto: the guide's seven attention and MLP projections where the model has them all, otherwise
    all-linear."""
    use_dora: Annotated[StrictBool, Also("dora")] = False
    use_rslora: Annotated[StrictBool, Also("rslora")] = False


@dataclass(frozen=True, kw_only=True, config=_BASE)
class Scu(ControlSettings):
    """The controller's settings, declared and checked in scu.control, and the loop's around it."""

    prior_sigma: Positive = 0.01
    """Standard deviation of the prior, in weight units."""
    prior_mean: Literal["init", "zero"] = "init"
    """init: the adapter as drawn, so that S starts at 0. zero: the guide's published runs."""
    actuator: Literal["prox", "gradient", "none"] = "prox"
    """How lambda reaches the weights; none measures S and leaves lambda without effect."""

    _checked_kinds = field_validator("*", mode="before")(_lax)

    @property
    def control(self) -> ControlSettings:
        return ControlSettings(**{f.name: getattr(self, f.name) for f in fields(ControlSettings)})


def _tenth(data: dict[str, Any]) -> int:
    return int(data["steps"] // 10)


_TENTH = From("derived: 10 % of steps")


class Training(_Section):
    learning_rate: Annotated[Positive, Also("lr")] = 2e-4
    """The constant rate between warmup and cooldown."""
    batch_size: Annotated[Count, Also("per_device_train_batch_size", "micro_batch_size")] = 1
    """Rows per device and micro-batch."""
    gradient_accumulation: Annotated[
        Count, Also("gradient_accumulation_steps", "grad_accumulation_steps")
    ] = 16
    """Micro-batches per optimizer step."""
    block_size: Annotated[
        Count, Also("max_length", "max_seq_length", "sequence_len", "cutoff_len")
    ] = 2048
    """Tokens per row at most."""
    steps: Annotated[Count, Also("max_steps")] = 1500
    """Optimizer steps, warmup and cooldown among them."""
    warmup_steps: Annotated[int, Field(ge=0), _TENTH] = Field(default_factory=_tenth)
    cooldown_steps: Annotated[int, Field(ge=0), _TENTH] = Field(default_factory=_tenth)
    """The last steps, in which the rate falls to 0 and lambda is held."""
    weight_decay: float = 0.0
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """0: gradients are not clipped."""
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_bnb_8bit",
        "paged_adamw_8bit",
        "sgd",
        "adafactor",
    ] = "adamw_torch_fused"
    seed: Annotated[int, Field(ge=0, lt=2**32), Also("random_seed")] = 0
    gradient_checkpointing: StrictBool = False
    eval_steps: Count | None = None
    """Optimizer steps between evaluations; None: not while training."""
    save_steps: Count | None = None
    """Optimizer steps between checkpoints; None: no checkpoints."""
    save_total_limit: Count = 2
    """Checkpoints kept."""
    report_to: str | list[str] = "none"
    """As in transformers."""

    @field_validator("weight_decay")
    @classmethod
    def _no_weight_decay(cls, value: float) -> float:
        if value != 0.0:
            raise ValueError(
                f"must be 0, got {value}: lambda is the only regularizer, a second one outside the "
                "loop would be charged to S"
            )
        return value

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} + cooldown_steps {self.cooldown_steps} exceed "
                f"steps {self.steps}"
            )
        return self


class Data(_Section):
    train_data: Annotated[str, Also("train_file", "dataset", "dataset_name", "train")]
    """The training data: a file, a folder or a hub id."""
    val_data: Annotated[str | None, Also("validation_file", "eval_dataset", "val")] = None
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0), Also("val_set_size", "val_size")] = 0.05
    """Share of the training documents held out where there is no val_data; unused otherwise."""
    packing: StrictBool | Literal["auto"] = "auto"
    """auto: text is packed, prompts with completions are not."""
    tokens_per_epoch: Count | None = None
    """N, the distinct training tokens that carry loss; None: counted."""

    @model_validator(mode="after")
    def _one_validation_set(self) -> Self:
        if self.val_data is not None and "val_fraction" in self.model_fields_set:
            raise ValueError("val_fraction has no meaning beside val_data; give one of them")
        return self


class RunConfig(_Section):
    model: Model
    lora: Lora = Lora()
    scu: Scu
    training: Training = Training()
    data: Data
    output: Annotated[str | None, Also("output_dir", "adapter_out", "out_dir")] = None
    """Folder of the run."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value came from, by dotted key; empty if this was not made by load()."""
        return MappingProxyType(self._sources)

    def __eq__(self, other: object) -> bool:
        """Values count, not where they came from."""
        return isinstance(other, RunConfig) and self.model_dump() == other.model_dump()

    @model_validator(mode="after")
    def _prox_has_its_moment(self) -> Self:
        if self.scu.actuator == "prox" and not self.training.optim.startswith("adamw_torch"):
            raise ValueError(
                "scu.actuator: prox needs Adam's second moment in full precision, and "
                f"training.optim {self.training.optim} does not keep it; use adamw_torch_fused, or "
                "actuator: gradient"
            )
        return self


def _fields_of(model: Any, section: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.__pydantic_fields__.items():
        if hasattr(info.annotation, "__pydantic_fields__"):
            yield from _fields_of(info.annotation, f"{name}.")
        else:
            yield section + name, info


FIELDS: Mapping[str, FieldInfo] = dict(_fields_of(RunConfig))
"""Every setting, by dotted key."""
SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in FIELDS if "." in key))
NAMES: dict[str, str] = {}
"""Every accepted spelling, with its section and without, to the dotted key that it means."""
for _key, _info in FIELDS.items():
    _section, _dot, _name = _key.rpartition(".")
    for _also in (Also(_name), *(m for m in _info.metadata if isinstance(m, Also))):
        for _spelling in _also:
            NAMES[_spelling] = NAMES[_section + _dot + _spelling] = _key

_LAMBDAS = {"scu.lambda_init", "scu.lambda_min", "scu.lambda_max"}
_GUIDE_STEP_4 = {"scu.kp", "scu.ki", "scu.deadband"} | _LAMBDAS
_JUDGED_TOGETHER = (
    _LAMBDAS,
    {"training.steps", "training.warmup_steps", "training.cooldown_steps"},
    {"scu.actuator", "training.optim"},
    {"data.val_data", "data.val_fraction"},
)
"""When one of these is wrong, the others are not blamed for not fitting it."""
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_WORDS |= {list[str]: "a list of names", type(None): "null"}
_WRONG_KIND = re.compile(r".*_(type|parsing|from_float|error|short)")


def load(path: Path, *, sets: Sequence[str] = (), output: str | None = None) -> RunConfig:
    """Read the run that a YAML file describes.

    sets are `section.key=value`, the value in YAML; the last one for a key counts. They override
    the file, and output overrides both. Raises ConfigError with every problem found.
    """
    problems: list[str] = []
    given: dict[str, tuple[Any, str]] = {}  # dotted key: value, source
    spelled: dict[str, str] = {}
    for written, key, value in _settings(_read(path, problems), problems):
        if key in spelled:
            problems.append(f"{key} is given twice, as {spelled[key]} and as {written}")
        given[key], spelled[key] = (value, path.name), written
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--set {text}: expected section.key=value")
            continue
        parsed = _parse(value, f"--set {text}", problems)
        given |= {key: (v, "--set") for _, key, v in _settings({name.strip(): parsed}, problems)}
    if output is not None:
        given["output"] = output, "--output"
    given = {key: pair for key, pair in given.items() if pair[0] is not None}

    config = _validate({key: value for key, (value, _) in given.items()}, problems)
    if config is None or problems:
        many = f"{len(problems)} problems\n  " if len(problems) > 1 else ""
        raise ConfigError(f"{path}: {many}" + "\n  ".join(problems))
    for key, info in FIELDS.items():
        default = next((str(m) for m in info.metadata if isinstance(m, From)), "default")
        default = "guide step 4" if key in _GUIDE_STEP_4 else default
        config._sources[key] = given[key][1] if key in given else default
    return config


def dump(config: RunConfig) -> str:
    """YAML that load() reads back to an equal config; after each value, where it came from."""
    lines, section = [], ""
    for key in FIELDS:
        head, _, name = key.rpartition(".")
        if head != section:
            lines += [f"{head}:"] if head else []
            section = head
        value = attrgetter(key)(config)
        style = '"' if isinstance(value, str | list) else None
        text = yaml.safe_dump(
            value, default_flow_style=True, default_style=style, width=math.inf, allow_unicode=True
        )
        line = f"{name}: " + text.removesuffix("\n").removesuffix("\n...")
        if key == "data.val_fraction" and config.data.val_data is not None:
            line = f"# {line} is not used beside val_data"
        elif key in config.sources:
            line += f"  # {config.sources[key]}"
        lines.append("  " * bool(head) + line)
    return "\n".join(lines) + "\n"


def check_ready(config: RunConfig) -> None:
    """Raise ConfigError while a value is still the placeholder of the guide's template."""
    left = [
        f"{key} is still the template's {value!r}; put your own there"
        for key in FIELDS
        if isinstance(value := attrgetter(key)(config), str)
        and value.startswith(("your-model-id", "path/to/"))
    ]
    if left:
        raise ConfigError("\n".join(left))


class _Loader(yaml.SafeLoader):
    """Notes keys that stand twice in one mapping: YAML forbids them, PyYAML keeps the last."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                first = lines[key.value]
                self.twice.append(f"line {line}: {key.value} is given twice, first in line {first}")
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str, problems: list[str]) -> Any:
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    problems += loader.twice
    return content


def _read(path: Path, problems: list[str]) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8") from error
    content = _parse(text, str(path), problems)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected the sections {', '.join(SECTIONS)}, found {short(content)}"
        )
    return content


def _settings(content: Mapping[Any, Any], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield each setting as it is written, its dotted key and its value."""
    flat: list[tuple[str, Any]] = []
    for name, value in content.items():
        if name in SECTIONS and isinstance(value, dict):
            flat += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif name not in SECTIONS or name in NAMES:
            flat.append((str(name), value))
        elif value is not None:
            problems.append(f"{name}: expected a section with its settings, got {short(value)}")
    for written, value in flat:
        if written in NAMES:
            yield written, NAMES[written], value
        else:
            problems.append(f"unknown key {written}; {_hint(written, isinstance(value, dict))}")


def _hint(written: str, is_section: bool) -> str:
    section, _, name = written.rpartition(".")
    if section and name in NAMES:
        home = NAMES[name].rpartition(".")[0]
        return f"`{name}` belongs " + (f"under {home}" if home else "outside the sections")
    own = [n for n, key in NAMES.items() if "." not in n and key.startswith(f"{section}.")]
    for close in get_close_matches(name, own, n=1):
        return f"did you mean {section}.{close}?"
    for close in get_close_matches(written, SECTIONS if is_section else [*NAMES], n=1):
        return f"did you mean {NAMES.get(close, close)}?"
    known = [key for key in FIELDS if key.startswith(f"{section}.")]
    return f"expected one of {', '.join(known or SECTIONS)}"


def _validate(values: dict[str, Any], problems: list[str]) -> RunConfig | None:
    """The config, or None and why not."""
    nested: dict[str, Any] = {section: {} for section in SECTIONS}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested[section] if section else nested)[name] = value
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        wrong: dict[str, str] = {}
        for detail in error.errors(include_url=False):
            if detail["type"] != "default_factory_not_called":
                key = _blamed(detail)
                wrong.setdefault(key, _described(key, detail, values.get(key)))
    problems += wrong.values()
    # Once more without them, for the checks that were not reached.
    unfit = set(wrong).union(*(group for group in _JUDGED_TOGETHER if group & wrong.keys()))
    rest = {key: value for key, value in values.items() if key not in unfit}
    for key in wrong:
        if FIELDS[key].is_required():
            rest[key] = 0.5 if key == "scu.target_s" else "stand-in"
    _validate(rest, problems)
    return None


def _blamed(detail: ErrorDetails) -> str:
    """The dotted key of the field, or of the one that a check of several names first."""
    where = ".".join(str(part) for part in detail["loc"][:2])
    keys = [
        where,
        *(f"{where}.{word}".lstrip(".") for word in re.findall(r"[\w.]+", detail["msg"])),
    ]
    return next(key for key in keys if key in FIELDS)


def _described(key: str, detail: ErrorDetails, value: Any) -> str:
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "value_error":
        return message if message.startswith(key) else f"{key}: {message}"
    if key == "scu.target_s":
        got = "missing" if value is None else f"expected a number, got {short(value)}"
        return f"{key}: {got}; give S* as a fraction, such as 0.03"
    if detail["type"] == "missing":
        return f"{key}: missing; {FIELDS[key].description}"
    if _WRONG_KIND.fullmatch(detail["type"]):
        kinds = " or ".join(_WORDS.get(kind, str(kind)) for kind in _kinds(FIELDS[key].annotation))
        return f"{key}: expected {kinds}, got {short(value)}"
    return f"{key}: {message}, got {short(value)}"
