"""Diagnosis: each fault found in a real run that has it, none in healthy ones. Synthetic records
only where no short run shows the fault."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scu.config_file import load
from scu.diagnose import Finding, findings
from scu.diagnose.case import swings
from scu.monitor import Judgment
from scu.run_view import RunView, read_run
from scu.trace import StepRecord

TRACES = Path(__file__).parent / "traces"
HEALTHY = sorted(path.name for path in TRACES.glob("healthy-*"))
FAULTS = [
    # trace, the first finding, what its cause and its change must say
    ("no-authority", "no-authority", "actuator is none", "scu.actuator=prox"),
    ("no-authority-no-shrink-rate", "no-authority", "actuator is none", "scu.actuator=prox"),
    ("target-above-reach", "target-above-reach", "above what these data buy", "target_s=0.055"),
    ("lambda-saturates-high", "lambda-saturates", "too aggressive", r"raise S\*"),
    ("lambda-saturates-low", "lambda-saturates", "weakest pull", r"lower S\*"),
    ("lambda-max-low", "lambda-saturates", "too aggressive", r"lambda_max=1\.\d"),
    ("oscillates", "oscillates", "kp = 20 is too high", r"kp=0\.55 --set scu\.ki=0\.0\d"),
    ("oscillates-multiplicative", "oscillates", "integrates twice", "law=positional"),
    ("nothing-learned", "nothing-learned", "random", "training data"),
    ("learning-rate-zero", "s-at-zero", "learning rate is 1e-30", "learning_rate=2e-4"),
    ("n-too-large", "s-at-zero", "1,000,000,000,000, but the data hold 50,470", "=null"),
    ("diverged", "diverged", "learning rate, 0.3", "learning_rate=0.03 .*max_grad_norm=1"),
    ("diverged-early", "diverged", "learning rate, 0.1", "learning_rate=0.01"),
    ("integral-zero-ki", "integral-zero", "ki = 0", "scu.ki=0.15"),
    ("integral-zero-held", "integral-zero", r"held \(cooldown\)", "cooldown_steps=15"),
    ("slow-gains", "slow-convergence", "gains are too low", "kp=0.9 --set scu.ki=0.15"),
    ("slow-plant", "slow-convergence", "time constant", "learning_rate=0.0"),
    ("overshoot", "overshoot", "kp", "kp=0.8"),
    ("loss-rising", "loss-rising", "learning rate 0.01", "learning_rate=0.00"),
    ("overfitting", "overfitting", "overfitting", r"lower S\*"),
]


def diagnose(run: RunView, judgments: Sequence[Judgment] | None = ()) -> list[Finding]:
    """As if the trace had just been written."""
    now_sec = (run.folder / "trace.jsonl").stat().st_mtime
    return findings(run, judgments, now_sec=now_sec)


def wrong(run: RunView) -> list[str]:
    return [finding.name for finding in diagnose(run) if finding.severity == "wrong"]


def running(run: RunView, share: float) -> RunView:
    """The run when that share of it was done."""
    kept = run.records[: max(1, round(share * len(run.records)))]
    return replace(run, records=kept, metadata=None)


def lone(name: str, folder: Path) -> RunView:
    """The trace without anything beside it."""
    shutil.copy(TRACES / name / "trace.jsonl", folder)
    return read_run(folder / "trace.jsonl")


def changed(run: RunView, first: int, **changes: object) -> RunView:
    """From window number `first` on."""
    records = [r if i < first else replace(r, **changes) for i, r in enumerate(run.records)]
    return replace(run, records=tuple(records))


@pytest.fixture
def healthy() -> RunView:
    return read_run(TRACES / "healthy-10-shakespeare")


@pytest.mark.parametrize(("name", "found", "cause", "change"), FAULTS, ids=lambda value: value)
def test_the_fault_of_a_run_is_found_first_with_its_cause_and_change(name, found, cause, change):
    first = diagnose(read_run(TRACES / name))[0]
    assert (first.name, first.severity) == (found, "wrong")
    assert re.search(cause, first.cause)
    assert re.search(change, first.change)
    assert re.search(r"\d", first.evidence)


@pytest.mark.parametrize(("name", "found"), [fault[:2] for fault in FAULTS])
def test_one_fault_is_one_finding_and_what_follows_from_it_is_not_listed(name, found):
    assert wrong(read_run(TRACES / name)) == [found]


@pytest.mark.parametrize(
    ("name", "found"),
    [fault[:2] for fault in FAULTS],
)
def test_a_fault_is_found_while_the_run_goes_on(name, found):
    assert found in wrong(running(read_run(TRACES / name), 0.9))


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_run(name):
    found = diagnose(read_run(TRACES / name))
    assert [f for f in found if f.severity == "wrong"] == []
    assert len(found) <= 1


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_run_that_is_going_on(name, share):
    assert wrong(running(read_run(TRACES / name), share)) == []


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_the_lone_trace_of_a_healthy_run(name, tmp_path):
    run = lone(name, tmp_path)
    assert wrong(run) == []
    assert wrong(running(run, 0.1)) == []
    assert wrong(running(run, 0.5)) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("no-authority", "no-authority"),
        ("no-authority-no-shrink-rate", "no-authority"),
        ("target-above-reach", "target-above-reach"),
        ("lambda-saturates-high", "lambda-saturates"),
        ("lambda-max-low", "lambda-saturates"),
        ("oscillates", "oscillates"),
        ("n-too-large", "s-at-zero"),
        ("diverged", "diverged"),
        ("integral-zero-ki", "integral-zero"),
        ("slow-gains", "s-far-from-target"),  # it does not tell that the gains are low
    ],
)
def test_a_lone_trace_is_enough_where_it_shows_the_fault(name, found, tmp_path):
    assert wrong(lone(name, tmp_path))[0] == found


@pytest.mark.parametrize("name", sorted(path.name for path in TRACES.glob("*/")))
def test_every_change_can_be_typed(name):
    """Each --set in it is a setting that this run's configuration takes."""
    for finding in diagnose(read_run(TRACES / name)):
        for text in re.findall(r"--set ([\w.]+=[^\s,;()]+)", finding.change):
            load(TRACES / name / "config.yaml", sets=[text])


