"""The torch engine from a configuration to an adapter on disk, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from scu.config_file import load
from scu.control import replay
from scu.engines import torch_engine
from scu.engines.actuator import adapter_weights
from scu.errors import ConfigError, DataError, ModelError, OutputError, TrainingError
from scu.trace import read_trace

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config_file(tmp_path, tiny_base, text_file) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
model: {{base_model: "{tiny_base}", precision: fp32}}
lora: {{rank: 4, targets: all-linear}}
scu: {{target_s: 0.05, prior_sigma: 0.05, control_interval: 5}}
training:
  {{learning_rate: 1e-2, batch_size: 4, gradient_accumulation: 1, block_size: 32, steps: 20}}
data: {{train_data: "{text_file}", val_fraction: 0.1}}
"""
    )
    return path


def prepared(config_file, output, *sets, **options):
    return torch_engine.prepare(load(config_file, sets=sets), output, **options)


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_leaves_every_file_that_is_promised(tmp_path, config_file):
    output = tmp_path / "out"
    seen = []
    metadata = torch_engine.train(prepared(config_file, output), on_record=seen.append)
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "metadata.json",
        "trace.jsonl",
        "config.yaml",
        "README.md",
    }
    assert read_trace(output / "trace.jsonl") == seen
    assert json.loads((output / "metadata.json").read_text()) == json.loads(json.dumps(metadata))
    assert load(output / "config.yaml") == load(config_file)


def test_the_metadata_is_complete(tmp_path, config_file):
    metadata = torch_engine.train(prepared(config_file, tmp_path / "out"))
    promised = """final_lambda lambda_range final_s_ratio target_s s_at_start final_data_bpt
        final_param_bpt tokens_per_epoch prior_sigma prior_mean actuator law control_interval kp ki
        stop_reason verdict authority optimizer_steps tokens_seen duration_sec seed versions device
        data""".split()
    assert not set(promised) - metadata.keys()
    assert all(metadata[name] is not None for name in promised)
    assert metadata["stop_reason"] == "steps done"
    assert metadata["optimizer_steps"] == 20
    assert metadata["lambda_range"][0] <= metadata["final_lambda"] <= metadata["lambda_range"][1]
    assert len(metadata["data"]["train"]["sha256"]) == 64


def test_the_adapter_loads_in_plain_peft_and_generates(tmp_path, config_file, tiny_base):
    output = tmp_path / "out"
    run = prepared(config_file, output)
    torch_engine.train(run)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = tokenizer("the loop", return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert new.shape[1] > ids["input_ids"].shape[1]
    trained = adapter_weights(run.trainer.model)
    loaded = dict(model.named_parameters())
    assert all(
        torch.equal(loaded[name].detach(), weight.detach()) for name, weight in trained.items()
    )


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(tmp_path, config_file):
    traces = []
    for i, seed in enumerate((1, 1, 2)):
        output = tmp_path / str(i)
        torch_engine.train(prepared(config_file, output, f"training.seed={seed}"))
        traces.append(
            [(r.data_bpt, r.param_bpt, r.lam) for r in read_trace(output / "trace.jsonl")]
        )
    assert traces[0] == traces[1] != traces[2]


def test_the_trace_on_disk_replays_to_its_own_lambda_column(tmp_path, config_file):
    run = prepared(config_file, tmp_path / "out")
    torch_engine.train(run)
    records = read_trace(tmp_path / "out" / "trace.jsonl")
    states = replay(records, run.callback.settings)
    assert [state.lam for state in states] == [record.lam for record in records]


def test_the_rate_warms_up_stays_and_cools_down_while_lambda_is_held(tmp_path, config_file):
    sets = ("training.steps=40", "training.warmup_steps=10", "training.cooldown_steps=10")
    torch_engine.train(prepared(config_file, tmp_path / "out", *sets))
    records = {r.step: r for r in read_trace(tmp_path / "out" / "trace.jsonl")}
    rates = {step: record.learning_rate for step, record in records.items()}
    assert rates[5] < rates[15] == rates[20] == rates[30] == pytest.approx(1e-2)
    assert rates[30] > rates[35] > rates[40]
    assert [records[step].held for step in (30, 35, 40)] == ["", "cooldown", "cooldown"]
    assert records[40].lam == records[30].lam


def test_preparing_a_run_writes_nothing(tmp_path, config_file):
    output = tmp_path / "new" / "folder"
    prepared(config_file, output)
    assert not output.parent.exists()


def test_n_is_counted_from_the_labels_and_a_wrong_one_is_remarked_upon(tmp_path, config_file):
    run = prepared(config_file, tmp_path / "out", "data.packing=false", "training.block_size=128")
    rows = run.trainer.train_dataset["input_ids"]
    assert run.callback.tokens_per_epoch == sum(len(row) - 1 for row in rows)
    wrong = prepared(config_file, tmp_path / "out", "data.tokens_per_epoch=98304000")
    assert wrong.callback.tokens_per_epoch == 98304000
    assert any("WARNING: data.tokens_per_epoch is 98,304,000" in note for note in wrong.notes)


def test_only_completions_carry_loss_and_eos_is_among_them(tmp_path, config_file):
    data = write_rows(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"say {i}:", "completion": f" {i}"} for i in range(40)],
    )
    run = prepared(config_file, tmp_path / "out", f"data.train_data={data}")
    row = run.trainer.train_dataset[0]
    tokenizer = run.trainer.processing_class
    answered = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(answered) in {f" {i}{tokenizer.eos_token}" for i in range(40)}
    assert run.callback.tokens_per_epoch == sum(
        token != -100 for row in run.trainer.train_dataset for token in row["labels"][1:]
    )


CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def chat_base(tmp_path, tiny_base, template):
    folder = tmp_path / "chat-base"
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


@pytest.mark.parametrize(("template", "turns"), [(MARKED, 2), (CHAT, 1)])
def test_in_chats_assistant_turns_carry_loss_or_the_last_one_where_unmarked(
    tmp_path, config_file, tiny_base, template, turns
):
    folder, tokenizer = chat_base(tmp_path, tiny_base, template)
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "no"},
    ]
    data = write_rows(
        tmp_path / "chats.jsonl",
        [{"messages": [{"role": "system", "content": str(i)}, *chat]} for i in range(30)],
    )
    run = prepared(
        config_file,
        tmp_path / "out",
        f"data.train_data={data}",
        f"model.base_model={folder}",
        "training.block_size=128",
    )
    labels = run.trainer.train_dataset[0]["labels"]
    answers = ["yes<|eos|>", "no<|eos|>"][-turns:]
    assert tokenizer.decode([token for token in labels if token != -100]) == "".join(answers)


@pytest.mark.parametrize("turns", [["assistant"], ["user", "assistant", "user"]])
def test_unmarked_chats_must_end_with_an_answer(tmp_path, config_file, tiny_base, turns):
    folder, _ = chat_base(tmp_path, tiny_base, CHAT)
    chat = [{"role": role, "content": "x"} for role in turns]
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": chat}])
    sets = (f"data.train_data={data}", f"model.base_model={folder}", "data.val_fraction=0")
    with pytest.raises(DataError, match="document 1: must end with an assistant turn"):
        prepared(config_file, tmp_path / "out", *sets)


def test_chats_need_a_chat_template(tmp_path, config_file):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for _ in range(30)])
    with pytest.raises(ModelError, match="tokenizer has no chat template"):
        prepared(config_file, tmp_path / "out", f"data.train_data={data}", "data.val_fraction=0")


def test_validation_documents_are_held_out_by_document_and_evaluated_whole(tmp_path, config_file):
    run = prepared(config_file, tmp_path / "out", "training.eval_steps=10")
    assert len(run.documents["train"].rows) + len(run.documents["validation"].rows) == 64
    torch_engine.train(run)
    records = read_trace(tmp_path / "out" / "trace.jsonl")
    assert [r.eval_bpt is not None for r in records] == [False, True, False, True]
    held_out = sum(
        len(run.trainer.processing_class(row["text"])["input_ids"]) + 1
        for row in run.documents["validation"].rows
    )
    assert sum(len(row["input_ids"]) for row in run.trainer.eval_dataset) == held_out


def test_validation_documents_that_are_in_training_are_remarked_upon(
    tmp_path, config_file, text_file
):
    sets = (f"data.val_data={text_file}", "data.val_fraction=null")
    run = prepared(config_file, tmp_path / "out", *sets)
    assert any("WARNING: 64 of 64 validation documents" in note for note in run.notes)


def test_validation_data_of_another_kind_are_refused(tmp_path, config_file):
    pairs = write_rows(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        DataError, match="training data are text but validation data are completion"
    ):
        prepared(config_file, tmp_path / "o", f"data.val_data={pairs}", "data.val_fraction=null")


