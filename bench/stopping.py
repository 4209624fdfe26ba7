"""Does a run end itself, rightly, and in time? `python -m bench.stopping --text NAME=PATH ...`

Positive cases: three texts, three sizes, five seeds, one configuration with S* inside the reachable
range, followed both to where they end themselves and to the end of their budget. Controls: the same
with one thing wrong, judged and never stopped. Rivals: a cosine schedule of the stopped runs'
length, and early stopping on a validation set that the training data pay for.
"""

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.common import (
    ROOT,
    WORK,
    Job,
    Outcome,
    provenance,
    quiet,
    run_all,
    write_documents,
    write_result,
)
from scu.monitor import guide_rule, judge
from scu.run_view import read_run

CONFIG = ROOT / "bench" / "stopping.yaml"
SIZES = (25_000, 50_000, 100_000)
STEPS = 700
SEEDS = (1, 2, 3, 4, 5)
HELD_OUT_TOKENS = 12_000
SCORE_EVERY = 100
CONTROL_SEEDS = (1, 2, 3)
CONTROL_SIZE = 50_000
CONTROL_STEPS = 300
COSINE_SIZE = 50_000
RIVAL_SEEDS = (1,)
EVALUATE_EVERY = 25
PATIENCES = (3, 5)
CONTROLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lambda disconnected": ("no_authority", ("scu.actuator=none",)),
    "S* above reach": ("saturated", ("scu.target_s=0.3", "scu.prior_sigma=0.1")),
    "S* far below": ("saturated", ("scu.target_s=0.001",)),
    "gains far too high": ("oscillating", ("scu.kp=20", "scu.ki=4")),
    "random tokens": ("transient", ()),
    "learning rate 0": ("no_authority", ("training.learning_rate=1e-30",)),
    "diverging": (
        "diverged",
        ("training.learning_rate=0.1", "training.max_grad_norm=0", "scu.prior_sigma=0.1"),
    ),
}
"""What is wrong: the verdict it should get, and the settings that make it so."""

Texts = dict[str, dict[int | str, str]]


def texts_of(given: list[str], folder: Path) -> Texts:
    """Of each text, files of each size, one of later documents to test on, and one of noise."""
    largest = max(SIZES)
    texts: Texts = {}
    for name, source in [("stdlib", "stdlib:train"), *(pair.split("=", 1) for pair in given)]:
        own = texts[name] = {}
        for size in SIZES:
            own[size] = write_documents(source, folder / f"{name}-{size}.jsonl", tokens=size)
        noise = folder / f"random-{len(texts)}.jsonl"
        own["random"] = random_text(noise, CONTROL_SIZE, seed=len(texts))
        beyond = ("stdlib:held-out", 0) if name == "stdlib" else (source, largest)
        file = folder / f"{name}-held-out.jsonl"
        own["held-out"] = write_documents(beyond[0], file, tokens=HELD_OUT_TOKENS, after=beyond[1])
    return texts


