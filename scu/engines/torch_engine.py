"""The torch engine: a configuration in, an adapter and its trace out.

TRL's SFTTrainer trains; this module builds its parts, checks what would make a run worthless before
any step is made, and writes the run's folder. The loop itself is ShannonCallback.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from scu.config import RunConfig
from scu.config_file import dump
from scu.data import Documents, load_documents, overlap, split_documents
from scu.engines.account import metadata_of, start_of
from scu.engines.callback import ShannonCallback
from scu.engines.interrupt import stop_on_signal
from scu.engines.loading import (
    add_adapter,
    assistant_template,
    load_base,
    load_tokenizer,
    pick_dtype,
)
from scu.engines.preflight import check_fits, check_rows, check_tokens
from scu.errors import ConfigError, DataError, TrainingError
from scu.run_folder import check_output, model_card, remove_old_run
from scu.trace import StepRecord, TraceWriter, write_json


@dataclass(frozen=True)
class Run:
    """Ready to start: everything was loaded and checked, nothing was trained or written."""

    config: RunConfig
    output: Path
    trainer: Any
    callback: ShannonCallback
    documents: dict[str, Documents]
    """Training and, where there are any, validation documents."""
    notes: list[str]
    """What was decided on the way, one line each."""


def prepare(config: RunConfig, output: Path, *, overwrite: bool = False) -> Run:
    """Load and check everything a run needs. Raises InputError; leaves no trace on disk."""
    check_output(output, overwrite=overwrite)
    train, held_out, notes = training_documents(config)
    tokenizer = load_tokenizer(config.model)
    template = assistant_template(tokenizer) if train.kind == "messages" else None
    base = load_base(config.model)
    check_fits(base, tokenizer, config)
    # Before the adapter is drawn: the seed is part of the code that describes it (theta0).
    set_seed(config.training.seed)
    model, where = add_adapter(base, config.lora)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    notes.append(f"LoRA rank {config.lora.rank} on {where}: {trainable:,} trainable weights")

    callback = ShannonCallback(
        config.scu.control,
        prior_sigma=config.scu.prior_sigma,
        prior_mean=config.scu.prior_mean,
        actuator=config.scu.actuator,
        tokens_per_epoch=config.data.tokens_per_epoch,
        stop=config.scu.stop,
        cooldown_steps=config.training.cooldown_steps,
        max_sec=config.training.max_hours and config.training.max_hours * 3600.0,
        max_tokens=config.training.max_tokens,
        test_pulse=config.scu.pulse,
    )
    packing = train.kind == "text" if config.data.packing == "auto" else config.data.packing
    if train.kind == "messages" and template is None:
        notes.append(
            "the chat template does not mark assistant turns: only the last turn carries loss"
        )
    masks = template is not None
    rows, held_out_rows = _rows(train, masks=masks), held_out and _rows(held_out, masks=masks)
    try:
        trainer = _Trainer(
            model=model,
            args=_arguments(config, packing=packing, kind=train.kind, masks=masks),
            train_dataset=rows,
            eval_dataset=held_out_rows,
            processing_class=tokenizer,
            callbacks=[callback],
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"the trainer refuses this run: {error}") from error
    trainer.remove_callback(PrinterCallback)
    # First, so that the trackers, which come with the trainer, log what the loop adds to the logs.
    trainer.remove_callback(callback)
    trainer.callback_handler.callbacks.insert(0, callback)
    if not packing:
        notes += check_rows(trainer.train_dataset, train, config.training.block_size)
        if held_out:
            notes += check_rows(trainer.eval_dataset, held_out, config.training.block_size)
    notes += check_tokens(trainer, callback, config, packing=packing)
    documents = {"train": train} | ({"validation": held_out} if held_out else {})
    return Run(config, output, trainer, callback, documents, notes)


def train(run: Run, *, on_record: Callable[[StepRecord], None] | None = None) -> dict[str, Any]:
    """Train, save the adapter and return the run's metadata, which says why it stopped.

    Ctrl-C (or SIGTERM) ends the run after the current step and saves; the same again ends it at
    once.
    """
    is_main = run.trainer.is_world_process_zero()
    started_sec = time.monotonic()
    with ExitStack() as stack:
        interrupted = stack.enter_context(stop_on_signal(run.trainer))
        run.trainer.args.output_dir = str(run.output)
        if is_main:
            run.output.mkdir(parents=True, exist_ok=True)
            remove_old_run(run.output)
            (run.output / "config.yaml").write_text(dump(run.config), encoding="utf-8")
            write_json(run.output / "start.json", start_of(run))
            trace = stack.enter_context(TraceWriter(run.output / "trace.jsonl"))

            def record(step: StepRecord) -> None:
                trace.write(step)
                if on_record is not None:
                    on_record(step)

            run.callback.on_record = record
        try:
            run.trainer.train()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory: {error}. Halve training.batch_size and double "
                "training.gradient_accumulation, or set training.gradient_checkpointing: true"
            ) from error
    metadata = metadata_of(run, bool(interrupted), time.monotonic() - started_sec)
    if is_main:
        save(run, metadata)
    return metadata


def training_documents(config: RunConfig) -> tuple[Documents, Documents | None, list[str]]:
    """Training and validation documents of a configuration, and remarks on them for the user."""
    data = config.data
    train, held_out = load_documents(data.train_data), None
    notes = [f"training data {data.train_data}: {train.note}"]
    if data.val_data is not None:
        held_out = load_documents(data.val_data)
        notes.append(f"validation data {data.val_data}: {held_out.note}")
    elif data.val_fraction > 0.0:
        train, held_out = split_documents(
            train, fraction=data.val_fraction, seed=config.training.seed
        )
        notes.append(
            f"{len(held_out.rows)} documents held out for validation, {len(train.rows)} left"
        )
    if held_out is None:
        return train, None, notes
    if held_out.kind != train.kind:
        raise DataError(f"training data are {train.kind} but validation data are {held_out.kind}")
    if shared := overlap(train, held_out):
        notes.append(
            f"WARNING: {shared} of {len(held_out.rows)} validation documents are in training"
        )
    return train, held_out, notes


def save(run: Run, metadata: dict[str, Any]) -> None:
    """Write the adapter in PEFT format, the tokenizer, the model card and, last, metadata.json."""
    run.trainer.model.save_pretrained(run.output)
    run.trainer.processing_class.save_pretrained(run.output)
    (run.output / "README.md").write_text(model_card(metadata), encoding="utf-8")
    write_json(run.output / "metadata.json", metadata)


class _Trainer(SFTTrainer):
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # One loss that is not finite would stay in the trainer's running sum for ever. Its step is
        # skipped and its window held (callback.py), so the value that stands in for it is never
        # read.
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)


def _rows(documents: Documents, *, masks: bool) -> Dataset:
    if documents.kind != "messages" or masks:
        return documents.rows
    for number, row in enumerate(documents.rows, 1):
        turns = row["messages"]
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise DataError(
                f"{documents.source}, document {number}: must end with an assistant turn after "
                "another one; the chat template marks no turns, so only the last can be learned"
            )
    return documents.rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns="messages",
    )


def _arguments(config: RunConfig, *, packing: bool, kind: str, masks: bool) -> SFTConfig:
    training = config.training
    return SFTConfig(
        # The trainer makes this folder when it is built; the run's own is set when it starts.
        output_dir=tempfile.gettempdir(),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup",  # the cooldown is the callback's
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        seed=training.seed,
        bf16=pick_dtype(config.model.precision) == torch.bfloat16,
        gradient_checkpointing=training.gradient_checkpointing,
        max_length=training.block_size,
        packing=packing,
        # Running text may be cut anywhere; a completion must keep its prompt.
        packing_strategy="wrapped" if kind == "text" else "bfd",
        eval_packing=packing and kind == "text",  # unpacked, a long text would be cut to one block
        assistant_only_loss=masks,
        logging_steps=config.scu.control_interval,
        logging_nan_inf_filter=False,  # it reads every loss from the device; see _Trainer
        eval_strategy="no" if training.eval_steps is None else "steps",
        eval_steps=training.eval_steps,
        save_strategy="steps" if training.save_steps else "best" if training.eval_steps else "no",
        save_steps=training.save_steps or training.steps,
        metric_for_best_model="eval_loss" if training.eval_steps else None,
        greater_is_better=False if training.eval_steps else None,
        save_total_limit=training.save_total_limit,
        report_to=training.report_to,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
