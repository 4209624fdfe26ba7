"""What a user has, as rows that TRL's SFTTrainer takes; a held-out part of them; what leaked.

A source is a file, a folder of files of one format, or the id of a data set on the Hugging Face
hub. It is read twice, row by row, so memory stays bounded (only a .json array is parsed whole).
The first pass finds every error, counts, and hashes the converted documents before anything is
written; the second writes them as Arrow into the datasets cache, keyed by that hash: a changed
file at the same path has another key, and an unchanged one is not written again.

The first row settles the format, and a later row without its fields is an error. Empty documents
are skipped and counted, columns and files left out are named; both in Documents.note.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from scu.errors import ConfigError, DataError
from scu.formats import Format, Kind, Row, document_text, format_of, left_out, plain
from scu.sources import (
    EMBEDDED_PREFIX,
    Located,
    find_files,
    load_embedded,
    load_hub,
    numbered,
    read_files,
    sha256_of,
    suffix,
)


@dataclass(frozen=True)
class Documents:
    rows: Dataset
    """Exactly the columns of one TRL format: text | messages | prompt and completion."""
    kind: Kind
    source: str
    """As the user wrote it."""
    sha256: str
    """Of the bytes of the file, or of a folder's files as `cat` would join them; of the converted
    rows for a hub data set. Both sides of a split keep that of the whole."""
    note: str
    """One line: how it was read and what was left out."""


def load_documents(source: str, *, hub_split: str = "train") -> Documents:
    """Read a file, a folder, embedded text or a hub data set. Raises DataError with the place."""
    path, remark = Path(source).expanduser(), ""
    files: list[Path] = []
    ignored: list[str] = []
    located: Callable[[], Iterator[Located]]
    try:
        if source.startswith(EMBEDDED_PREFIX):
            rows, remark = load_embedded(source)
            located = partial(numbered, f"{source}, file", rows)
        elif source.strip() and path.exists():
            files, ignored = find_files(path)
            located = partial(read_files, files)
        else:
            located = partial(numbered, f"{source} ({hub_split}), row", load_hub(source, hub_split))
        reading, key = _survey(source, located)
        sha256 = sha256_of(files) if files else key
    except OSError as error:
        name, reason = error.filename or source, error.strerror or error
        raise DataError(f"{name}: cannot be read ({reason}); check that you may open it") from error
    note = _note(reading, files, ignored) + remark
    return Documents(reading.to_arrow(source, key), reading.format.kind, source, sha256, note)


def split_documents(
    documents: Documents, *, fraction: float, seed: int
) -> tuple[Documents, Documents]:
    """Return (train, held out); what `overlap` calls the same content is never on both sides.

    fraction is of the documents. Copies that no longer fit stay in train, so fewer may be held
    out, but at least one. Who is held out depends on seed and content, not on the order of rows.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the held-out fraction must be between 0 and 1, got {fraction}")
    copies: dict[bytes, list[int]] = {}
    for index, row in enumerate(documents.rows):
        copies.setdefault(_digest(row), []).append(index)
    total = len(documents.rows)
    if len(copies) < 2:
        raise DataError(
            f"{documents.source}: {total} document(s), {len(copies)} distinct, cannot be split; "
            "training and holding out need one each, so add documents or a held-out file"
        )
    wanted = min(max(1, round(fraction * total)), total - 1)  # total - 1: leave one to train on
    key = str(seed).encode()
    drawn = sorted(copies, key=lambda digest: hashlib.blake2b(digest, key=key).digest())
    held: list[int] = []
    for digest in drawn:
        if len(held) + len(copies[digest]) <= wanted:
            held += copies[digest]
    held = sorted(held or copies[min(drawn, key=lambda digest: len(copies[digest]))])
    train = sorted(set(range(total)).difference(held))
    return _part(documents, train, "train"), _part(documents, held, "held out")


def overlap(train: Documents, held_out: Documents) -> int:
    """Count held-out documents whose text, white space collapsed, also occurs in train."""
    seen = {_digest(row) for row in train.rows}
    return sum(_digest(row) in seen for row in held_out.rows)


