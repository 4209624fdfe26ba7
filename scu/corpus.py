"""The text that every Python installation carries: documentation (base) and source (target).

The embedded base model is trained on documentation strings; the demo adapts it to source code.
The two never share a file: the docstrings of every target file are left out of the prose.
"""

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from scu.errors import DataError

# Byte-identical in CPython 3.11, 3.12 and 3.13, so the demo's numbers hold on each of them.
# Data tables, tkinter (often packaged separately) and files under 900 bytes are left out.
_TRAIN_NAMES = """
    __future__.py _compression.py _py_abc.py _sitebuiltins.py _threading_local.py _weakrefset.py
    abc.py asyncio/exceptions.py asyncio/windows_utils.py ctypes/macholib/dylib.py
    ctypes/macholib/dyld.py ctypes/macholib/framework.py curses/__init__.py difflib.py
    email/__init__.py email/_encoded_words.py email/contentmanager.py email/encoders.py
    email/header.py email/mime/application.py email/mime/base.py email/mime/image.py
    email/mime/message.py email/mime/multipart.py heapq.py importlib/metadata/_itertools.py
    importlib/metadata/_text.py json/__init__.py multiprocessing/__init__.py
    multiprocessing/dummy/__init__.py multiprocessing/dummy/connection.py
    multiprocessing/reduction.py multiprocessing/synchronize.py nturl2path.py optparse.py
    pyclbr.py string.py tomllib/_parser.py unittest/_log.py unittest/signals.py
    urllib/response.py weakref.py wsgiref/types.py xml/dom/NodeFilter.py xml/dom/minicompat.py
    xml/dom/xmlbuilder.py xml/etree/ElementPath.py xml/etree/__init__.py xml/sax/handler.py
    zoneinfo/_zoneinfo.py
"""
_HELD_OUT_NAMES = """
    _markupbase.py asyncio/protocols.py asyncio/trsock.py concurrent/futures/_base.py
    email/base64mime.py email/headerregistry.py email/iterators.py email/quoprimime.py
    graphlib.py html/__init__.py importlib/metadata/_functools.py json/scanner.py
    multiprocessing/heap.py multiprocessing/popen_forkserver.py
    multiprocessing/popen_spawn_posix.py multiprocessing/sharedctypes.py multiprocessing/spawn.py
    py_compile.py tomllib/_re.py tracemalloc.py unittest/suite.py unittest/util.py
    urllib/error.py urllib/robotparser.py wsgiref/headers.py xml/dom/__init__.py
    xml/dom/domreg.py xml/dom/pulldom.py xml/sax/saxutils.py zoneinfo/_common.py
"""
TRAIN_FILES = tuple(_TRAIN_NAMES.split())
HELD_OUT_FILES = tuple(_HELD_OUT_NAMES.split())
CODE_FILES = TRAIN_FILES + HELD_OUT_FILES
TRAIN_SHA256 = "e8f186b8f5c7e42768a302ff2a4730281306491742d9620fab9d7d220d371054"
HELD_OUT_SHA256 = "1213d0e19d2761e0293dc201580b93a1f1f6ed099dce508d99da364796187cf1"

_SKIPPED_DIRECTORIES = {
    *("dist-packages", "site-packages"),  # not part of Python
    *("idle_test", "test", "tests", "lib2to3", "turtledemo", "__pycache__"),
}
_MIN_DOCSTRING_CHARS = 40  # shorter ones say little more than the name they document


@dataclass(frozen=True)
class CodeText:
    """Source files of the demo's target domain, one string per file.

    `is_reference` tells whether both parts are the text that published results were measured on.
    """

    train: list[str]
    held_out: list[str]
    is_reference: bool


def text_sha256(documents: list[str]) -> str:
    """SHA-256 (hex) of the documents; a NUL after each keeps their boundaries in the digest."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode("utf-8") + b"\0")
    return digest.hexdigest()


def code_documents() -> CodeText:
    """Read the target domain's train and held-out files from this Python's standard library."""
    train = [_read_source(name) for name in TRAIN_FILES]
    held_out = [_read_source(name) for name in HELD_OUT_FILES]
    is_reference = (text_sha256(train), text_sha256(held_out)) == (TRAIN_SHA256, HELD_OUT_SHA256)
    return CodeText(train, held_out, is_reference)


def prose_documents() -> list[str]:
    """Documentation of this Python: one document per module, then one per `pydoc` topic.

    A paragraph occurs once, and none of a target file's docstrings occurs at all: topics quote
    each other at length, so the training text would otherwise repeat a held-out document.
    """
    targets = [doc for name in CODE_FILES for doc in _docstrings(_read_source(name))]
    seen = {paragraph.strip() for doc in targets for paragraph in doc.split("\n\n")}
    texts = []
    for path in _library_files():
        try:
            texts.append("\n\n".join(_docstrings(path.read_text(encoding="utf-8"))))
        except (SyntaxError, ValueError):  # not Python of this version, or not UTF-8
            continue
    texts += [topics[name] for name in sorted(topics)]
    documents = []
    for text in texts:
        new = []
        for paragraph in text.split("\n\n"):
            if paragraph.strip() not in seen:
                new.append(paragraph)
            if len(paragraph) >= _MIN_DOCSTRING_CHARS:
                seen.add(paragraph.strip())
        document = "\n\n".join(new).strip()
        if document:
            documents.append(document + "\n")
    return documents


def is_held_out(document: str) -> bool:
    """Whether a prose document is kept from training: about 1 in 20, chosen by its content."""
    return hashlib.sha256(document.encode("utf-8")).digest()[0] < 13


def _docstrings(source: str) -> list[str]:
    """Cleaned docstrings of the module and of its classes and functions, in source order."""
    docstrings = (ast.get_docstring(node) for node in _documented(ast.parse(source)))
    return [doc for doc in docstrings if doc and len(doc) >= _MIN_DOCSTRING_CHARS]


def _documented(
    node: ast.AST,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The node and those below it that can have a docstring; expressions, most nodes, cannot."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _documented(child)


def _library_files() -> list[Path]:
    """Python files of the standard library, sorted by path relative to it."""
    root = _library_root()
    files = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [d for d in subdirectories if d not in _SKIPPED_DIRECTORIES]
        files += [Path(directory, name) for name in names if name.endswith(".py")]
    targets = {root / name for name in CODE_FILES}
    return sorted(set(files) - targets, key=lambda path: path.relative_to(root).as_posix())


def _library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _read_source(name: str) -> str:
    path = _library_root() / name
    try:
        return path.read_text(encoding="utf-8")  # universal newlines: the same text on Windows
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"cannot read {path}: the demo's text is the standard library's source, "
            f"and this Python installation lacks {name} ({error})"
        ) from error
