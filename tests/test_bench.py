import json

import pytest

from bench import cost, demo_sweep, evidence
from bench.common import RESULTS, Outcome, name_of, provenance
from bench.tracking import overshoot, row, settling_step, summaries


def outcome(s, *, target=0.1, law="positional", text="one"):
    """A hand-made run of one control window per entry of s."""
    steps = [10.0 * (i + 1) for i in range(len(s))]
    scu = {"target_s": target, "law": law, "lambda_min": 1e-4, "lambda_max": 2.0}
    return Outcome(
        name="made",
        trace={"step": steps, "s": s, "lam": [1.0] * len(s)},
        held_out=[],
        metadata={
            "authority": 1.0,
            "tokens_per_epoch": 7,
            "data": {"train": {"source": text, "sha256": "0" * 64, "documents": 3}},
        },
        settings={"scu": scu, "data": {"train_data": text}, "training": {"seed": 0}},
        scu_sha256="a",
        base_sha256="b",
    )


def test_overshoot_is_counted_from_the_first_arrival():
    assert overshoot([0.02, 0.09, 0.12, 0.1], 0.1) == pytest.approx(0.2)


def test_a_start_above_the_target_counts():
    assert overshoot([0.3, 0.1], 0.1) == pytest.approx(2.0)


def test_a_climb_that_stops_at_the_target_has_no_overshoot():
    assert overshoot([0.02, 0.096, 0.099], 0.1) == 0.0


def test_a_run_that_never_arrives_has_no_overshoot_to_speak_of():
    assert overshoot([0.02, 0.05, 0.09], 0.1) is None


def test_settled_means_to_the_end():
    steps = [10, 20, 30, 40]
    assert settling_step(steps, [0.02, 0.1, 0.1, 0.1], 0.1) == 20
    assert settling_step(steps, [0.1, 0.2, 0.104, 0.1], 0.1) == 30
    assert settling_step(steps, [0.1, 0.1, 0.1, 0.2], 0.1) is None


def test_a_run_is_judged_by_its_last_value_and_by_the_mean_of_the_last_windows():
    found = row(outcome([0.02, 0.1, 0.1, 0.1, 0.1, 0.11]), free_s=0.5)
    assert found["error_last"] == pytest.approx(0.1)
    assert found["error_end_mean"] == pytest.approx(0.02)
    assert found["settling_step"] is None
    assert not found["touched_bound"]


def test_laws_and_texts_are_summed_up_apart():
    runs = [outcome([0.05, 0.1]), outcome([0.05, 0.2], text="two")]
    runs.append(outcome([0.05, 0.06], law="multiplicative"))
    every, one, two, other, _ = summaries([row(o, 0.5) for o in runs])
    assert (every["law"], every["runs"], every["within"]) == ("positional", 2, 1)
    assert (one["within"], two["within"]) == (1, 0)
    assert every["worst_overshoot"] == pytest.approx(1.0)
    assert (other["arrived"], other["worst_overshoot"]) == (0, None)


def test_cost_takes_the_median_over_pairs():
    names = ("ratio_of_medians", "median_of_ratios", "ratio_of_means")
    pairs = [{"arm": arm} | dict.fromkeys(names, v) for arm in cost.ARMS for v in (1.0, 1.1, 3.0)]
    found = cost.summary(pairs)["scu"]
    assert found["pairs"] == 3
    assert found["median_of_ratios"] == {"median": 1.1, "range": [1.0, 3.0]}


def test_a_fixed_lambda_is_a_valid_configuration():
    from scu.config_file import load

    for lam in demo_sweep.LAMBDAS:
        job = demo_sweep.fixed(lam, ())
        scu = load(job.config, sets=job.sets).scu
        assert scu.actuator == "none" if lam == 0.0 else scu.lambda_init == lam


def test_provenance_names_data_and_no_folder():
    assert name_of("/some/where/gsm8k.jsonl") == "gsm8k"
    assert name_of("stdlib:train") == "stdlib:train"
    found = provenance([outcome([0.1])])
    assert found["data"]["one"]["tokens"] == 7
    assert len(found["commit"]) == 40


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_results_hold_no_path(file):
    text = file.read_text(encoding="utf-8")
    json.loads(text)
    for mark in ("/home", "/tmp", "/work", "/root", "/Users", "\\\\"):
        assert mark not in text


def test_the_evidence_is_what_the_results_say():
    assert evidence.DOCUMENT.read_text(encoding="utf-8") == evidence.document()