@pytest.mark.parametrize("name", sorted(path.name for path in TRACES.glob("*/")))
def test_a_headline_is_the_whole_symptom_on_one_short_line(name):
    for finding in diagnose(read_run(TRACES / name)):
        assert finding.headline == finding.symptom
        assert len(finding.headline) <= 70


def test_a_long_symptom_is_cut_at_a_word():
    finding = Finding("name", "remark", "a word " * 20, "1", "because", "this", "ours")
    assert len(finding.headline) <= 70
    assert finding.headline.endswith(" ...")


def test_findings_are_json():
    (finding,) = diagnose(read_run(TRACES / "oscillates"))
    content = json.loads(json.dumps(finding.as_dict()))
    assert content["name"] == "oscillates"
    assert content["source"] == "when to adjust"
    assert content["headline"] == finding.headline


def test_the_monitor_judges_where_no_judgments_are_given(healthy):
    assert diagnose(healthy, None) == []


def test_a_trace_without_a_record_has_no_findings(healthy):
    assert diagnose(replace(healthy, records=())) == []


def test_lambda_that_is_always_0_is_blamed_on_the_bounds():
    run = changed(read_run(TRACES / "no-authority-no-shrink-rate"), 0, lam=0.0)
    first = diagnose(run)[0]
    assert first.name == "lambda-zero"
    assert first.source == "troubleshooting"
    assert "lambda_max=2.0" in first.change


def test_an_open_loop_is_a_remark_and_s_is_not_expected_at_its_target():
    run = changed(read_run(TRACES / "integral-zero-ki"), 0, lam=1.0)
    settings = replace(run.settings, kp=0.0)
    (finding,) = diagnose(replace(run, settings=settings))
    assert (finding.name, finding.severity) == ("open-loop", "remark")


def test_an_integral_that_waits_while_s_is_on_its_way_is_no_fault():
    run = changed(read_run(TRACES / "slow-plant"), 0, integral=0.0)
    assert "integral-zero" not in wrong(run)


def test_lambda_that_comes_to_a_bound_late_is_stuck_there_and_did_not_saturate_at_once():
    run = read_run(TRACES / "lambda-saturates-high")
    records = [replace(r, lam=1.0 + 0.02 * i) for i, r in enumerate(run.records[:40])]
    (finding,) = diagnose(replace(run, records=(*records, *run.records[40:])))
    assert (finding.name, finding.severity) == ("lambda-at-max", "wrong")
    assert finding.source == "what to watch"


