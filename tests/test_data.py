"""What a user has becomes rows for TRL, or an error that says where and what to do."""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from scu.data import Documents, load_documents, overlap, split_documents
from scu.errors import ConfigError, DataError
from scu.formats import document_text


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def write(tmp_path):
    """Write a file of text, bytes, or rows as JSON lines; return its path as a user writes it."""

    def write(name: str, content) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def texts(documents: Documents) -> list[str]:
    return [document_text(row) for row in documents.rows]


def of_texts(*values: str) -> Documents:
    rows = Dataset.from_list([{"text": value} for value in values])
    return Documents(rows, "text", "made up", "0", "made up")


# ---- Sources -------------------------------------------------------------------------------------


def test_a_text_file_is_read_by_paragraph(write):
    text = "\ufeff\n  first\nstill first\r\n \t\n\n\nsecond\n"
    documents = load_documents(write("a.txt", text))
    assert documents.rows.to_list() == [{"text": "  first\nstill first"}, {"text": "second"}]
    assert (documents.kind, documents.note) == ("text", "2 paragraphs")


def test_json_lines_may_have_blank_lines_and_no_last_newline(write):
    source = write("a.jsonl", '{"text": "a"}\r\n\n{"text": "b"}')
    documents = load_documents(source)
    assert texts(documents) == ["a", "b"]
    assert (documents.source, documents.note) == (source, "2 rows of text")


@pytest.mark.parametrize(
    "content", ['\n [{"text": "a"},\n {"text": "b"}]', [{"text": "a"}, {"text": "b"}]]
)
def test_a_json_file_holds_an_array_or_lines(write, content):
    assert texts(load_documents(write("a.json", content))) == ["a", "b"]


def test_csv_fields_stay_strings_whatever_they_look_like(write):
    source = write("a.csv", 'question,answer,id\n"1+1, then?",2,7\nNone?,NA,8\n')
    documents = load_documents(source)
    assert documents.rows["completion"][:] == [" 2", " NA"]
    assert documents.note.endswith("columns dropped: id")


def test_a_csv_field_may_be_longer_than_the_limit_of_the_csv_module(write):
    assert len(texts(load_documents(write("a.csv", f"text\n{'x' * 200_000}\n")))[0]) == 200_000


def test_parquet_is_read_past_one_batch(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([{"text": str(i)} for i in range(2500)]).to_parquet(path)
    assert texts(load_documents(str(path))) == [str(i) for i in range(2500)]


def test_an_upper_case_suffix_is_read(write):
    assert texts(load_documents(write("A.TXT", "a"))) == ["a"]


def test_a_folder_is_read_in_order_of_names_and_says_what_it_left_out(write, tmp_path):
    write("d/b.jsonl", [{"text": "b"}])
    write("d/a.jsonl", [{"text": "a"}])
    write("d/README.md", "about")
    write("d/.hidden", "x")
    documents = load_documents(str(tmp_path / "d"))
    assert texts(documents) == ["a", "b"]
    assert documents.note == "2 rows of text; 2 files; files ignored: README.md"
    assert documents.sha256 == hashlib.sha256(b'{"text": "a"}\n{"text": "b"}\n').hexdigest()


def test_the_hash_is_that_of_the_bytes(write):
    source = write("a.txt", "one\n\n\ntwo")
    assert load_documents(source).sha256 == hashlib.sha256(b"one\n\n\ntwo").hexdigest()


def test_a_changed_file_at_the_same_path_is_never_served_from_the_cache(write):
    source = write("a.jsonl", [{"text": "old"}])
    old, stat = load_documents(source), os.stat(source)
    write("a.jsonl", [{"text": "new"}])
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same path, size and time
    new = load_documents(source)
    assert (texts(old), texts(new)) == (["old"], ["new"])
    assert old.sha256 != new.sha256


def test_an_unchanged_file_is_not_written_twice_and_keeps_its_note(write, cache):
    source = write("a.jsonl", [{"text": "a"}, {"text": ""}])
    first = load_documents(source)
    written = sorted(cache.rglob("*.arrow"))
    assert load_documents(source).note == first.note == "1 rows of text; 1 empty rows skipped"
    assert sorted(cache.rglob("*.arrow")) == written
    assert len(written) == 1


def test_where_one_file_ends_is_part_of_the_cache_key(write, tmp_path):
    write("one/a.txt", "a\n")
    write("one/b.txt", "b\n")
    write("two/a.txt", "a\nb\n")
    assert texts(load_documents(str(tmp_path / "one"))) == ["a", "b"]
    assert texts(load_documents(str(tmp_path / "two"))) == ["a\nb"]


@pytest.mark.parametrize("wanted", [True, False])
def test_progress_bars_are_silent_and_left_as_they_were(write, capfd, wanted):
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if wanted else datasets.disable_progress_bars)()
    load_documents(write("a.txt", "a"))
    assert datasets.are_progress_bars_disabled() is not wanted
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()
    assert capfd.readouterr() == ("", "")


