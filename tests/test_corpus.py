"""The embedded base model and the text that it and the demo are made of."""

import ast
import lzma
import math
import platform
import sysconfig
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import scu.corpus
from scu.corpus import (
    CODE_FILES,
    HELD_OUT_FILES,
    TRAIN_FILES,
    code_documents,
    is_held_out,
    prose_documents,
    text_sha256,
)
from scu.errors import DataError

BASE = Path(scu.corpus.__file__).parent / "base"
STDLIB = Path(sysconfig.get_path("stdlib"))

prose = cache(prose_documents)


@cache
def base_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@cache
def base_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)


def docstrings(name: str) -> list[str]:
    tree = ast.parse((STDLIB / name).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    return [doc for node in nodes if (doc := ast.get_docstring(node))]


def test_no_file_is_both_train_and_held_out():
    assert len(set(CODE_FILES)) == len(TRAIN_FILES) + len(HELD_OUT_FILES)


def test_held_out_code_is_many_files_and_a_third_of_the_bytes():
    code = code_documents()
    train_bytes, held_out_bytes = (
        len("".join(part).encode()) for part in (code.train, code.held_out)
    )
    assert len(code.held_out) >= 25
    assert held_out_bytes >= 100_000
    assert 0.6 <= train_bytes / (train_bytes + held_out_bytes) <= 0.7


def test_code_is_the_reference_text_on_the_versions_it_was_chosen_for():
    code = code_documents()
    if not code.is_reference:
        pytest.skip("this Python's standard library differs from the reference")
    assert len("".join(code.train).encode()) == 477_145


def test_changed_source_is_not_the_reference_but_still_read(monkeypatch):
    monkeypatch.setattr(scu.corpus, "TRAIN_FILES", TRAIN_FILES[:-1])
    code = code_documents()
    assert not code.is_reference
    assert len(code.train) == len(TRAIN_FILES) - 1


def test_missing_source_file_is_named(monkeypatch):
    monkeypatch.setattr(scu.corpus, "HELD_OUT_FILES", ("no_such_module.py",))
    with pytest.raises(DataError, match=r"lacks no_such_module\.py"):
        code_documents()


def test_prose_holds_no_docstring_of_a_target_file():
    text = "".join(f"\n\n{document}" for document in prose())
    targets = [doc for name in CODE_FILES for doc in docstrings(name) if len(doc) >= 40]
    assert len(targets) > 300
    assert [doc for doc in targets if f"\n\n{doc}\n" in text] == []


def test_prose_holds_docstrings_of_other_files_and_the_topics():
    text = "\n\n".join(prose())
    assert "Wrap a single paragraph of text, returning a list of wrapped lines." in text
    assert 'The "assert" statement' in text


def test_prose_repeats_no_paragraph_across_documents():
    paragraphs = [p.strip() for document in prose() for p in set(document.split("\n\n"))]
    long = [p for p in paragraphs if len(p) >= 40]
    assert len(long) == len(set(long))


def test_prose_is_big():
    assert sum(map(len, prose())) > 1_500_000


def test_prose_is_the_text_that_the_base_was_trained_on():
    card = (BASE / "README.md").read_text(encoding="utf-8")
    if f"Python {platform.python_version()}," not in card:
        pytest.skip("the base was trained on another Python version's documentation")
    assert text_sha256([d for d in prose() if not is_held_out(d)]) in card
    assert text_sha256([d for d in prose() if is_held_out(d)]) in card


def test_about_one_in_twenty_prose_documents_is_held_out():
    held_out = [document for document in prose() if is_held_out(document)]
    assert 0.02 < len(held_out) / len(prose()) < 0.10


def test_base_model_is_small_and_complete():
    assert {path.name for path in BASE.iterdir()} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 12_000_000
    assert 3_500_000 <= sum(p.numel() for p in base_model().parameters()) <= 4_500_000


def test_tokenizer_fits_the_model_and_its_pad_is_not_its_eos():
    tokenizer, config = base_tokenizer(), base_model().config
    assert len(tokenizer) == config.vocab_size == 4096
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert tokenizer.eos_token_id == config.eos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_tokenizer_gives_back_any_text():
    text = "def f(x):\n\treturn 'é€😀'  # \x00\r\n\n    \n"
    assert base_tokenizer().decode(base_tokenizer()(text)["input_ids"]) == text


def test_base_model_codes_held_out_prose_in_fewer_bits_than_xz():
    documents = [document for document in prose() if is_held_out(document)]
    document = next(document for document in documents if 400 <= len(document) <= 700)
    ids = base_tokenizer()(document + "<|endoftext|>", return_tensors="pt")["input_ids"]
    ids = ids.roll(1)  # EOS first: every byte of the document is predicted
    with torch.no_grad():
        loss_nats = base_model()(ids, labels=ids).loss.item()
    model_bpb = loss_nats * (ids.numel() - 1) / math.log(2) / len(document.encode())
    raw_lzma = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    xz = lzma.compress(document.encode(), lzma.FORMAT_RAW, filters=raw_lzma)  # without its header
    assert model_bpb < 8 * len(xz) / len(document.encode())