def test_the_change_for_a_saturated_lambda_depends_on_the_bound():
    (high,) = diagnose(read_run(TRACES / "lambda-saturates-high"))
    (low,) = diagnose(read_run(TRACES / "lambda-saturates-low"))
    assert float(re.search(r"target_s=([\d.]+)", high.change)[1]) > 0.001
    assert float(re.search(r"target_s=([\d.]+)", low.change)[1]) < 0.2


def test_an_overshoot_is_not_answered_by_more_integral():
    run = read_run(TRACES / "overshoot")
    (finding,) = diagnose(run)
    assert float(re.search(r"scu\.ki=([\d.]+)", finding.change)[1]) <= run.settings.ki
    assert "backwards" in finding.change


def overshooting(run: RunView, windows: range, factor: float) -> RunView:
    """S as it was, but `factor` times as high in these windows."""
    records = [replace(r, s=r.s * factor) if i in windows else r for i, r in enumerate(run.records)]
    return replace(run, records=tuple(records))


def test_an_overshoot_that_is_over_is_a_remark(healthy):
    (finding,) = diagnose(overshooting(healthy, range(20, 26), 1.5))
    assert (finding.name, finding.severity) == ("overshoot", "remark")
    assert "back at step" in finding.evidence
    assert "lambda_init" in finding.change


@pytest.mark.parametrize(
    ("gains", "change"),
    [({"ki": 0.4}, "kp=0.8 --set scu.ki=0.15"), ({"kp": 0.2, "ki": 0.02}, "kp=0.8")],
)
def test_the_change_for_an_overshoot_depends_on_the_gains(healthy, gains, change):
    run = overshooting(healthy, range(20, 26), 1.5)
    (finding,) = diagnose(replace(run, settings=replace(run.settings, **gains)))
    assert change in finding.change


def test_the_multiplicative_law_is_the_cause_of_its_overshoots(healthy):
    run = overshooting(healthy, range(20, 26), 1.5)
    settings = replace(run.settings, law="multiplicative")
    (finding,) = diagnose(replace(run, settings=settings))
    assert "law=positional" in finding.change


def test_an_oscillation_that_has_died_away_is_not_reported(healthy):
    early = read_run(TRACES / "oscillates").records[:12]
    later = [replace(r, step=r.step + early[-1].step) for r in healthy.records[24:]] * 2
    later = [replace(r, step=65 + 5 * i, held="") for i, r in enumerate(later)]
    run = replace(healthy, records=(*early, *later))
    assert "oscillates" not in wrong(run)


