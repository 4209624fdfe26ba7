"""Make the embedded base model from scratch: `python scripts/train_base.py`.

Trains a byte-level BPE tokenizer and a small Llama on this Python's own documentation and writes
both, with a model card, to `scu/base/`. Takes well under an hour on two CPU cores with bfloat16.
"""

import gzip
import lzma
import math
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from scu.corpus import code_documents, is_held_out, prose_documents, text_sha256

OUT = Path(__file__).resolve().parent.parent / "scu" / "base"
SEED = 0
VOCAB_SIZE = 4096
CONTEXT_TOKENS = 256
BATCH_BLOCKS = 16
EPOCHS = 12
EVAL_STEPS = 100
PEAK_LR = 1.5e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 1.0  # ten times the usual: the text is small and seen often
MAX_GRAD_NORM = 1.0
EOS = "<|endoftext|>"
PAD = "<|pad|>"  # apart from EOS, so that masking padding does not mask the end of a document
IGNORED = -100  # target without loss


@dataclass(frozen=True)
class TrainingRun:
    """What the model card says of the run."""

    steps: int
    best_step: int
    duration_sec: float
    tokens_per_sec: float


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # faster than sdpa on CPU at this size
    )
    return LlamaForCausalLM(config)


def token_ids(tokenizer: PreTrainedTokenizerFast, document: str) -> list[int]:
    ids: list[int] = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def packed_batches(
    documents: list[list[int]], eos: int, order: random.Random
) -> list[torch.Tensor]:
    """One epoch: documents in random order, each after an EOS, cut into blocks of one context.

    A batch has one block per row, each one token longer than the context: inputs and targets.
    """
    stream = [eos]
    for document in order.sample(documents, len(documents)):
        stream += [*document, eos]
    n_blocks = (len(stream) - 1) // CONTEXT_TOKENS
    starts = [CONTEXT_TOKENS * block for block in order.sample(range(n_blocks), n_blocks)]
    blocks = torch.tensor([stream[start : start + CONTEXT_TOKENS + 1] for start in starts])
    full = n_blocks - n_blocks % BATCH_BLOCKS
    return list(blocks[:full].view(-1, BATCH_BLOCKS, CONTEXT_TOKENS + 1))


@torch.no_grad()
def total_nats(model: LlamaForCausalLM, documents: list[list[int]], eos: int) -> float:
    """Summed cross-entropy of every token of every document; the first is predicted from EOS.

    Windows overlap by half, so a token past the first window has at least half a context before it.
    """
    model.eval()
    half = CONTEXT_TOKENS // 2
    inputs, targets = [], []
    for document in documents:
        stream = [eos, *document]
        for start in range(0, max(len(document) - half, 1), half):
            window = stream[start : start + CONTEXT_TOKENS + 1]
            scored = half if start else 0  # by the window before
            fill = CONTEXT_TOKENS + 1 - len(window)  # on the right, where no token looks
            inputs.append(window[:-1] + [eos] * fill)
            targets.append([IGNORED] * scored + window[1 + scored :] + [IGNORED] * fill)
    nats = 0.0
    for first in range(0, len(inputs), BATCH_BLOCKS):
        batch = slice(first, first + BATCH_BLOCKS)
        logits = model(torch.tensor(inputs[batch]), use_cache=False).logits
        nats += torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            torch.tensor(targets[batch]).flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        ).item()
    return nats