def random_text(file: Path, tokens: int, seed: int) -> str:
    """Documents of tokens drawn uniformly from the base model's vocabulary; the path."""
    from scu.config import Model
    from scu.engines.loading import load_tokenizer

    tokenizer, draw = load_tokenizer(Model(base_model="embedded")), random.Random(seed)
    printable = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).isprintable()]
    lines = []
    for _ in range(tokens // 500):
        text = tokenizer.decode(draw.choices(printable, k=500))
        lines.append(json.dumps({"text": text}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def context_free_bpt(file: Path) -> float:
    """As engines.counting has it, of a run that was made before runs recorded it."""
    from scu.config import Model
    from scu.engines.loading import load_tokenizer

    tokenizer = load_tokenizer(Model(base_model="embedded"))
    counts: Counter[int] = Counter()
    for line in file.read_text(encoding="utf-8").splitlines():
        counts.update(tokenizer(json.loads(line)["text"])["input_ids"])
    total = counts.total()
    entropy = -sum(n / total * math.log2(n / total) for n in counts.values())
    return entropy + (len(counts) - 1) / (2.0 * total * math.log(2.0))


def positive_jobs(texts: Texts, seeds: Sequence[int]) -> Iterator[Job]:
    """Unstopped runs, branched where they would have ended."""
    for seed in seeds:
        for name, files in texts.items():
            for size in SIZES:
                sets = (
                    f"data.train_data={files[size]}",
                    f"data.val_data={files['held-out']}",
                    "data.val_fraction=null",
                    f"training.seed={seed}",
                    f"training.steps={STEPS}",
                    "scu.stop=never",
                )
                yield Job(f"never-{name}-{size}-{seed}", CONFIG, sets, SCORE_EVERY, branch=True)


def cosine_jobs(positives: Sequence[Outcome], texts: Texts) -> Iterator[Job]:
    """As long as the stopped run of the same text, size and seed, under a cosine schedule."""
    for outcome in positives:
        _, name, size, seed = outcome.name.split("-")
        if int(size) != COSINE_SIZE or outcome.branch is None:
            continue
        steps = outcome.branch["end_step"]
        sets = (
            f"data.train_data={texts[name][int(size)]}",
            f"data.val_data={texts[name]['held-out']}",
            "data.val_fraction=null",
            f"training.seed={seed}",
            f"training.steps={steps}",
            "training.cooldown_steps=0",
            "scu.stop=never",
        )
        yield Job(f"cosine-{name}-{size}-{seed}", CONFIG, sets, steps, schedule="cosine")


def rival_jobs(texts: Texts, seeds: Sequence[int]) -> Iterator[Job]:
    """Without regularization, with transformers' default schedule, a tenth held out to stop on."""
    for seed in seeds:
        for name, files in texts.items():
            for size in SIZES:
                sets = (
                    f"data.train_data={files[size]}",
                    "data.val_fraction=0.1",
                    f"training.seed={seed}",
                    f"training.steps={STEPS}",
                    "training.cooldown_steps=0",
                    f"training.eval_steps={EVALUATE_EVERY}",
                    "scu.stop=never",
                    "scu.actuator=none",
                )
                name_ = f"patience-{name}-{size}-{seed}"
                job = Job(name_, CONFIG, sets, EVALUATE_EVERY, schedule="linear")
                yield replace(job, test_data=files["held-out"], patience=max(PATIENCES))


def control_jobs(texts: Texts, seeds: Sequence[int]) -> Iterator[Job]:
    for seed in seeds:
        for control, (_, wrong) in CONTROLS.items():
            for name, files in texts.items():
                source = files["random" if control == "random tokens" else CONTROL_SIZE]
                sets = (
                    f"data.train_data={source}",
                    f"training.seed={seed}",
                    f"training.steps={CONTROL_STEPS}",
                    "scu.stop=never",
                    *wrong,
                )
                yield Job(f"{control.replace(' ', '-')}-{name}-{seed}", CONFIG, sets)


def guide_stop(work: Path, name: str) -> int | None:
    """The step at which the guide's rule would have ended a run; None if it never fired."""
    run = read_run(work / name)
    judged = [r for r in run.records if r.held != "cooldown"]
    for i in range(len(judged)):
        if guide_rule(judged[: i + 1], run.settings):
            return judged[i].step
    return None


def positive_row(outcome: Outcome, work: Path) -> dict[str, Any]:
    _, text, size, seed = outcome.name.split("-")
    steps = outcome.settings["training"]["steps"]
    best_step, best = min(outcome.held_out, key=lambda pair: pair[1])
    row = {
        "text": text,
        "size": int(size),
        "seed": int(seed),
        "tokens": outcome.metadata["tokens_per_epoch"],
        "held_out": outcome.held_out,
        "best_step": best_step,
        "best": best,
        "last": outcome.held_out[-1][1],
        "guide_step": guide_stop(work, outcome.name),
        "stopped": None,
    }
    if outcome.branch is not None:
        end = outcome.branch["end_step"]
        row["stopped"] = outcome.branch
        row["saved"] = 1.0 - end / steps
        row["regret"] = outcome.branch["held_out"] / best - 1.0
    return row


def control_row(outcome: Outcome, work: Path, texts: Texts) -> dict[str, Any]:
    control = next(c for c in CONTROLS if outcome.name.startswith(c.replace(" ", "-")))
    text, seed = outcome.name.split("-")[-2:]
    file = texts[text]["random" if control == "random tokens" else CONTROL_SIZE]
    run = read_run(work / outcome.name)
    judged = [r for r in run.records if r.held != "cooldown"]
    price = run.context_free_bpt or context_free_bpt(Path(file))
    judgments = judge(judged, run.settings, context_free_bpt=price)
    return {
        "control": control,
        "text": text,
        "seed": int(seed),
        "expected": CONTROLS[control][0],
        "verdict": judgments[-1].verdict,
        "reason": judgments[-1].reason,
        "verdicts": dict(Counter(j.verdict for j in judgments)),
        "equilibrium": any(j.verdict == "equilibrium" for j in judgments),
        "guide_step": guide_stop(work, outcome.name),
    }


def early_stop(evaluations: Sequence[tuple[int, float]], patience: int) -> tuple[int | None, int]:
    """Where transformers' EarlyStoppingCallback ends a run, and the best step until then."""
    from transformers import EarlyStoppingCallback

    callback = EarlyStoppingCallback(patience)
    args = SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=False)
    state, control = SimpleNamespace(best_metric=None), SimpleNamespace(should_training_stop=False)
    best_step = 0
    for step, bits in evaluations:
        callback.on_evaluate(args, state, control, metrics={"eval_loss": bits})
        if state.best_metric is None or bits < state.best_metric:  # as the trainer does, after
            state.best_metric, best_step = bits, step
        if control.should_training_stop:
            return step, best_step
    return None, best_step


def rival_row(outcome: Outcome) -> dict[str, Any]:
    _, text, size, seed = outcome.name.split("-")
    tested = dict(outcome.held_out)
    row = {"text": text, "size": int(size), "seed": int(seed)}
    for patience in PATIENCES:
        end, best_step = early_stop(outcome.evaluations, patience)
        end = end or STEPS
        row[f"patience {patience}"] = {
            "end_step": end,
            "best_step": best_step,
            "held_out": tested[best_step],
            "evaluations": sum(step <= end for step, _ in outcome.evaluations),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--work", type=Path, default=WORK / "stopping")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--control-seeds", type=int, nargs="+", default=CONTROL_SEEDS)
    parser.add_argument("--rival-seeds", type=int, nargs="+", default=RIVAL_SEEDS)
    options = parser.parse_args()
    quiet()
    work = options.work
    texts = texts_of(options.text, work / "texts")
    positives = run_all(list(positive_jobs(texts, options.seeds)), work)
    cosines = run_all(list(cosine_jobs(positives, texts)), work)
    rivals = run_all(list(rival_jobs(texts, options.rival_seeds)), work)
    controls = run_all(list(control_jobs(texts, options.control_seeds)), work)
    result = {
        "provenance": provenance([*positives, *controls, *cosines, *rivals]),
        "positive": [positive_row(outcome, work) for outcome in positives],
        "controls": [control_row(outcome, work, texts) for outcome in controls],
        "cosine": [
            {"name": outcome.name, "held_out": outcome.held_out[-1][1]} for outcome in cosines
        ],
        "patience": [rival_row(outcome) for outcome in rivals],
    }
    write_result("stopping", result)


if __name__ == "__main__":
    main()