def test_a_pulse_test_is_no_oscillation(healthy):
    records = list(healthy.records)
    for i, r in enumerate(records[30:46], 30):
        up = 1.35 if (i // 4) % 2 else 0.74
        records[i] = replace(r, lam=r.lam * up, s=r.s / up, held="pulse")
    assert diagnose(replace(healthy, records=tuple(records))) == []


def test_too_much_integral_is_blamed_for_a_slow_swing():
    run = read_run(TRACES / "oscillates")
    settings = replace(run.settings, kp=0.4, ki=0.5)
    (finding,) = diagnose(replace(run, settings=settings))
    assert "ki = 0.5 is too high for kp = 0.4" in finding.cause


def test_a_weights_gradient_that_never_arrives_is_told_from_a_wrong_n():
    run = changed(read_run(TRACES / "n-too-large"), 0, param_bpt=0.0, s=0.0, grad_norm=0.0)
    (finding,) = diagnose(run)
    assert finding.name == "s-at-zero"
    assert "no gradient arrives" in finding.cause


def test_without_a_count_n_is_held_against_what_the_run_sees():
    run = replace(read_run(TRACES / "n-too-large"), metadata={})
    (finding,) = diagnose(run)
    assert "the whole run sees" in finding.cause


def test_a_prior_that_is_too_wide_is_told_from_a_wrong_n():
    run = read_run(TRACES / "n-too-large")
    start = {"tokens_per_epoch": 50470, "tokens_per_pass": 50470}
    (finding,) = diagnose(replace(run, start=start))
    assert "prior_sigma = 0.01 is too wide" in finding.cause
    assert "prior_sigma=" in finding.change


def test_a_pull_too_weak_to_be_felt_is_no_authority():
    run = changed(read_run(TRACES / "lambda-saturates-high"), 0, shrink_rate=1e-5)
    (finding,) = diagnose(run)
    assert finding.name == "no-authority"
    assert "too weak" in finding.cause


def test_a_constraint_that_does_not_bind_yet_is_a_remark():
    run = running(read_run(TRACES / "target-above-reach"), 0.25)
    (finding,) = diagnose(run)
    assert (finding.name, finding.severity) == ("target-above-reach", "remark")


def test_s_that_stands_still_off_target_under_good_gains_stays_far():
    run = read_run(TRACES / "integral-zero-ki")
    records = [replace(r, integral=0.01) for r in run.records]
    settings = replace(run.settings, ki=0.15)
    names = wrong(replace(run, records=tuple(records), settings=settings))
    assert names == ["s-far-from-target"]


@pytest.mark.parametrize(("held", "windows"), [("loss not finite", 2), ("", 1)])
def test_a_loss_that_is_not_finite_is_a_divergence(healthy, held, windows):
    first = len(healthy.records) - windows
    run = changed(healthy, first, data_bpt=float("nan"), loss_nats=float("nan"), held=held)
    assert wrong(run) == ["diverged"]


def test_a_run_that_ended_itself_as_diverged_is_found(healthy):
    metadata = {"stop_reason": "diverged: 5 steps in a row without a finite gradient"}
    assert wrong(replace(healthy, metadata=metadata)) == ["diverged"]


def test_a_single_jump_of_the_loss_that_came_back_is_a_remark(healthy):
    records = list(healthy.records)
    records[30] = replace(records[30], data_bpt=1.3 * records[30].data_bpt)
    (finding,) = diagnose(replace(healthy, records=tuple(records)))
    assert (finding.name, finding.severity) == ("loss-jumped", "remark")


@pytest.mark.parametrize(("every", "severity"), [(2, "wrong"), (25, "remark")])
def test_many_skipped_steps_are_wrong_and_a_few_a_remark(healthy, every, severity):
    records = [
        replace(r, skipped_steps=1, held="skipped steps") if i % every == 1 else r
        for i, r in enumerate(healthy.records)
    ]
    (finding,) = diagnose(replace(healthy, records=tuple(records)))
    assert (finding.name, finding.severity) == ("skipped-steps", severity)


def test_the_loss_that_lambda_takes_back_is_a_remark(healthy):
    records = list(healthy.records)
    for i in range(10, 30):
        r = records[i]
        records[i] = replace(r, data_bpt=0.9 * r.data_bpt, param_bpt=1.3 * r.param_bpt)
    (finding,) = diagnose(replace(healthy, records=tuple(records)))
    assert (finding.name, finding.severity) == ("loss-rising", "remark")
    assert "lambda takes back" in finding.cause


def test_overtraining_needs_an_equilibrium_before_it():
    run = read_run(TRACES / "overtraining")
    reached = [Judgment(100, "equilibrium", "S rests at its set point")]
    never = [Judgment(100, "transient", "S is on its way")]
    assert diagnose(run, reached)[0].name == "overtraining"
    assert "reached at step 100" in diagnose(run, reached)[0].evidence
    assert "stop=equilibrium" in diagnose(run, reached)[0].change
    assert diagnose(run, never)[0].name == "overfitting"


def test_an_equilibrium_after_the_last_evaluation_is_no_overtraining():
    run = read_run(TRACES / "overtraining")
    late = [Judgment(run.records[-1].step + 5, "equilibrium", "")]
    assert "overtraining" not in [finding.name for finding in diagnose(run, late)]


def test_a_run_that_is_gone_is_told_from_one_that_is_going_on():
    run = read_run(TRACES / "ended")
    written_sec = (run.folder / "trace.jsonl").stat().st_mtime
    assert findings(run, (), now_sec=written_sec + 60.0) == []
    (finding,) = findings(run, (), now_sec=written_sec + 600.0)
    assert (finding.name, finding.severity) == ("ended-without-metadata", "wrong")
    assert "training.batch_size=2 --set training.gradient_accumulation=2" in finding.change


def gone(run: RunView) -> list[Finding]:
    return findings(run, (), now_sec=(run.folder / "trace.jsonl").stat().st_mtime + 1e6)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (["training.batch_size=1"], "gradient_checkpointing=true"),
        (
            ["training.batch_size=1", "training.gradient_checkpointing=true"],
            "block_size=32, or --set model.load_in_4bit=true",
        ),
    ],
)
def test_the_remedy_for_memory_goes_on_where_the_batch_is_already_1(settings, change):
    run = read_run(TRACES / "ended")
    config = load(run.folder / "config.yaml", sets=settings)
    (finding,) = gone(replace(run, config=config))
    assert change in finding.change