def held_out_bpb(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[str]
) -> float:
    """Bits per UTF-8 byte of the documents."""
    ids = [token_ids(tokenizer, document) for document in documents]
    n_bytes = len("".join(documents).encode("utf-8"))
    return total_nats(model, ids, tokenizer.eos_token_id) / math.log(2.0) / n_bytes


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero; steps count from 1."""
    if step < WARMUP_STEPS:
        return PEAK_LR * step / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    return PEAK_LR * 0.5 * (1.0 + math.cos(math.pi * progress))


def train(
    tokenizer: PreTrainedTokenizerFast, train_docs: list[str], held_out_docs: list[str]
) -> TrainingRun:
    """Train, keeping the checkpoint of lowest held-out loss in OUT."""
    torch.manual_seed(SEED)
    order = random.Random(SEED)
    eos = tokenizer.eos_token_id
    train_ids = [token_ids(tokenizer, document) for document in train_docs]
    steps_per_epoch = len(packed_batches(train_ids, eos, order))
    steps = EPOCHS * steps_per_epoch

    model = new_model(tokenizer)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    batches: list[torch.Tensor] = []
    best_bpb, best_step, started_sec = math.inf, 0, time.perf_counter()
    for step in range(1, steps + 1):
        batches = batches or packed_batches(train_ids, eos, order)
        loss_nats = training_step(model, optimizer, batches.pop(), learning_rate(step, steps))
        if step % EVAL_STEPS and step < steps:
            continue
        with torch.autocast("cpu", torch.bfloat16):
            bpb = held_out_bpb(model, tokenizer, held_out_docs)
        elapsed_sec = time.perf_counter() - started_sec
        print(
            f"step {step}/{steps}, {elapsed_sec:.0f} s: training loss {loss_nats:.3f} nats/token, "
            f"held-out {bpb:.4f} bits/byte",
            flush=True,
        )
        if bpb < best_bpb:
            best_bpb, best_step = bpb, step
            save(model)
    duration_sec = time.perf_counter() - started_sec
    tokens_per_sec = steps * BATCH_BLOCKS * CONTEXT_TOKENS / duration_sec
    return TrainingRun(steps, best_step, duration_sec, tokens_per_sec)


def training_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor, lr: float
) -> float:
    """One update; returns the batch's loss in nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1], use_cache=False).logits
    targets = batch[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def save(model: LlamaForCausalLM) -> None:
    """Write the weights in bfloat16, which is what is measured and shipped."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(OUT)
    (OUT / "model.safetensors").chmod(0o644)  # written readable by its owner alone


def gzip_bytes(text: bytes) -> int:
    return len(gzip.compress(text, 9))


def xz_bytes(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def model_card(train_docs: list[str], held_out_docs: list[str], run: TrainingRun) -> str:
    """Measure the saved model beside gzip and xz, and describe how it was made."""
    model = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    code = code_documents()
    train_text = "".join(train_docs).encode("utf-8")
    held_out_text = "".join(held_out_docs).encode("utf-8")

    def alone_bpb(compressed_bytes: Callable[[bytes], int]) -> float:
        return 8 * compressed_bytes(held_out_text) / len(held_out_text)

    def conditional_bpb(compressed_bytes: Callable[[bytes], int]) -> float:
        joint_bytes = compressed_bytes(train_text + held_out_text)
        return 8 * (joint_bytes - compressed_bytes(train_text)) / len(held_out_text)

    def tokens(documents: list[str]) -> int:
        return sum(len(token_ids(tokenizer, document)) for document in documents)

    config = model.config
    weights_mb = (OUT / "model.safetensors").stat().st_size / 1e6
    same_code = "" if code.is_reference else " (not the reference text: another Python version)"
    return f"""# Embedded base model

A small language model of English technical prose, made from scratch by `scripts/train_base.py`,
which also wrote this card. It exists so that the demo and the tests run at once, without network
access. It is far too small to be useful as an assistant.

| | |
|---|---|
| Architecture | Llama, {config.num_hidden_layers} layers, hidden {config.hidden_size}, \
intermediate {config.intermediate_size}, {config.num_attention_heads} heads, tied embeddings |
| Parameters | {sum(p.numel() for p in model.parameters()):,}, bfloat16, {weights_mb:.1f} MB |
| Tokenizer | byte-level BPE, {len(tokenizer)} tokens, end of document and padding among them |
| Context | {CONTEXT_TOKENS} tokens |
| Text | documentation strings of the standard library and the `pydoc` topics of Python \
{platform.python_version()}, each paragraph once, without the files the demo adapts to |
| Training text | {len(train_docs)} documents, {len(train_text):,} bytes, \
{tokens(train_docs):,} tokens, SHA-256 `{text_sha256(train_docs)}` |
| Held-out text | {len(held_out_docs)} documents, {len(held_out_text):,} bytes, \
{tokens(held_out_docs):,} tokens, SHA-256 `{text_sha256(held_out_docs)}` |
| Training | {run.steps} steps of {BATCH_BLOCKS * CONTEXT_TOKENS} tokens ({EPOCHS} epochs), \
AdamW, peak learning rate {PEAK_LR}, weight decay {WEIGHT_DECAY}, seed {SEED}; kept: step \
{run.best_step}, the lowest held-out loss of those measured every {EVAL_STEPS} steps |
| Time | {run.duration_sec / 60:.0f} minutes, {run.tokens_per_sec:,.0f} tokens/s, on \
at most {os.cpu_count()} CPU threads, held-out measurements included |

## Held-out text, bits per byte

| | alone | given the training text |
|---|---|---|
| gzip -9 | {alone_bpb(gzip_bytes):.3f} | {conditional_bpb(gzip_bytes):.3f} |
| xz -9e | {alone_bpb(xz_bytes):.3f} | {conditional_bpb(xz_bytes):.3f} |
| this model | | {held_out_bpb(model, tokenizer, held_out_docs):.3f} |

"Given the training text" is compress(training + held-out) - compress(training). The model's number
is its summed cross-entropy over every token, the first of a document predicted from `{EOS}`,
computed in float32 from the saved bfloat16 weights. The held-out text also chose the checkpoint.

The demo's target domain is Python source code, split by file{same_code}: {tokens(code.train):,}
tokens to adapt to, {tokens(code.held_out):,} held out. Before any adaptation, held-out files cost
{held_out_bpb(model, tokenizer, code.held_out):.3f} bits per byte.

## Licence

The text is from Python's documentation, copyright Python Software Foundation, used under the PSF
License Agreement (<https://docs.python.org/3/license.html>).
"""


def main() -> None:
    documents = prose_documents()
    train_docs = [document for document in documents if not is_held_out(document)]
    held_out_docs = [document for document in documents if is_held_out(document)]
    tokenizer = train_tokenizer(train_docs)
    tokenizer.save_pretrained(OUT)
    run = train(tokenizer, train_docs, held_out_docs)
    card = model_card(train_docs, held_out_docs, run)
    (OUT / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
