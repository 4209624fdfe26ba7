"""The trace file: what is written is what is read, and nothing else is accepted."""

import json
import math
from dataclasses import asdict, replace

import pytest

from scu.errors import DataError
from scu.trace import StepRecord, TraceWriter, read_trace, write_json

RECORD = StepRecord(
    step=10,
    tokens_seen=1280,
    loss_nats=2.5,
    data_bpt=3.6,
    param_bpt=0.1,
    s=0.027,
    lam=0.9,
    integral=-0.02,
    error=-0.1,
    learning_rate=2e-4,
    grad_norm=1.5,
    penalty_grad_ratio=0.01,
    tokens_per_sec=1000.0,
    elapsed_sec=1.28,
)


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "trace.jsonl"
    second = replace(RECORD, step=20, eval_bpt=3.7, held="skipped steps", skipped_steps=2)
    with TraceWriter(path) as trace:
        trace.write(RECORD)
        trace.write(second)
    assert read_trace(path) == [RECORD, second]


def test_each_record_can_be_read_before_the_writer_is_closed(tmp_path):
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path) as trace:
        trace.write(RECORD)
        assert read_trace(path) == [RECORD]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path) as trace:
        trace.write(RECORD)
    with path.open("a") as file:
        file.write(json.dumps(asdict(RECORD))[:40])
    assert read_trace(path) == [RECORD]


def test_values_that_are_not_finite_are_valid_json_and_come_back_as_nan(tmp_path):
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path) as trace:
        trace.write(replace(RECORD, loss_nats=math.nan, data_bpt=math.inf, grad_norm=None))
    assert json.loads(path.read_text())["loss_nats"] is None
    (record,) = read_trace(path)
    assert math.isnan(record.loss_nats)
    assert math.isnan(record.data_bpt)
    assert record.grad_norm is None


def line(**changes: object) -> str:
    return json.dumps(asdict(RECORD) | changes) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{oops\n", r"trace\.jsonl:1: not a JSON line"),
        ("[1, 2]\n", "expected a JSON object, got list"),
        (line(kappa=1), "unknown field 'kappa'"),
        (line(lam="high"), "lam must be a number, got 'high'"),
        (line(s=True), "s must be a number, got True"),
        (line(held=3), "held must be a string, got 3"),
        (line() + '{"step": 20}\n', r"trace\.jsonl:2: .*missing"),
        ("[" * 100_000 + "\n", "not a JSON line"),
    ],
)
def test_anything_but_a_record_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(path)


def test_a_missing_trace_is_an_error_of_its_own(tmp_path):
    with pytest.raises(DataError, match="cannot read the trace"):
        read_trace(tmp_path / "none.jsonl")


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / "metadata.json"
    write_json(path, {"final_s_ratio": math.nan, "range": (0.1, 1.0)})
    write_json(path, {"final_s_ratio": 0.03, "range": (0.1, 1.0)})
    assert json.loads(path.read_text()) == {"final_s_ratio": 0.03, "range": [0.1, 1.0]}
    assert [p.name for p in tmp_path.iterdir()] == ["metadata.json"]