def test_only_a_run_that_should_have_left_metadata_can_be_gone(healthy, tmp_path):
    ended = read_run(TRACES / "ended")
    assert gone(healthy) == []
    assert gone(replace(ended, config=None)) == []
    assert gone(replace(healthy, metadata=None)) == []  # all its steps are done: it is being saved
    now_sec = (ended.folder / "trace.jsonl").stat().st_mtime + 1e6
    assert findings(replace(ended, folder=tmp_path), (), now_sec=now_sec) == []


def test_a_slow_run_has_more_time_before_it_counts_as_gone():
    run = read_run(TRACES / "ended")
    records = tuple(replace(r, elapsed_sec=100.0 * r.elapsed_sec) for r in run.records)
    window_sec = (records[-1].elapsed_sec - records[0].elapsed_sec) / (len(records) - 1)
    written_sec = (run.folder / "trace.jsonl").stat().st_mtime
    slow = replace(run, records=records)
    assert findings(slow, (), now_sec=written_sec + 5.0 * window_sec) == []


def test_leaked_validation_documents_are_wrong(healthy):
    metadata = {"notes": ["WARNING: 3 of 30 validation documents are in training"]}
    (finding,) = diagnose(replace(healthy, metadata=metadata))
    assert (finding.name, finding.severity) == ("leaked-validation", "wrong")
    assert finding.evidence.startswith("3 of 30")


def test_an_n_that_differs_from_the_count_is_a_remark(healthy):
    start = {"tokens_per_epoch": 100_000, "tokens_per_pass": 50_000}
    (finding,) = diagnose(replace(healthy, start=start))
    assert (finding.name, finding.severity) == ("n-differs", "remark")
    assert "0.5 times" in finding.cause


def test_control_under_a_decaying_rate_is_a_remark(healthy):
    records = [
        replace(r, held="", learning_rate=0.002 * (1.0 - i / len(healthy.records)))
        for i, r in enumerate(healthy.records)
    ]
    (finding,) = diagnose(replace(healthy, records=tuple(records)))
    assert (finding.name, finding.severity) == ("rate-decays", "remark")


def test_gradients_clipped_by_a_large_factor_are_a_remark(healthy):
    (finding,) = diagnose(changed(healthy, 0, grad_norm=30.0))
    assert (finding.name, finding.severity) == ("always-clipped", "remark")
    assert "max_grad_norm=60" in finding.change


@pytest.mark.parametrize("numbers", [{"penalty_grad_ratio": 3.0}, {"shrink_rate": 0.8}])
def test_a_penalty_that_outweighs_the_data_is_a_remark(healthy, numbers):
    (finding,) = diagnose(changed(healthy, 0, **numbers))
    assert (finding.name, finding.severity) == ("penalty-dominates", "remark")
    assert "prior_sigma=0.03" in finding.change


def test_data_that_look_like_noise_need_a_code_to_be_compared_with():
    run = read_run(TRACES / "nothing-learned")
    assert wrong(replace(run, start={})) == []


def test_an_unreadable_stretch_of_records_does_not_stop_a_diagnosis(healthy):
    nan = float("nan")
    broken: list[StepRecord] = [
        replace(r, s=nan, error=nan, param_bpt=nan, grad_norm=None) for r in healthy.records
    ]
    assert isinstance(diagnose(replace(healthy, records=tuple(broken))), list)


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ([], []),
        ([0.0, 1.0, 2.0, 3.0], []),
        ([0.0, 2.0, 0.0], [1]),
        ([0.0, 2.0, 1.9, 2.1, 0.0, 2.0], [3, 4]),
        ([2.0, 0.0, 2.0, 0.0, 2.0], [1, 2, 3]),
        ([0.0, 0.4, 0.0, 0.4], []),
    ],
)
def test_swings_are_turns_between_moves_of_some_size(values, turns):
    assert swings(values, 0.5) == turns
