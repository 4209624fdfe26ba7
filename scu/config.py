"""A run as data: one frozen and checked RunConfig. How it is read and written: config_file.py.

Sections and names are the scaling guide's. What users of transformers, PEFT and TRL type in their
place is accepted too (Also, next to each field), under the section or without one. Every setting is
declared here once, with its default and what it means.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from scu.control import ActuatorKind, ControlSettings, PriorMean, StopRule

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


def kinds_of(annotation: Any) -> Iterator[Any]:
    """What a field takes: its types and, each by itself, its literal values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from kinds_of(get_args(annotation)[0])
    elif origin in (UnionType, Union):
        for arm in get_args(annotation):
            yield from kinds_of(arm)
    elif origin is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _lax(cls: Any, value: Any, info: ValidationInfo) -> Any:
    """YAML 1.1 reads 1e3 as text and `yes` as a truth value, which pydantic would take for 1."""
    assert info.field_name is not None
    kinds = list(kinds_of(cls.__pydantic_fields__[info.field_name].annotation))
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
    """Hub id or folder of the base model, or `embedded`: the one that comes with the package."""
    architecture: Literal["transformer"] = "transformer"
    """The only kind there is; the guide's template has it."""
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Also("dtype"), _spelled(bfloat16="bf16", float32="fp32")
    ] = "auto"
    """Of the base model's weights and of the arithmetic; the adapter is fp32 always."""
    load_in_4bit: StrictBool = False
    """QLoRA: the base model in NF4, through bitsandbytes."""
    trust_remote_code: StrictBool = False
    """Run code that comes with the base model."""
    attn_implementation: str | None = None
    """As in transformers; None leaves the choice to it."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""


class Lora(_Section):
    rank: Annotated[Count, Also("r", "lora_r", "lora_rank")] = 16
    """Of each update B A."""
    alpha: Annotated[Count, Also("lora_alpha"), From("derived: 2 x rank")] = Field(
        default_factory=lambda data: 2 * data["rank"]
    )
    """The update enters as alpha / rank times B A (rsLoRA: alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0), Also("lora_dropout")] = 0.0
    """Of the adapter's input."""
    targets: Annotated[
        Annotated[list[str], Field(min_length=1)] | Literal["auto", "all-linear"],
        Also("lora_targets", "lora_target_modules", "target_modules"),
        _spelled(all="all-linear"),
    ] = "auto"
    """auto: the guide's seven attention and MLP projections where the model has them all, otherwise
    all-linear."""
    use_dora: Annotated[StrictBool, Also("dora")] = False
    """Magnitude vectors beside A and B; they have no prior and S does not count them."""
    use_rslora: Annotated[StrictBool, Also("rslora")] = False
    """Scale by alpha / sqrt(rank)."""


@dataclass(frozen=True, kw_only=True, config=_BASE)
class Scu(ControlSettings):
    """The controller's settings, declared and checked in scu.control, and the loop's around it."""

    prior_sigma: Positive = 0.01
    """Standard deviation of the prior, in weight units."""
    prior_mean: PriorMean = "init"
    """init: the adapter as drawn, so that S starts at 0. zero: the guide's published runs."""
    actuator: ActuatorKind = "prox"
    """How lambda reaches the weights; none measures S and leaves lambda without effect."""
    stop: StopRule = "equilibrium"
    """What ends training before its steps are done: see scu.ending."""
    pulse: StrictBool = False
    """Move lambda up and down for a while, to prove that S follows it: see scu.pulse."""

    _checked_kinds = field_validator("*", mode="before")(_lax)

    @property
    def control(self) -> ControlSettings:
        return ControlSettings(**{f.name: getattr(self, f.name) for f in fields(ControlSettings)})


Optim = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd", "adafactor"
]


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
    """The first steps, in which the rate rises from 0."""
    cooldown_steps: Annotated[int, Field(ge=0), _TENTH] = Field(default_factory=_tenth)
    """The last steps, in which the rate falls to 0 and lambda is held; fewer in proportion where
    training ends early."""
    max_hours: Positive | None = None
    """Time limit, cooldown included; None: none."""
    max_tokens: Count | None = None
    """Limit of the tokens that carry loss, over all epochs, cooldown included; None: none."""
    weight_decay: float = 0.0
    """Nothing but 0."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """0: gradients are not clipped."""
    optim: Optim = "adamw_torch_fused"
    """As in transformers; the learning rate's scale depends on it."""
    seed: Annotated[int, Field(ge=0, lt=2**32), Also("random_seed")] = 0
    """Of the adapter's start, the order of the data, dropout and the validation split."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in the backward pass: less memory, more time."""
    eval_steps: Count | None = None
    """Optimizer steps between evaluations; None: not while training."""
    save_steps: Count | None = None
    """Optimizer steps between checkpoints; None: of the best evaluation only, if there are any."""
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
    """A file, a folder or a hub id, as scu.data reads them."""
    val_data: Annotated[str | None, Also("validation_file", "eval_dataset", "val")] = None
    """The validation data, as train_data; None: val_fraction of the training data."""
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0), Also("val_set_size", "val_size")] = 0.05
    """Share of the training documents held out where there is no val_data; 0 holds out none."""
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
