"""Scores documents under a torch model: cross-entropy per document, in sliding windows.

A document is tokenized as it is in training (the tests hold it against TRL's own preparation). One
longer than the context is read in windows that overlap by half; every token is scored once, with at
least half a context before it where the document has that much. The first token of a document is
predicted from the BOS token, or from EOS where the tokenizer has none, so that every byte is paid
for.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from scu.config import RunConfig
from scu.config_file import load
from scu.data import Documents, load_documents
from scu.engines.loading import assistant_template, load_adapter, load_tokenizer
from scu.engines.torch_engine import training_documents
from scu.errors import DataError, ModelError
from scu.evaluate import Comparison, DocumentScore, compare
from scu.formats import document_text


@dataclass(frozen=True)
class TokenizedDocument:
    ids: list[int]
    carries_loss: list[bool]
    """Same length as ids."""
    bytes: int
    """UTF-8 bytes of the text that carries loss."""


@dataclass(frozen=True)
class _Window:
    document: int
    ids: list[int]
    labels: list[int]
    """-100 where the token is context only, or was scored by an earlier window."""


def evaluate_adapter(folder: Path, *, data: str | None = None) -> Comparison:
    """Base against adapter on data, by default on the documents that its run held out.

    The folder is that of a run: config.yaml says which base and which data. Raises InputError.
    """
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ModelError(f"{folder} holds no run (config.yaml is missing)")
    config = load(config_file)
    documents = load_documents(data) if data is not None else _held_out(config, folder)
    tokenizer = load_tokenizer(config.model)
    model = load_adapter(folder, config.model)
    context = config.training.block_size  # within the model's positions: preflight saw to it
    tokenized = tokenize(documents, tokenizer)
    with model.disable_adapter():
        base = score(model, tokenized, context=context)
    return compare(base, score(model, tokenized, context=context), source=documents.source)


def tokenize(documents: Documents, tokenizer: Any) -> list[TokenizedDocument]:
    """Token ids and loss marks of each document, as TRL prepares them for training."""
    template = assistant_template(tokenizer) if documents.kind == "messages" else None
    return [_tokenize(row, tokenizer, template) for row in documents.rows]


@torch.no_grad()
def score(
    model: Any, documents: list[TokenizedDocument], *, context: int, batch_tokens: int | None = None
) -> list[DocumentScore]:
    """Nats per document under the model. context is the longest window, in tokens.

    batch_tokens bounds the padded size of a batch; by default so that its logits, in float32, take
    half a GiB at most.
    """
    if batch_tokens is None:
        batch_tokens = min(8192, 2**27 // model.get_input_embeddings().num_embeddings)
    if context < 2:
        raise DataError(f"a context of {context} tokens has nothing to predict from")
    nats = [0.0] * len(documents)
    windows = [w for i, d in enumerate(documents) for w in _windows(i, d, context)]
    windows.sort(key=lambda window: len(window.ids))  # little padding
    model.eval()
    for batch in _batches(windows, batch_tokens):
        for window, loss in zip(batch, _window_nats(model, batch), strict=True):
            nats[window.document] += loss
    return [
        DocumentScore(nats=n, tokens=sum(d.carries_loss[1:]), bytes=d.bytes)
        for n, d in zip(nats, documents, strict=True)
    ]


def _held_out(config: RunConfig, folder: Path) -> Documents:
    held_out = training_documents(config)[1]
    if held_out is None:
        raise DataError("the run held no documents out; name some with --data")
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        sha256 = metadata["data"]["validation"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'metadata.json'} does not say what the run held out ({error!r}); name "
            "documents with --data"
        ) from error
    if sha256 != held_out.sha256:
        raise DataError(
            f"{held_out.source} has changed since the run, which may have been trained on what "
            "would be held out now; name documents with --data"
        )
    return held_out


def _tokenize(row: Mapping[str, Any], tokenizer: Any, template: str | None) -> TokenizedDocument:
    if "messages" in row and template is not None:
        encoded = tokenizer.apply_chat_template(
            row["messages"],
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, marks = encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]]
        scored = "".join(m["content"] for m in row["messages"] if m["role"] == "assistant")
    elif "text" in row:
        ids = tokenizer(_with_eos(row["text"], tokenizer))["input_ids"]
        marks, scored = [True] * len(ids), row["text"]
    else:
        prompt, completion = row.get("prompt"), row.get("completion")
        if prompt is None:  # the template does not mark assistant turns: the last is the completion
            prompt, completion = row["messages"][:-1], row["messages"][-1:]
        ids, marks = _tokenize_completion(prompt, completion, tokenizer)
        scored = document_text({"completion": completion})
    lead = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if ids and ids[0] != lead:
        ids, marks = [lead, *ids], [False, *marks]
    return TokenizedDocument(list(ids), marks, len(scored.encode()))


def _tokenize_completion(
    prompt: Any, completion: Any, tokenizer: Any
) -> tuple[list[int], list[bool]]:
    if isinstance(prompt, str):
        before = tokenizer(prompt)["input_ids"]
        whole = tokenizer(prompt + _with_eos(completion, tokenizer))["input_ids"]
    else:
        options = {"tokenize": True, "return_dict": True}
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)[
            "input_ids"
        ]
        whole = tokenizer.apply_chat_template(prompt + completion, **options)["input_ids"]
    shared = 0
    while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
        shared += 1
    return list(whole), [False] * shared + [True] * (len(whole) - shared)


def _with_eos(text: str, tokenizer: Any) -> str:
    return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def _windows(index: int, document: TokenizedDocument, context: int) -> Iterator[_Window]:
    labels = [i if m else -100 for i, m in zip(document.ids, document.carries_loss, strict=True)]
    scored, start = 1, 0  # the first token has nothing before it
    while scored < len(labels):
        end = min(start + context, len(labels))
        own = [-100] * (scored - start) + labels[scored:end]
        if any(label != -100 for label in own):
            yield _Window(index, document.ids[start:end], own)
        scored = end
        start = max(0, end - context // 2)


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    batch: list[_Window] = []
    for window in windows:  # ascending length: the newest is the longest
        if batch and len(window.ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _window_nats(model: Any, batch: list[_Window]) -> list[float]:
    longest = len(batch[-1].ids)
    pad = [longest - len(window.ids) for window in batch]
    device = next(model.parameters()).device
    ids = torch.tensor([w.ids + [0] * p for w, p in zip(batch, pad, strict=True)], device=device)
    labels = torch.tensor(
        [w.labels + [-100] * p for w, p in zip(batch, pad, strict=True)], device=device
    )
    mask = torch.tensor(
        [[1] * len(w.ids) + [0] * p for w, p in zip(batch, pad, strict=True)], device=device
    )
    logits = model(input_ids=ids, attention_mask=mask).logits
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    # Summed in float64: a document of a million tokens must not lose its last digits.
    return [float(value) for value in losses.double().sum(dim=1)]