def test_a_hub_data_set_is_converted_like_a_file(monkeypatch):
    hub = Dataset.from_list([{"question": "Q", "answer": "A", "id": 1}])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or hub)
    documents = load_documents("org/name", hub_split="test")
    assert asked == [(("org/name",), {"split": "test"})]
    assert texts(documents) == ["Question: Q\nAnswer: A"]
    assert documents.note == "1 rows of prompt/completion (question column); columns dropped: id"
    assert documents.sha256 == load_documents("org/name").sha256


# ---- Formats -------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
ALPACA = "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd\n\n"


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"text": "a"}, "text", {"text": "a"}),
        ({"messages": CHAT, "text": "a"}, "messages", {"messages": CHAT}),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
            "messages",
            {"messages": CHAT},
        ),
        (
            {"conversations": [{"from": "system", "value": "be"}, {"from": "gpt", "value": "ho"}]},
            "messages",
            {"messages": [{"role": "system", "content": "be"}, CHAT[1]]},
        ),
        ({"completion": "b", "prompt": "a"}, "completion", {"prompt": "a", "completion": "b"}),
        ({"prompt": "a", "response": "b"}, "completion", {"prompt": "a", "completion": "b"}),
        (
            {"prompt": CHAT[:1], "completion": CHAT[1:]},
            "completion",
            {"prompt": CHAT[:1], "completion": CHAT[1:]},
        ),
        (
            {"instruction": "Add", "input": None, "output": "3"},
            "completion",
            {
                "prompt": "Below is an instruction that describes a task. "
                + ALPACA
                + "### Response:\n",
                "completion": "3",
            },
        ),
        (
            {"instruction": "Add", "input": "{1} 2", "output": "3"},
            "completion",
            {
                "prompt": "Below is an instruction that describes a task, paired with an input "
                "that provides further context. " + ALPACA + "### Input:\n{1} 2\n\n### Response:\n",
                "completion": "3",
            },
        ),
        (
            {"question": "Q", "answer": "A"},
            "completion",
            {"prompt": "Question: Q\nAnswer:", "completion": " A"},
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_known_columns_become_those_of_trl(write, tmp_path, name, row, kind, expected):
    source = write(name, [row])
    if name == "a.parquet":
        Dataset.from_list([row]).to_parquet(source)
    documents = load_documents(source)
    assert documents.kind == kind
    assert documents.rows.to_list() == [expected]
    assert documents.rows.column_names == list(expected)


def test_the_first_row_settles_which_column_is_the_answer(write):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b", "completion": "c"}]
    documents = load_documents(write("a.jsonl", rows))
    assert documents.rows["completion"][:] == ["b", "b"]
    assert documents.note.endswith("(response column); columns dropped: completion")


def test_left_out_columns_and_keys_of_messages_are_named(write):
    turns = [{"role": "user", "content": "hi", "weight": 0, "name": None}]
    documents = load_documents(write("a.jsonl", [{"id": 1, "messages": turns, "tools": []}]))
    assert documents.note == "1 rows of messages; columns dropped: id, messages[].weight, tools"


@pytest.mark.parametrize(
    ("full", "empty"),
    [
        ({"text": "a"}, {"text": " \n"}),
        ({"text": "a"}, {"text": None}),
        ({"messages": CHAT}, {"messages": []}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}),
        ({"question": "a", "answer": "b"}, {"question": "a", "answer": ""}),
    ],
)
def test_empty_documents_are_skipped_and_counted(write, full, empty):
    documents = load_documents(write("a.jsonl", [empty, full, empty]))
    assert len(documents.rows) == 1
    assert documents.note.endswith("; 2 empty rows skipped")
    with pytest.raises(DataError, match=r"a\.jsonl: all 2 documents are empty"):
        load_documents(write("a.jsonl", [empty, empty]))


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt: the file is empty; fill it"),
        ("a.txt", " \n\n", r"a\.txt: holds no documents"),
        ("a.json", "[]", r"a\.json: holds no documents"),
        ("a.csv", "text\n", r"a\.csv: holds no documents"),
        ("a.md", "x", r"a\.md: nothing here that we read; give \.txt, \.jsonl, \.json"),
        ("a.txt", b"ok\n\xff\xfe", r"a\.txt, line 2: byte 0xff is not UTF-8; save the file as"),
        ("a.csv", b"text\nok\n\xe9\n", r"a\.csv, line 3: byte 0xe9 is not UTF-8"),
        ("a.parquet", "PAR1 not", r"a\.parquet: cannot be read as parquet \(.*\); write it again"),
        ("a.csv", "prompt,completion\na\n", r"line 2: not as many fields as .*'completion'\]"),
        ("a.csv", "text\na,b\n", r"line 2: not as many fields .* quote commas"),
        ("a.csv", 'text\n"a\n', r"a\.csv, row after line 1: not CSV \(unexpected end"),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": ',
            r"line 3: not JSON \(.*found '\{\"text\":'; write",
        ),
        ("a.json", '[{"text": "a"},\n oops]', r"a\.json, line 2: not JSON \(Expecting value\)"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r"line 2: must be an object such as .* found list"),
        ("a.json", '[{"text": "a"}, 4]', r"a\.json, item 2: must be an object .* found int 4"),
        ("a.jsonl", [{"body": "a", "id": 1}], r"line 1: columns \['body', 'id'\] are no format"),
        ("a.jsonl", [{"text": "a"}, {"body": "b"}], r"line 2: columns \['body'\], but .* text;"),
        ("a.jsonl", [{"text": "a"}, {"text": 5}], r'line 2: "text" must be a string, found int 5'),
        ("a.jsonl", [{"prompt": "a", "completion": CHAT}], r'"completion" must be a string'),
        ("a.jsonl", [{"prompt": CHAT, "completion": "a"}], r'"completion" must be a list of \{"ro'),
        ("a.jsonl", [{"messages": "hi"}], r'line 1: "messages" must be a list .* found str \'hi\''),
        ("a.jsonl", [{"messages": ["hi"]}], r'"messages" must be a list of .*found str \'hi\' in'),
        (
            "a.jsonl",
            [{"messages": [{"role": "user", "content": None}]}],
            r'"content": string\}, fo',
        ),
        ("a.jsonl", [{"conversations": [{"from": "human"}]}], r'of \{"from": string, "value": s'),
        (
            "a.jsonl",
            [{"conversations": [{"from": "cat", "value": "miau"}]}],
            r'line 1: "from" must be human \| gpt \| system, found \'cat\'',
        ),
        (
            "a.jsonl",
            [{"prompt": "a", "completion": "b"}, {"prompt": CHAT, "completion": CHAT}],
            r"line 2: strings here but lists of messages above, or the reverse",
        ),
        ("a.jsonl", '{"text": "a \\ud83d"}', r"a\.jsonl, line 1: half a character \(.*ud83d"),
    ],
)
def test_what_cannot_be_used_says_where_and_why(write, name, content, message):
    with pytest.raises(DataError, match=message):
        load_documents(write(name, content))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("path/to/train.jsonl", "'path/to/train.jsonl' is still the template's placeholder"),
        ("data/train.jsonl", "no file or folder 'data/train.jsonl'; correct the path"),
        ("nothing", "no file or folder 'nothing'"),
        ("", "no file or folder ''"),
        ("x" * 300, "cannot be read .*too long"),
    ],
)
def test_a_missing_source_says_so(source, message):
    with pytest.raises(DataError, match=message):
        load_documents(source)


