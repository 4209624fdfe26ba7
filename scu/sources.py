"""Sources of rows: files, folders, hub data sets and the embedded text, each row with its place."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from reprlib import repr as short
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from scu import corpus
from scu.errors import DataError
from scu.formats import Row, found

Located = tuple[str, Row]
"""Where the row stands, for errors; the row as it was found."""

EMBEDDED_PREFIX = "stdlib:"
"""stdlib:train and stdlib:held-out are Python files of the running installation, stdlib:few every
fourth of those to train on: little enough that an adapter without regularization overfits."""


def load_embedded(source: str) -> tuple[list[Row], str]:
    """The documents of an embedded source, and a remark if another Python's text is the reference.

    Raises DataError for a name that is not one.
    """
    code = corpus.code_documents()
    parts = {"train": code.train, "few": code.train[::4], "held-out": code.held_out}
    name = source.removeprefix(EMBEDDED_PREFIX)
    if name not in parts:
        known = ", ".join(EMBEDDED_PREFIX + part for part in parts)
        raise DataError(f"no embedded data {source!r}; there are {known}")
    remark = "" if code.is_reference else "; not the text that published figures were measured on"
    return [{"text": text} for text in parts[name]], remark


def find_files(path: Path) -> tuple[list[Path], list[str]]:
    """Return the files to read and, of a folder, the names of those that are not for us."""
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path}: neither a file nor a folder; copy the data into a file")
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    entries = [entry for entry in entries if not entry.name.startswith(".") or entry == path]
    files = [entry for entry in entries if entry.is_file() and suffix(entry) in READERS]
    if not files:
        raise DataError(f"{path}: nothing here that we read; give {', '.join(READERS)}")
    suffixes = sorted({suffix(file) for file in files})
    if len(suffixes) > 1:
        raise DataError(f"{path}: mixes {' and '.join(suffixes)} files; keep those of one format")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; fill it, or take it away")
    return files, [entry.name for entry in entries if entry not in files]


def suffix(path: Path) -> str:
    return path.suffix.lower()


def sha256_of(files: Iterable[Path]) -> str:
    sha256 = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:  # as bytes, so that one that is not UTF-8 has a line number
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise DataError(
                    f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
                ) from None


def _paragraphs(path: Path) -> Iterator[Located]:
    for blank, group in groupby(_lines(path), key=lambda numbered: not numbered[1].strip()):
        if not blank:
            (start, _), *_ = lines = list(group)
            text = "".join(line for _, line in lines).replace("\r\n", "\n").rstrip("\n")
            yield f"{path}, line {start}", {"text": text}


def _json_rows(path: Path) -> Iterator[Located]:
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if suffix(path) == ".json" and first.lstrip().startswith("["):
        whole = _parse(path, 1, "".join(line for _, line in _lines(path)))
        yield from numbered(f"{path}, item", whole)
        return
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(where, _parse(path, number, line.strip()))


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # mostly JSONDecodeError, whose message counts lines from text
        line += getattr(error, "lineno", 1) - 1
        raise DataError(
            f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)}), found {short(text)}; "
            'write one object per line, such as {"text": "..."}'
        ) from None


def _object(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise DataError(f'{where}: must be an object such as {{"text": "..."}}, {found(row)}')
    return row


def numbered(what: str, rows: Iterable[Any]) -> Iterator[Located]:
    for number, row in enumerate(rows, 1):
        yield f"{what} {number}", _object(f"{what} {number}", row)


def _csv_rows(path: Path) -> Iterator[Located]:
    # Not the loader of datasets: pandas would make numbers of answers and nulls of "NA".
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is a short document
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                columns = reader.fieldnames
                raise DataError(
                    f"{where}: not as many fields as the columns {columns}; quote commas"
                )
            yield where, row
    except csv.Error as error:
        raise DataError(
            f"{path}, row after line {reader.line_num}: not CSV ({error}); mend its quotes"
        ) from None


def _parquet_rows(path: Path) -> Iterator[Located]:
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1000)
            yield from numbered(f"{path}, row", (row for b in batches for row in b.to_pylist()))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error}); write it again") from None


READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def read_files(files: list[Path]) -> Iterator[Located]:
    for file in files:
        yield from READERS[suffix(file)](file)


def load_hub(source: str, split: str) -> Dataset:
    if "path/to/" in source:
        raise DataError(
            f"{source!r} is still the template's placeholder; put the path of your own data there"
        )
    if suffix(Path(source)) in READERS or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise DataError(
            f"no file or folder {source!r}; correct the path, or give a hub id: org/name"
        )
    try:
        return datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub client has dozens: network, access, scripts, split names
        raise DataError(
            f"{source!r} is neither a file here nor a hub data set that we could reach with "
            f"split {split!r} ({type(error).__name__}: {error}); correct the one that is wrong"
        ) from error
