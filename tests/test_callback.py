"""ShannonCallback in plain transformers and TRL trainers, on a tiny model."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from scu.control import ControlSettings, replay
from scu.engines.callback import MAX_SKIPPED_IN_ROW, ShannonCallback
from scu.errors import ConfigError, ModelError, TrainingError
from scu.metrics import LN2
from scu.trace import StepRecord

BATCH = 8


def settings(**changes) -> ControlSettings:
    return ControlSettings(**({"target_s": 0.2, "control_interval": 5} | changes))


def open_loop(lam: float) -> ControlSettings:
    return settings(kp=0.0, ki=0.0, lambda_init=lam, lambda_max=1000.0)


def lora_model(folder, **options):
    set_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(**(config | options)))


def rows(count: int = 64, *, unequal: bool = False) -> Dataset:
    """Token rows with structure to learn: counting sequences, padded and masked where unequal."""
    ids, labels = [], []
    for i in range(count):
        length = 8 + (i * 7) % 17 if unequal else 24
        row = [(i + 3 * k) % 64 for k in range(length)]
        ids.append(row + [0] * (24 - length))
        labels.append(row + [-100] * (24 - length))
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def trainer(
    folder, tmp_path, callback, *, data=None, model=None, cls=Trainer, held_out=None, **args
):
    options = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 40,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 7,  # not the window: the callback must not depend on it
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return cls(
        model=model or lora_model(folder),
        args=TrainingArguments(**(options | args)),
        train_dataset=data or rows(),
        eval_dataset=held_out,
        callbacks=[callback],
    )


def trained(folder, tmp_path, callback, **options) -> ShannonCallback:
    trainer(folder, tmp_path, callback, **options).train()
    return callback


def final_param_bpt(tiny_base, tmp_path, lam, kind="prox") -> float:
    callback = ShannonCallback(open_loop(lam), prior_sigma=0.05, actuator=kind)
    return trained(tiny_base, tmp_path, callback).records[-1].param_bpt


def test_a_larger_fixed_lambda_gives_strictly_smaller_param_bpt(tiny_base, tmp_path):
    free = final_param_bpt(tiny_base, tmp_path, 1.0, kind="none")  # lambda = 0
    costs = [free, *(final_param_bpt(tiny_base, tmp_path, lam) for lam in (1.0, 10.0, 100.0))]
    assert all(0.9 * before > after for before, after in pairwise(costs)), costs


def test_with_the_wire_cut_lambda_changes_nothing(tiny_base, tmp_path):
    """The control of the test above: if this fails, that one proves nothing."""
    costs = {final_param_bpt(tiny_base, tmp_path, lam, kind="none") for lam in (1.0, 100.0)}
    assert len(costs) == 1


@pytest.mark.parametrize("kind", ["prox", "gradient"])
def test_a_step_in_lambda_in_mid_run_moves_s_the_other_way(tiny_base, tmp_path, kind):
    s_after = {}
    for lam in (0.05, 1.0, 20.0):
        callback = ShannonCallback(open_loop(1.0), prior_sigma=0.05, actuator=kind)
        step_at_20(callback, lam)
        records = trained(tiny_base, tmp_path, callback).records
        s_after[lam] = records[-1].s
    assert s_after[0.05] > s_after[1.0] > s_after[20.0]


def step_at_20(callback: ShannonCallback, lam: float) -> None:
    def set_lambda(record: StepRecord) -> None:
        if record.step == 20:
            callback.state = replace(callback.state, lam=lam)

    callback.on_record = set_lambda


def test_s_arrives_at_its_target_and_lambda_stays_inside_its_bounds(tiny_base, tmp_path):
    callback = ShannonCallback(settings(target_s=0.005), prior_sigma=0.05)
    records = trained(tiny_base, tmp_path, callback, max_steps=300).records
    assert records[-1].s == pytest.approx(0.005, rel=0.05)
    assert all(1e-4 <= record.lam <= 2.0 for record in records)


def test_the_trace_replays_to_the_same_lambda_column(tiny_base, tmp_path):
    callback = trained(tiny_base, tmp_path, ShannonCallback(settings(), prior_sigma=0.05))
    states = replay(callback.records, callback.settings)
    assert [state.lam for state in states] == [record.lam for record in callback.records]


def test_records_hold_the_window_means_whatever_the_logging_interval(tiny_base, tmp_path):
    losses = []

    class Recording(Trainer):
        def training_step(self, *args, **kwargs):
            losses.append(float(loss := super().training_step(*args, **kwargs)))
            return loss

    callback = ShannonCallback(settings(), prior_sigma=0.05)
    trained(tiny_base, tmp_path, callback, cls=Recording, max_steps=18)
    assert [record.step for record in callback.records] == [5, 10, 15, 18]
    for record, first in zip(callback.records, (0, 5, 10, 15), strict=True):
        window = losses[first : record.step]
        assert record.loss_nats == pytest.approx(sum(window) / len(window), rel=1e-5)
        assert record.data_bpt == pytest.approx(record.loss_nats / LN2)


def test_param_bpt_is_the_distance_from_the_first_weights(tiny_base, tmp_path):
    model = lora_model(tiny_base)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    trained(tiny_base, tmp_path, callback, model=model)
    now = dict(model.named_parameters())
    distance = sum(float((now[n].detach() - p).square().sum()) for n, p in start.items())
    expected = distance / (2 * 0.05**2 * callback.tokens_per_epoch * LN2)
    assert callback.records[-1].param_bpt == pytest.approx(expected, rel=1e-5)
    assert callback.s_at_start == 0.0


def test_a_zero_prior_counts_the_random_start(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05, prior_mean="zero")
    trained(tiny_base, tmp_path, callback, max_steps=5)
    assert callback.s_at_start > 0.1


def test_two_runs_with_one_seed_give_the_same_trace(tiny_base, tmp_path):
    first, second = (
        trained(tiny_base, tmp_path, ShannonCallback(settings(), prior_sigma=0.05)).records
        for _ in range(2)
    )
    assert [(r.data_bpt, r.param_bpt, r.lam) for r in first] == [
        (r.data_bpt, r.param_bpt, r.lam) for r in second
    ]


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_gradient_accumulation_does_not_change_the_trace(tiny_base, tmp_path, accumulation):
    """Rows of unequal length: a mean of micro-batch means would differ."""
    traces = []
    for parts in (1, accumulation):
        callback = ShannonCallback(settings(), prior_sigma=0.05)
        trained(
            tiny_base,
            tmp_path,
            callback,
            data=rows(unequal=True),
            per_device_train_batch_size=BATCH // parts,
            gradient_accumulation_steps=parts,
        )
        traces.append(callback.records)
    for one, other in zip(*traces, strict=True):
        assert other.lam == pytest.approx(one.lam, rel=0.01)
        assert other.data_bpt == pytest.approx(one.data_bpt, rel=1e-3)


def test_n_counts_labels_that_carry_loss_after_the_shift(tiny_base, tmp_path):
    data = rows(unequal=True)
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    trained(tiny_base, tmp_path, callback, data=data, max_steps=1)
    assert callback.tokens_per_epoch == sum(
        sum(label != -100 for label in row["labels"][1:]) for row in data
    )


def test_validation_bits_belong_to_the_window_they_were_measured_after(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    evaluation = {"held_out": rows(8), "eval_strategy": "steps", "eval_steps": 10}
    run = trainer(tiny_base, tmp_path, callback, max_steps=20, **evaluation)
    run.train()
    evaluated = {record.step: record.eval_bpt for record in callback.records}
    assert list(evaluated) == [5, 10, 15, 20]
    assert evaluated[5] is None
    logged = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert evaluated[10] == pytest.approx(logged[0]["eval_loss"] / LN2)
    assert evaluated[20] == pytest.approx(logged[1]["eval_loss"] / LN2)


def test_an_evaluation_between_two_windows_is_in_the_next_record(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    evaluation = {"held_out": rows(8), "eval_strategy": "steps", "eval_steps": 3}
    run = trainer(tiny_base, tmp_path, callback, max_steps=10, **evaluation)
    run.train()
    logged = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert [record.eval_bpt for record in callback.records] == [
        pytest.approx(logged[0] / LN2),  # step 3
        pytest.approx(logged[-1] / LN2),  # the newest: at the end, after those of steps 6 and 9
    ]


def test_another_callback_that_ends_training_ends_the_window_too(tiny_base, tmp_path):
    class StopAtSeven(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                control.should_training_stop = control.should_log = True
            return control

    callback = ShannonCallback(settings(), prior_sigma=0.05)
    run = trainer(tiny_base, tmp_path, callback)
    run.add_callback(StopAtSeven())
    run.train()
    assert [record.step for record in callback.records] == [5, 7]


def test_fp16_is_refused(tiny_base, tmp_path):
    run = trainer(tiny_base, tmp_path, ShannonCallback(settings()))
    run.args.fp16 = True
    with pytest.raises(ConfigError, match="use bf16, or fp32"):
        run.train()


def test_progress_is_counted_in_real_tokens_when_n_was_given(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05, tokens_per_epoch=10_000)
    callback.tokens_per_pass = 64 * 23
    trained(tiny_base, tmp_path, callback, max_steps=5)
    assert callback.records[0].tokens_seen == 5 * BATCH * 23


def test_lambda_is_held_during_the_cooldown_and_the_trace_says_so(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05, cooldown_steps=20)
    records = trained(tiny_base, tmp_path, callback, max_steps=40).records
    held = [record for record in records if record.step > 20]
    assert {record.held for record in held} == {"cooldown"}
    assert {record.lam for record in held} == {records[3].lam}
    assert [s.lam for s in replay(records, callback.settings)] == [r.lam for r in records]


def test_the_cooldown_does_not_compound_under_a_schedule_that_goes_on_from_the_last_rate(
    tiny_base, tmp_path
):
    model = lora_model(tiny_base)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000)
    callback = ShannonCallback(settings(control_interval=1), prior_sigma=0.05, cooldown_steps=10)
    run = trainer(
        tiny_base,
        tmp_path,
        callback,
        model=model,
        cls=lambda **options: Trainer(optimizers=(optimizer, schedule), **options),
        max_steps=14,
    )
    run.train()
    rates = [record.learning_rate for record in callback.records]
    assert rates == pytest.approx([1e-2] * 4 + [1e-3 * (10 - i) for i in range(10)])


def test_an_end_without_a_cooldown_is_evaluated_and_saved_like_any_other(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05, cooldown_steps=0, max_tokens=1)
    saved = {"save_strategy": "steps", "save_steps": 6}
    evaluation = {"held_out": rows(8), "eval_strategy": "steps", "eval_steps": 6}
    run = trainer(tiny_base, tmp_path, callback, max_steps=40, **evaluation, **saved)
    run.train()
    assert (run.state.global_step, callback.ending.reason) == (5, "token limit")
    assert callback.records[-1].eval_bpt > 0.0
    assert (tmp_path / "out" / "checkpoint-5").is_dir()


class PoisonedTrainer(Trainer):
    """Loses its gradient at chosen optimizer steps."""

    poisoned: frozenset[int] = frozenset()

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step + 1 in self.poisoned:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss


def test_a_bad_step_is_skipped_counted_and_its_window_held(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    run = trainer(tiny_base, tmp_path, callback, cls=PoisonedTrainer, max_steps=15)
    run.poisoned = frozenset({7})
    run.train()
    assert [record.skipped_steps for record in callback.records] == [0, 1, 0]
    assert callback.records[1].held == "skipped steps"
    assert callback.records[1].lam == callback.records[0].lam
    assert callback.skipped_steps == 1
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert callback.ending.reason == ""


def test_training_ends_when_no_step_has_a_finite_gradient_any_more(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    run = trainer(tiny_base, tmp_path, callback, cls=PoisonedTrainer)
    run.poisoned = frozenset(range(6, 100))
    run.train()
    assert run.state.global_step == 10
    assert callback.ending.reason == "diverged"
    assert callback.ending.detail == (
        f"{MAX_SKIPPED_IN_ROW} steps in a row without a finite gradient"
    )
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize("adapter", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_two_lines_are_enough_in_trl(tiny_base, tmp_path, adapter):
    """As README shows it, for LoRA, DoRA and rsLoRA."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | adapter
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    run = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=10,
            learning_rate=1e-2,
            report_to="none",
            save_strategy="no",
            bf16=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"text": [f"{i} and so on to {2 * i}" for i in range(40)]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(**config),
        callbacks=[callback],
    )
    run.train()
    assert [record.step for record in callback.records] == [5, 10]
    assert 0.0 < callback.records[-1].s < 1.0
    assert callback.summary()["authority"] > 0.0