def test_a_placeholder_path_that_exists_is_read(write, tmp_path, monkeypatch):
    write("path/to/train.jsonl", [{"text": "a"}])
    monkeypatch.chdir(tmp_path)
    assert texts(load_documents("path/to/train.jsonl")) == ["a"]


def test_an_unreachable_hub_data_set_names_both_readings(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = (
        r"'org/name' is neither a file here nor a hub data set .*'train' \(ConnectionError: no"
    )
    with pytest.raises(DataError, match=message):
        load_documents("org/name")


def test_a_hub_row_that_cannot_be_used_is_numbered(monkeypatch):
    hub = Dataset.from_list([{"text": 1}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    with pytest.raises(DataError, match=r'org/name \(train\), row 1: "text" must be a string'):
        load_documents("org/name")


def test_a_folder_with_nothing_usable_or_mixed_formats_is_refused(write, tmp_path):
    write("d/README.md", "x")
    with pytest.raises(DataError, match=r"d: nothing here that we read; give \.txt"):
        load_documents(str(tmp_path / "d"))
    write("d/a.jsonl", "x")
    write("d/a.csv", "x")
    with pytest.raises(DataError, match=r"d: mixes \.csv and \.jsonl files; keep those of one"):
        load_documents(str(tmp_path / "d"))


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="neither a file nor a folder; copy"):
        load_documents(str(tmp_path / "a.txt"))


def test_a_file_that_may_not_be_opened_is_named(write, monkeypatch):
    def denied(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    source = write("a.jsonl", [{"text": "a"}])
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=re.escape(f"{source}: cannot be read (Permission denied)")):
        load_documents(source)


def test_a_cache_that_cannot_be_written_is_named(write, tmp_path, monkeypatch):
    source = write("a.txt", "a")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(source) / "cache")
    with pytest.raises(DataError, match=r"cannot write to the cache .*cache \(.*HF_HOME elsewhere"):
        load_documents(source)


@pytest.mark.parametrize(
    ("later", "message"),
    [("oops", "line 1: not JSON"), ('{"text": "a"}\n' * 2, "changed while it was read; load it")],
)
def test_a_file_that_changes_between_the_two_passes_is_an_error(write, monkeypatch, later, message):
    source, original = write("a.jsonl", [{"text": "a"}]), Dataset.from_generator

    def change_then_read(generator, **settings):
        write("a.jsonl", later)
        return original(generator, **settings)

    monkeypatch.setattr(Dataset, "from_generator", change_then_read)
    with pytest.raises(DataError, match=rf"a\.jsonl.*{message}"):
        load_documents(source)


# ---- Splitting and overlap -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_a_split_is_complete_disjoint_and_keeps_copies_together(fraction, seed):
    whole = of_texts(*(f"document {i % 37}{' ' * (i % 3)}" for i in range(100)))
    train, held_out = split_documents(whole, fraction=fraction, seed=seed)
    assert Counter(texts(train) + texts(held_out)) == Counter(texts(whole))
    assert overlap(train, held_out) == 0
    assert min(len(train.rows), len(held_out.rows)) >= 1
    again = split_documents(whole, fraction=fraction, seed=seed)
    assert [texts(part) for part in again] == [texts(train), texts(held_out)]


@pytest.mark.parametrize(
    ("total", "fraction", "held"), [(100, 0.1, 10), (3, 0.01, 1), (3, 0.99, 2)]
)
def test_without_copies_the_fraction_is_met(total, fraction, held):
    whole = of_texts(*map(str, range(total)))
    train, held_out = split_documents(whole, fraction=fraction, seed=1)
    assert len(held_out.rows) == held
    assert train.note == f"made up; train: {total - held} of {total}"
    assert held_out.note == f"made up; held out: {held} of {total}"
    assert (held_out.sha256, held_out.kind) == (whole.sha256, whole.kind)


def test_the_seed_decides_and_the_order_of_rows_does_not():
    values = [str(i) for i in range(50)]

    def held(values, seed):
        return set(texts(split_documents(of_texts(*values), fraction=0.2, seed=seed)[1]))

    assert held(values, 1) == held(values[::-1], 1) != held(values, 2)


def test_a_held_out_side_of_nothing_but_copies_takes_the_fewest():
    whole = of_texts("a", "a", "a", "b", "b")
    assert texts(split_documents(whole, fraction=0.01, seed=0)[1]) == ["b", "b"]


@pytest.mark.parametrize("values", [["a"], ["a", " a "]])
def test_one_distinct_document_cannot_be_split(values):
    with pytest.raises(DataError, match=rf"made up: {len(values)} document\(s\), 1 distinct"):
        split_documents(of_texts(*values), fraction=0.5, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_zero_and_one_is_refused(fraction):
    with pytest.raises(ConfigError, match="held-out fraction must be between 0 and 1, got"):
        split_documents(of_texts("a", "b"), fraction=fraction, seed=0)


def test_overlap_counts_held_out_documents_up_to_white_space():
    held_out = of_texts(" a  b\n", "a b", "ab", "c")
    assert overlap(of_texts("a\tb", "a b", "d"), held_out) == 2


def test_the_text_of_a_document_leaves_out_the_roles():
    assert document_text({"text": "a"}) == "a"
    assert document_text({"messages": CHAT}) == "hi\nho"
    assert document_text({"prompt": "a", "completion": "b"}) == "ab"
    assert document_text({"prompt": CHAT[:1], "completion": CHAT[1:]}) == "hiho"


# ---- Embedded text -----------------------------------------------------------------------------


def test_the_embedded_sources_are_the_demos_text():
    train, held_out = load_documents("stdlib:train"), load_documents("stdlib:held-out")
    assert held_out.kind == "text"
    assert len(held_out.rows) >= 25
    assert overlap(train, held_out) == 0


def test_an_embedded_source_of_another_name_is_refused():
    with pytest.raises(DataError, match="there are stdlib:train, stdlib:few, stdlib:held-out"):
        load_documents("stdlib:tests")


def test_another_pythons_embedded_text_is_remarked_upon(monkeypatch):
    monkeypatch.setattr("scu.corpus.TRAIN_SHA256", "0" * 64)
    assert (
        "not the text that published figures were measured on"
        in load_documents("stdlib:train").note
    )
