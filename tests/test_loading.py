"""Base models of several families, and where an adapter goes on them."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
)

from scu.config import Lora, Model
from scu.config_file import load
from scu.engines import torch_engine
from scu.engines.loading import (
    GUIDE_TARGETS,
    assistant_template,
    load_base,
    load_tokenizer,
    lora_targets,
    pick_dtype,
)
from scu.errors import ModelError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "pythia": GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=64),
    "falcon": FalconConfig(**SMALL, max_position_embeddings=64),
    "phi": PhiConfig(**SMALL, intermediate_size=64, max_position_embeddings=64),
}


def tiny(config, vocab_size: int):
    config.vocab_size = vocab_size
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_other_module_names_train_with_the_guides_targets(
    tmp_path, tiny_base, text_file, family
):
    folder = tmp_path / family
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tiny(FAMILIES[family], len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = tmp_path / "run.yaml"
    targets = json.dumps(list(GUIDE_TARGETS))
    config.write_text(
        f"""
model: {{base_model: "{folder}", precision: fp32}}
lora: {{rank: 2, targets: {targets}}}
scu: {{target_s: 0.1, prior_sigma: 0.01, control_interval: 2}}
training: {{learning_rate: 1e-2, batch_size: 4, gradient_accumulation: 1, block_size: 32, steps: 4}}
data: {{train_data: "{text_file}", val_fraction: 0.1}}
"""
    )
    run = torch_engine.prepare(load(config), tmp_path / "out")
    assert any("all linear layers (this model has no" in note for note in run.notes)
    metadata = torch_engine.train(run)
    assert metadata["final_s_ratio"] > 0.0


def llama():
    return tiny(LlamaConfig(**SMALL, intermediate_size=64), 64)


@pytest.mark.parametrize("wanted", ["auto", list(GUIDE_TARGETS)])
def test_a_llama_gets_the_guides_seven_targets(wanted):
    assert lora_targets(llama(), wanted)[0] == list(GUIDE_TARGETS)


def test_all_linear_is_passed_on():
    assert lora_targets(llama(), "all-linear")[0] == "all-linear"


def test_targets_of_ones_own_must_be_in_the_model():
    assert lora_targets(llama(), ["q_proj"])[0] == ["q_proj"]
    message = "no module named c_attn; its linear layers are down_proj, gate_proj, k_proj, lm_head"
    with pytest.raises(ModelError, match=message):
        lora_targets(llama(), ["q_proj", "c_attn"])


def test_an_impossible_adapter_is_an_error_of_its_own():
    from scu.engines.loading import add_adapter

    with pytest.raises(ModelError, match="cannot put a LoRA adapter on the model"):
        add_adapter(llama(), Lora(targets=["layers"]))


def test_precision_is_what_is_asked_for_or_what_the_machine_has():
    assert pick_dtype("bf16") == torch.bfloat16
    assert pick_dtype("fp32") == torch.float32
    if not torch.cuda.is_available():
        assert pick_dtype("auto") == torch.float32


def test_the_embedded_base_loads_by_name():
    model = Model(base_model="embedded")
    assert load_base(model).num_parameters() > 2_000_000
    assert load_tokenizer(model).eos_token is not None


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot load the base model of"):
        load_base(Model(base_model=str(tmp_path)))


def test_a_tokenizer_without_eos_is_refused(tmp_path, tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no EOS token"):
        load_tokenizer(Model(base_model=str(tmp_path)))


def test_code_from_a_model_folder_is_not_run_unless_asked(tmp_path, tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.save_pretrained(tmp_path)
    marker = tmp_path / "was-run"
    (tmp_path / "modeling_mine.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
        )
    )
    with pytest.raises(ModelError, match="cannot load the base model"):
        load_base(Model(base_model=str(tmp_path)))
    assert not marker.exists()


def test_a_known_template_gets_marks_and_an_unknown_one_none(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "{{ messages }}"
    assert assistant_template(tokenizer) is None
    tokenizer.chat_template = "{% generation %}{{ messages }}{% endgeneration %}"
    assert assistant_template(tokenizer) == tokenizer.chat_template