def test_weight_decay_is_refused_before_the_first_step(tiny_base, tmp_path):
    run = trainer(tiny_base, tmp_path, ShannonCallback(settings()), weight_decay=0.01)
    with pytest.raises(ConfigError, match=r"weight_decay is 0.01 and must be 0"):
        run.train()
    assert run.state.global_step == 0


def test_a_model_without_an_adapter_is_refused_when_the_trainer_is_built(tiny_base, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    with pytest.raises(ModelError, match="no LoRA adapter"):
        trainer(tiny_base, tmp_path, ShannonCallback(settings()), model=base)


def test_a_half_precision_adapter_is_converted_when_the_trainer_is_built(tiny_base, tmp_path):
    model = lora_model(tiny_base)
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16)
    trainer(tiny_base, tmp_path, ShannonCallback(settings()), model=model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_resuming_without_the_loops_state_is_refused(tiny_base, tmp_path):
    run = trainer(
        tiny_base,
        tmp_path,
        ShannonCallback(settings()),
        save_strategy="steps",
        save_steps=5,
        max_steps=5,
    )
    run.train()
    again = trainer(tiny_base, tmp_path, ShannonCallback(settings()), max_steps=10)
    with pytest.raises(TrainingError, match="does not hold theta0"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))


def test_a_second_training_starts_the_loop_anew(tiny_base, tmp_path):
    callback = ShannonCallback(settings(), prior_sigma=0.05)
    run = trainer(tiny_base, tmp_path, callback, max_steps=10)
    run.train()
    run.train()
    assert [record.step for record in callback.records] == [5, 10]
    assert callback.s_at_start == 0.0


def test_tokens_per_epoch_must_be_positive(tiny_base, tmp_path):
    run = trainer(tiny_base, tmp_path, ShannonCallback(settings(), tokens_per_epoch=0))
    with pytest.raises(ConfigError, match="tokens_per_epoch must be positive"):
        run.train()


def test_a_loss_that_is_not_finite_holds_the_window(tiny_base, tmp_path):
    class Infinite(Trainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs) + math.inf

    callback = ShannonCallback(settings(), prior_sigma=0.05)
    trained(tiny_base, tmp_path, callback, cls=Infinite, max_steps=5, logging_nan_inf_filter=False)
    (record,) = callback.records
    assert record.held == "loss not finite"
    assert record.lam == 1.0
    assert math.isnan(record.s)
