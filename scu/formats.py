"""Formats of a row: from the columns people have to those that TRL's SFTTrainer takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from reprlib import repr as short
from typing import Any, Literal, NamedTuple

from scu.errors import DataError

Kind = Literal["text", "messages", "completion"]
Row = Mapping[str, Any]

TRL_COLUMNS = ("text", "messages", "prompt", "completion")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
# Word for word Stanford's, and the newline before the response belongs to the prompt: BPE
# pre-tokenizers end a token there, so the tokens of the prompt do not depend on the completion.
_ALPACA_HEAD = "Below is an instruction that describes a task{}. Write a response that "
_ALPACA_HEAD += "appropriately completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
_ALPACA_PAIRED = ", paired with an input that provides further context"


class Format(NamedTuple):
    name: str
    kind: Kind
    needs: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any]]
    may_have: tuple[str, ...] = ()


def document_text(row: Row) -> str:
    """The text of a converted row of any kind, without roles or a chat template."""
    return "".join(plain(row[name]) for name in TRL_COLUMNS if name in row)


def plain(value: str | list[dict[str, str]]) -> str:
    return value if isinstance(value, str) else "\n".join(turn["content"] for turn in value)


def found(value: object) -> str:
    return f"found {type(value).__name__} {short(value)}"


def _string(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f'"{name}" must be a string, {found(value)}')
    return value


def _turns(
    row: Row, name: str, role: str = "role", content: str = "content"
) -> list[dict[str, str]]:
    turns = row[name]
    shape = f'"{name}" must be a list of {{"{role}": string, "{content}": string}}'
    if not isinstance(turns, list):
        raise DataError(f"{shape}, {found(turns)}")
    for turn in turns:
        parts = (turn.get(role), turn.get(content)) if isinstance(turn, dict) else (None,)
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{shape}, {found(turn)} in it")
    return [{"role": turn[role], "content": turn[content]} for turn in turns]


def _from_sharegpt(row: Row) -> dict[str, Any]:
    turns = _turns(row, "conversations", "from", "value")
    for turn in turns:
        if turn["role"] not in _SHAREGPT_ROLES:
            raise DataError(f'"from" must be {" | ".join(_SHAREGPT_ROLES)}, found {turn["role"]!r}')
    return {"messages": [{**turn, "role": _SHAREGPT_ROLES[turn["role"]]} for turn in turns]}


def _from_pair(answer: str, row: Row) -> dict[str, Any]:
    """Strings stay as they are: TRL joins the two with nothing in between."""
    read: Callable[[Row, str], object] = _turns if isinstance(row["prompt"], list) else _string
    return {"prompt": read(row, "prompt"), "completion": read(row, answer)}


def _from_alpaca(row: Row) -> dict[str, Any]:
    given = "" if row.get("input") is None else _string(row, "input")
    paired, block = (_ALPACA_PAIRED, f"### Input:\n{given}\n\n") if given.strip() else ("", "")
    prompt = _ALPACA_HEAD.format(paired, _string(row, "instruction"), block)
    return {"prompt": prompt, "completion": _string(row, "output")}


def _from_question(row: Row) -> dict[str, Any]:
    # The space goes with the answer: BPE vocabularies hold " Paris" as one token, while a prompt
    # that ends in a space ends in a token that running text does not have there.
    prompt = f"Question: {_string(row, 'question')}\nAnswer:"
    return {"prompt": prompt, "completion": f" {_string(row, 'answer')}"}


_PAIR = "prompt/completion"
_FORMATS = (  # in order of precedence
    Format(
        "messages", "messages", ("messages",), lambda row: {"messages": _turns(row, "messages")}
    ),
    Format("messages (sharegpt columns)", "messages", ("conversations",), _from_sharegpt),
    Format(_PAIR, "completion", ("prompt", "completion"), partial(_from_pair, "completion")),
    Format(
        f"{_PAIR} (response column)",
        "completion",
        ("prompt", "response"),
        partial(_from_pair, "response"),
    ),
    Format(
        f"{_PAIR} (alpaca columns)",
        "completion",
        ("instruction", "output"),
        _from_alpaca,
        ("input",),
    ),
    Format(f"{_PAIR} (question column)", "completion", ("question", "answer"), _from_question),
    Format("text", "text", ("text",), lambda row: {"text": _string(row, "text")}),
)


def format_of(row: Row) -> Format:
    for candidate in _FORMATS:
        if row.keys() >= set(candidate.needs):
            return candidate
    known = " | ".join("+".join(candidate.needs) for candidate in _FORMATS)
    raise DataError(f"columns {list(row)} are no format we know; rename them to one of {known}")


def left_out(row: Row, taken: Iterable[str]) -> Iterator[str]:
    for name, value in row.items():
        if name not in taken:
            yield name
        elif isinstance(value, list):  # null: a column format gives every turn every key
            yield from (
                f"{name}[].{key}"
                for turn in value
                for key, item in turn.items()
                if key not in ("role", "content", "from", "value") and item is not None
            )
