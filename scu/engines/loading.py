"""Base models, tokenizers and adapters, from a folder or the hub."""

import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import get_training_chat_template
from trl.chat_template_utils import has_generation_markers

from scu.config import Lora, Model
from scu.errors import ModelError

EMBEDDED = "embedded"
"""Name of the small base model that comes with this package."""

GUIDE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_ARCHITECTURES = {"transformer": AutoModelForCausalLM}


def pick_dtype(precision: str) -> torch.dtype:
    """bf16 where the accelerator has it, else fp32, unless the configuration says which."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def load_tokenizer(model: Model) -> Any:
    """The base model's tokenizer. Raises ModelError when it is missing or has no end-of-text
    token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            _location(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(_cannot_load("tokenizer", model, error)) from error
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {model.base_model} has no EOS token: the adapter could never "
            "learn to stop"
        )
    return tokenizer


def load_base(model: Model) -> Any:
    """The base model for causal language modeling, in NF4 with double quantization if load_in_4bit.

    Raises ModelError when it cannot be loaded; nothing of a model folder is executed unless
    trust_remote_code is set.
    """
    dtype = pick_dtype(model.precision)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": model.attn_implementation}
    if model.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        # Placed while it is quantized; each process of a distributed run has its own device.
        device = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
        options["device_map"] = {"": device}
    try:
        return _ARCHITECTURES[model.architecture].from_pretrained(
            _location(model),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load("base model", model, error)) from error


def add_adapter(model: Any, lora: Lora) -> tuple[Any, str]:
    """Put a LoRA adapter on a base model: (the PeftModel, a line that says where it was put).

    A is drawn from torch's current random state. Raises ModelError when the targets are not in the
    model.
    """
    targets, note = lora_targets(model, lora.targets)
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        # GPT-2's Conv1D holds its weight transposed; PEFT warns if it has to find out by itself.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config), note
    except ValueError as error:
        raise ModelError(f"cannot put a LoRA adapter on the model: {error}") from error


def lora_targets(model: nn.Module, wanted: str | list[str]) -> tuple[str | list[str], str]:
    """PEFT's target_modules for what the configuration wants, and a line that says so.

    The guide's seven module names stand for "every linear layer": a model that names its layers
    otherwise (GPT-2, GPT-NeoX, Falcon, Phi) gets all-linear. Any other list must be found in the
    model.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if wanted == "all-linear":
        return "all-linear", "all linear layers"
    listed = list(GUIDE_TARGETS) if wanted == "auto" else list(wanted)
    missing = [name for name in listed if name not in names]
    if not missing:
        return listed, ", ".join(listed)
    if set(listed) == set(GUIDE_TARGETS):
        return "all-linear", f"all linear layers (this model has no {missing[0]})"
    linear = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        }
    )
    raise ModelError(
        f"lora.targets: the model has no module named {', '.join(missing)}; its linear layers are "
        f"{', '.join(linear)}. Name some of these, or use all-linear"
    )


def load_adapter(folder: Path, model: Model) -> Any:
    """The base model of a run with its trained adapter on it, ready to be evaluated.

    Raises ModelError when the folder holds no PEFT adapter or it does not fit the base.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds no adapter (adapter_config.json is missing)")
    base = load_base(model)
    try:
        adapted = PeftModel.from_pretrained(base, folder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"cannot load the adapter in {folder}: {error}") from error
    if torch.cuda.is_available() and not model.load_in_4bit:  # a quantized model is placed already
        adapted = adapted.to("cuda")
    return adapted.eval()


def assistant_template(tokenizer: Any) -> str | None:
    """A chat template that marks the assistant's tokens, or None where there is none for this
    model."""
    if tokenizer.chat_template is None:
        raise ModelError(
            "the data are chat messages and the base model's tokenizer has no chat template; use "
            "an instruction-tuned base, or data with prompt and completion"
        )
    if has_generation_markers(tokenizer.chat_template):
        return str(tokenizer.chat_template)
    try:
        return str(get_training_chat_template(processing_class=tokenizer))
    except ValueError:
        return None


def _location(model: Model) -> str:
    name = model.base_model
    if name == EMBEDDED:
        return str(Path(__file__).parent.parent / "base")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"model.base_model: there is no folder {name}")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _cannot_load(what: str, model: Model, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"cannot load the {what} of model.base_model {model.base_model!r}: {reason}. "
        "Give a folder with a transformers model, or the name of one on the hub"
    )
