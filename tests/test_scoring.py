"""Scores against an independent float64 computation, and tokenization against TRL's own."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from scu.config_file import load
from scu.data import load_documents
from scu.engines import torch_engine
from scu.engines.scoring import TokenizedDocument, evaluate_adapter, score, tokenize
from scu.errors import DataError, ModelError


@pytest.fixture(scope="module")
def model(tiny_base):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    for p in model.parameters():  # the init is too flat to tell tokens apart
        p.data *= 5.0
    return model


def document(ids: list[int], first_scored: int = 1) -> TokenizedDocument:
    marks = [i >= first_scored for i in range(len(ids))]
    return TokenizedDocument(ids, marks, len(ids))


def numpy_nats(model, ids: list[int], first_scored: int = 1) -> float:
    """The whole document in one forward pass, in float64 numpy from the logits on."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -sum(log_probs[i - 1, ids[i]] for i in range(max(1, first_scored), len(ids)))


def test_nats_agree_with_numpy_in_float64(model):
    ids = [(7 * i) % 250 for i in range(60)]
    (result,) = score(model, [document(ids)], context=64)
    assert result.nats == pytest.approx(numpy_nats(model, ids), rel=1e-4)
    assert result.tokens == 59


def test_only_marked_tokens_are_scored(model):
    ids = [(7 * i) % 250 for i in range(60)]
    (result,) = score(model, [document(ids, first_scored=50)], context=64)
    assert result.nats == pytest.approx(numpy_nats(model, ids, first_scored=50), rel=1e-4)
    assert result.tokens == 10


def test_batching_and_padding_do_not_change_a_score(model):
    documents = [document([(k * i) % 250 for i in range(3 * k)]) for k in range(2, 20)]
    alone = [score(model, [d], context=64)[0].nats for d in documents]
    together = [s.nats for s in score(model, documents, context=64, batch_tokens=500)]
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_long_document_is_scored_once_per_token_with_half_a_context_before_it(model):
    ids = [(11 * i + i // 7) % 250 for i in range(150)]
    (result,) = score(model, [document(ids)], context=40)
    expected = numpy_nats(model, ids[:40])
    for start in range(20, 130, 20):
        window = ids[start : start + 40]
        expected += numpy_nats(model, window, first_scored=20)
    assert result.tokens == 149
    assert result.nats == pytest.approx(expected, rel=1e-4)


def test_a_context_of_one_token_is_refused(model):
    with pytest.raises(DataError, match="nothing to predict from"):
        score(model, [document([1, 2])], context=1)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "the loop holds"},
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"messages": [*TURNS, *TURNS]},
    ],
    ids=["text", "completion", "chat completion", "messages"],
)
def test_documents_are_tokenized_as_trl_prepares_them(tmp_path, tiny_base, row):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = CHAT
    documents = load_documents(write_rows(tmp_path / "rows.jsonl", [row, row]))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_base),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            bf16=False,
            max_length=None,
            assistant_only_loss="messages" in row,
            report_to="none",
        ),
        train_dataset=documents.rows,
        processing_class=tokenizer,
    )
    theirs = trainer.train_dataset[0]
    ours = tokenize(documents, tokenizer)[0]
    assert ours.ids[0] == tokenizer.eos_token_id  # context for the first token; not in training
    assert ours.ids[1:] == theirs["input_ids"]
    labels = [i if m else -100 for i, m in zip(ours.ids, ours.carries_loss, strict=True)]
    assert labels[1:] == theirs["labels"]


def test_bytes_are_those_of_the_text_that_carries_loss(tmp_path, tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [{"prompt": "a long prompt", "completion": " caf\u00e9"}] * 2
    documents = load_documents(write_rows(tmp_path / "rows.jsonl", rows))
    assert tokenize(documents, tokenizer)[0].bytes == 6


def test_chats_without_a_marking_template_are_scored_on_their_last_turn(tmp_path, tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = CHAT.replace("{% generation %}", "").replace(
        "{% endgeneration %}", ""
    )
    rows = [{"messages": [*TURNS, {"role": "user", "content": "x"}, TURNS[1]]}] * 2
    documents = load_documents(write_rows(tmp_path / "rows.jsonl", rows))
    ours = tokenize(documents, tokenizer)[0]
    answered = [i for i, m in zip(ours.ids, ours.carries_loss, strict=True) if m]
    assert tokenizer.decode(answered) == "yes<|eos|>"


@pytest.fixture
def run_folder(tmp_path, tiny_base, text_file):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
model: {{base_model: "{tiny_base}", precision: fp32}}
lora: {{rank: 8, targets: all-linear}}
scu: {{target_s: 0.2, prior_sigma: 0.05}}
training:
  {{learning_rate: 3e-2, batch_size: 8, gradient_accumulation: 1, block_size: 32, steps: 60}}
data: {{train_data: "{text_file}", val_fraction: 0.2}}
"""
    )
    torch_engine.train(torch_engine.prepare(load(config), tmp_path / "out"))
    return tmp_path / "out"


def test_an_adapter_is_compared_on_what_its_run_held_out(run_folder, text_file):
    result = evaluate_adapter(run_folder)
    assert result.documents == 13
    assert result.adapter_bpt < result.base_bpt
    assert result.saved_low > 0.0
    named = evaluate_adapter(run_folder, data=str(text_file))
    assert named.documents == 64
    assert named.source == str(text_file)


def test_folders_that_are_not_runs_are_refused(tmp_path, run_folder):
    with pytest.raises(ModelError, match=r"holds no run \(config.yaml is missing\)"):
        evaluate_adapter(tmp_path / "nothing")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.yaml", "metadata.json"):
        shutil.copy(run_folder / name, bare)
    with pytest.raises(ModelError, match=r"holds no adapter \(adapter_config.json is missing\)"):
        evaluate_adapter(bare)


def test_a_truncated_adapter_is_refused(run_folder):
    weights = run_folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load the adapter"):
        evaluate_adapter(run_folder)


def test_data_that_changed_since_the_run_are_not_split_again(run_folder, text_file):
    with text_file.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DataError, match="has changed since the run"):
        evaluate_adapter(run_folder)


def test_without_metadata_it_is_not_known_what_was_held_out(run_folder):
    (run_folder / "metadata.json").unlink()
    with pytest.raises(DataError, match="does not say what the run held out"):
        evaluate_adapter(run_folder)


def test_a_run_that_held_nothing_out_needs_data(run_folder):
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("val_fraction: 0.2", "val_fraction: 0.0"))
    with pytest.raises(DataError, match="held no documents out; name some with --data"):
        evaluate_adapter(run_folder)