def test_fewer_tokens_than_one_block_are_refused(tmp_path, config_file):
    data = write_rows(tmp_path / "few.jsonl", [{"text": "only this"}])
    sets = (f"data.train_data={data}", "data.val_fraction=0", "training.block_size=128")
    with pytest.raises(DataError, match="hold 10 tokens, less than one block of 128"):
        prepared(config_file, tmp_path / "out", *sets)


def test_a_block_beyond_the_models_positions_is_refused(tmp_path, config_file):
    with pytest.raises(ConfigError, match=r"beyond the 128 positions .* training.block_size=128"):
        prepared(config_file, tmp_path / "out", "training.block_size=129")


def test_a_tokenizer_larger_than_the_models_embedding_is_refused(tmp_path, config_file, tiny_base):
    folder = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens("<new>")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has 259 tokens and the model embeds 258"):
        prepared(config_file, tmp_path / "out", f"model.base_model={folder}")


def test_documents_whose_prompt_fills_a_block_are_counted_or_refused(tmp_path, config_file):
    long = {"prompt": "long " * 20, "completion": " A"}
    some = write_rows(tmp_path / "some.jsonl", [long] * 3 + [{"prompt": "p", "completion": " A"}])
    run = prepared(config_file, tmp_path / "o", f"data.train_data={some}", "data.val_fraction=0")
    assert any("WARNING" in note and "3 of 4 documents are left out" in note for note in run.notes)
    every = write_rows(tmp_path / "all.jsonl", [long] * 3)
    with pytest.raises(DataError, match="in all 3 documents the prompt alone fills a block of 32"):
        prepared(config_file, tmp_path / "o", f"data.train_data={every}", "data.val_fraction=0")


def test_what_the_trainer_refuses_is_bad_input(tmp_path, config_file):
    with pytest.raises(ConfigError, match="the trainer refuses this run"):
        prepared(config_file, tmp_path / "out", "training.report_to=no-such-tracker")


def test_data_in_which_nearly_nothing_carries_loss_are_refused(tmp_path, config_file, tiny_base):
    folder = tmp_path / "long-base"
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    data = write_rows(tmp_path / "p.jsonl", [{"prompt": "long " * 200, "completion": "x"}] * 9)
    sets = (
        f"data.train_data={data}",
        f"model.base_model={folder}",
        "data.val_fraction=0",
        "training.block_size=4096",
    )
    with pytest.raises(DataError, match=r"only 18 of 9018 training tokens carry loss"):
        prepared(config_file, tmp_path / "out", *sets)


@pytest.mark.parametrize(
    ("existing", "message"),
    [("metadata.json", "holds a finished run"), ("trace.jsonl", "a run that was not finished")],
)
def test_an_output_that_holds_a_run_is_kept_unless_told(tmp_path, config_file, existing, message):
    output = tmp_path / "out"
    output.mkdir()
    (output / existing).write_text("{}\n")
    with pytest.raises(OutputError, match=message):
        prepared(config_file, output)
    assert (output / existing).read_text() == "{}\n"
    (output / "checkpoint-5").mkdir()
    torch_engine.train(prepared(config_file, output, overwrite=True))
    assert not (output / "checkpoint-5").exists()
    assert len(read_trace(output / "trace.jsonl")) == 4


def test_a_folder_with_other_things_in_it_is_left_as_it_is(tmp_path, config_file):
    with pytest.raises(OutputError, match=r"not empty and holds no run \(run.yaml, ...\)"):
        prepared(config_file, tmp_path, overwrite=True)
    assert config_file.exists()


def test_an_output_that_cannot_be_written_is_refused(tmp_path, config_file):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the output folder"):
        prepared(config_file, tmp_path / "file" / "out")


@pytest.mark.parametrize("model", ["no/such-model", "/nowhere/at/all"])
def test_a_missing_model_is_refused_before_anything_is_written(tmp_path, config_file, model):
    with pytest.raises(
        ModelError, match=f"cannot load the tokenizer of model.base_model '{model}'"
    ):
        prepared(config_file, tmp_path / "out", f"model.base_model={model}")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_stays_not_finite_ends_the_run_with_the_last_good_adapter(
    tmp_path, config_file, monkeypatch
):
    run = prepared(config_file, tmp_path / "out", "training.steps=40")
    compute = run.trainer.compute_loss

    def poisoned(*args, **kwargs):
        loss = compute(*args, **kwargs)
        return loss * torch.nan if run.trainer.state.global_step >= 12 else loss

    monkeypatch.setattr(run.trainer, "compute_loss", poisoned)
    metadata = torch_engine.train(run)
    assert metadata["stop_reason"].startswith("diverged")
    assert metadata["skipped_steps"] == 8
    records = read_trace(tmp_path / "out" / "trace.jsonl")
    assert [r.skipped_steps for r in records] == [0, 0, 3, 5]
    assert records[-1].lam == records[1].lam
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert all(torch.isfinite(w).all() for w in adapter_weights(run.trainer.model).values())


