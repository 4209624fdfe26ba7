"""Checks of a run that is about to start: what would make it worthless costs no step."""

from typing import Any

from datasets import Dataset

from scu.config import RunConfig
from scu.data import Documents
from scu.engines.callback import ShannonCallback
from scu.engines.counting import count_tokens
from scu.errors import ConfigError, DataError, ModelError

MIN_LOSS_SHARE = 0.01
"""A run in which fewer of the tokens carry loss is a mistake in the data or the chat template."""
MAX_COUNT_DIFFERENCE = 0.10
"""tokens_per_epoch may differ from the count by this fraction before it is remarked upon."""


def check_fits(base: Any, tokenizer: Any, config: RunConfig) -> None:
    """Refuse a block beyond the model's positions, or a tokenizer beyond its embedding."""
    positions = getattr(base.config, "max_position_embeddings", None)
    if positions is not None and config.training.block_size > positions:
        raise ConfigError(
            f"training.block_size {config.training.block_size} is beyond the {positions} positions "
            f"of {config.model.base_model}; set training.block_size={positions} or less"
        )
    embedded = base.get_input_embeddings().num_embeddings
    if len(tokenizer) > embedded:
        raise ModelError(
            f"the tokenizer of {config.model.base_model} has {len(tokenizer)} tokens and the model "
            f"embeds {embedded}; they do not belong together"
        )


def check_rows(kept: Dataset, documents: Documents, block_size: int) -> list[str]:
    """Remark on rows that TRL dropped because their prompt alone fills a block; refuse if all."""
    dropped = len(documents.rows) - len(kept)
    if len(kept) == 0:
        raise DataError(
            f"{documents.source}: in all {dropped} documents the prompt alone fills a block of "
            f"{block_size} tokens; set a larger training.block_size"
        )
    if dropped:
        return [
            f"WARNING: {documents.source}: {dropped} of {len(documents.rows)} documents are left "
            f"out, their prompt alone fills a block of {block_size} tokens"
        ]
    return []


def check_tokens(
    trainer: Any, callback: ShannonCallback, config: RunConfig, *, packing: bool
) -> list[str]:
    """Set N on the callback; refuse data that could not train anything."""
    loader = trainer.get_train_dataloader()
    eos, total, eos_carries_loss = trainer.processing_class.eos_token_id, 0, False
    for batch in trainer.train_dataset.iter(batch_size=1000):
        total += sum(map(len, batch["input_ids"]))
        eos_carries_loss = eos_carries_loss or any(eos in labels for labels in batch["labels"])
    counted, callback.context_free_bpt = count_tokens(loader)
    if packing and total < config.training.block_size:
        raise DataError(
            f"the training data hold {total} tokens, less than one block of "
            f"{config.training.block_size}; give more data or a smaller training.block_size"
        )
    if counted < MIN_LOSS_SHARE * total or counted == 0:
        raise DataError(
            f"only {counted} of {total} training tokens carry loss (less than "
            f"{MIN_LOSS_SHARE:.0%}); check the chat template, the completions and "
            "training.block_size"
        )
    callback.tokens_per_pass = counted
    notes = [f"N = {counted:,} tokens carry loss, of {total:,} in one pass"]
    if callback.tokens_per_epoch is None:
        callback.tokens_per_epoch = counted
    elif abs(callback.tokens_per_epoch - counted) > MAX_COUNT_DIFFERENCE * counted:
        notes.append(
            f"WARNING: data.tokens_per_epoch is {callback.tokens_per_epoch:,} and is used as N, "
            f"but {counted:,} were counted; ParamBPT and S scale with 1/N"
        )
    if not eos_carries_loss:
        notes.append("WARNING: EOS carries no loss anywhere: the adapter will not learn to stop")
    return notes