def _digest(row: Row) -> bytes:
    return hashlib.sha256(" ".join(document_text(row).split()).encode()).digest()


def _part(documents: Documents, indices: list[int], side: str) -> Documents:
    note = f"{documents.note}; {side}: {len(indices):,} of {len(documents.rows):,}"
    return replace(documents, rows=documents.rows.select(indices), note=note)


@dataclass
class _Reading:
    """One pass over a source, with what it met on the way."""

    located: Callable[[], Iterator[Located]]
    """Starts the source from its beginning."""
    format: Format
    types: dict[str, type] = field(default_factory=dict)
    kept: int = 0
    empty: int = 0
    dropped: set[str] = field(default_factory=set)

    def documents(self) -> Iterator[dict[str, Any]]:
        for where, row in self.located():
            try:
                document = self._convert(row)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            except UnicodeEncodeError as error:
                raise DataError(f"{where}: half a character ({error}); write it whole") from None
            if document:
                self.kept += 1
                yield document
            else:
                self.empty += 1

    def _convert(self, row: Row) -> dict[str, Any] | None:
        """Return None for a document with nothing to learn: null, or no text in its last column."""
        needs = self.format.needs
        if not row.keys() >= set(needs):
            raise DataError(
                f"columns {list(row)}, but the first row was {self.format.name}; "
                f"every row needs {'+'.join(needs)}"
            )
        if any(row[name] is None for name in needs):
            return None
        document = self.format.convert(row)
        self.dropped.update(left_out(row, needs + self.format.may_have))
        types = {name: type(value) for name, value in document.items()}
        self.types = self.types or types
        if types != self.types:
            raise DataError("strings here but lists of messages above, or the reverse; choose one")
        document_text(document).encode()
        return document if plain(list(document.values())[-1]).strip() else None

    def to_arrow(self, source: str, key: str) -> Dataset:
        turns = List({"role": Value("string"), "content": Value("string")})
        columns = {name: turns if t is list else Value("string") for name, t in self.types.items()}
        again = _Reading(self.located, self.format)
        try:
            with _no_progress_bars():
                rows: Dataset = Dataset.from_generator(
                    again.documents, features=Features(columns), fingerprint=key
                )
        except (DatasetGenerationError, OSError) as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from None
            raise DataError(
                f"cannot write to the cache {datasets.config.HF_DATASETS_CACHE} "
                f"({error.__cause__ or error}); free some space, or point HF_HOME elsewhere"
            ) from error
        if len(rows) != self.kept:
            raise DataError(f"{source}: changed while it was read; load it again when it is whole")
        return rows


def _survey(source: str, located: Callable[[], Iterator[Located]]) -> tuple[_Reading, str]:
    """Read all rows; return what was met and the SHA-256 of the converted documents."""
    where, first = next(located(), ("", {}))
    if not where:
        raise DataError(f"{source}: holds no documents; give it at least two")
    try:
        reading = _Reading(located, format_of(first))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    sha256 = hashlib.sha256()
    for document in reading.documents():
        sha256.update(json.dumps(document).encode() + b"\n")
    if not reading.kept:
        raise DataError(f"{source}: all {reading.empty} documents are empty; give some with text")
    return reading, sha256.hexdigest()


def _note(reading: _Reading, files: list[Path], ignored: list[str]) -> str:
    paragraphs = files and suffix(files[0]) == ".txt"
    parts = [f"{reading.kept:,} {'paragraphs' if paragraphs else f'rows of {reading.format.name}'}"]
    if len(files) > 1:
        parts.append(f"{len(files)} files")
    if reading.empty:
        parts.append(f"{reading.empty:,} empty rows skipped")
    if reading.dropped:
        parts.append(f"columns dropped: {', '.join(sorted(reading.dropped))}")
    if ignored:
        parts.append(f"files ignored: {', '.join(ignored)}")
    return "; ".join(parts)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