def test_one_loss_that_is_not_finite_is_skipped_and_the_run_goes_on(
    tmp_path, config_file, monkeypatch
):
    run = prepared(config_file, tmp_path / "out")
    compute = run.trainer.compute_loss

    def poisoned(*args, **kwargs):
        loss = compute(*args, **kwargs)
        return loss * torch.inf if run.trainer.state.global_step == 7 else loss

    monkeypatch.setattr(run.trainer, "compute_loss", poisoned)
    metadata = torch_engine.train(run)
    assert metadata["stop_reason"] == "steps done"
    records = read_trace(tmp_path / "out" / "trace.jsonl")
    assert [(r.skipped_steps, r.held) for r in records] == [
        (0, ""),
        (1, "skipped steps"),
        (0, ""),
        (0, "cooldown"),
    ]
    assert all(r.data_bpt > 1.0 for r in records if not r.skipped_steps)


def test_one_signal_ends_the_run_after_its_step_and_saves(tmp_path, config_file):
    run = prepared(config_file, tmp_path / "out")

    def interrupt(record):
        if record.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    metadata = torch_engine.train(run, on_record=interrupt)
    assert metadata["stop_reason"] == "interrupted"
    assert metadata["optimizer_steps"] == 11
    assert [r.step for r in read_trace(tmp_path / "out" / "trace.jsonl")] == [5, 10, 11]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_run_at_once(tmp_path, config_file):
    run = prepared(config_file, tmp_path / "out")

    def interrupt(record):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        torch_engine.train(run, on_record=interrupt)


def test_running_out_of_memory_says_what_to_change(tmp_path, config_file, monkeypatch):
    run = prepared(config_file, tmp_path / "out")

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(run.trainer, "training_step", exhausted)
    with pytest.raises(TrainingError, match=r"Halve training\.batch_size"):
        torch_engine.train(run)


@pytest.mark.parametrize(
    "sets",
    [
        ("lora.use_dora=true",),
        ("lora.use_rslora=true",),
        ("training.gradient_checkpointing=true",),
        ("scu.actuator=gradient", "training.optim=sgd"),
        ("scu.prior_mean=zero",),
        ("model.precision=bf16",),
        ("data.packing=false",),
        ("training.save_steps=10",),
    ],
)
def test_options_of_a_run_train_and_measure(tmp_path, config_file, sets):
    metadata = torch_engine.train(prepared(config_file, tmp_path / "out", *sets))
    assert metadata["stop_reason"] == "steps done"
    assert 0.0 < metadata["final_s_ratio"] < 1.0
    if "training.save_steps=10" in sets:
        assert (tmp_path / "out" / "checkpoint-20").is_dir()


def test_a_4_bit_base_trains_with_an_fp32_adapter(tmp_path, config_file):
    pytest.importorskip("bitsandbytes")
    run = prepared(config_file, tmp_path / "out", "model.load_in_4bit=true", "training.steps=10")
    assert any(type(m).__name__ == "Linear4bit" for m in run.trainer.model.modules())
    assert {w.dtype for w in adapter_weights(run.trainer.model).values()} == {torch.float32}
    metadata = torch_engine.train(run)
    assert metadata["final_param_bpt"] > 0.0


def test_two_processes_give_the_trace_of_one_at_equal_effective_batch(tmp_path, config_file):
    pytest.importorskip("torch.distributed")
    traces = []
    for processes, batch in ((1, 8), (2, 4)):
        output = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "scu_api.cli", "train", str(config_file)]
        command += ["--output", str(output), "--set", f"training.batch_size={batch}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        traces.append(read_trace(output / "trace.jsonl"))
    one, two = traces
    assert [r.lam for r in two] == pytest.approx([r.lam for r in one], rel=0.01)
    assert [r.data_bpt for r in two] == pytest.approx([r.data_bpt for r in one], rel=1e-3)
