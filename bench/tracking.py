"""Does the loop hold S at the set point? `python -m bench.tracking --text NAME=PATH ...`

Three texts (the demo's own, and two given), three set points below what each text reaches without
regularization, three seeds, at a constant learning rate, with the default gains. The other law
runs once per text and set point, for comparison.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
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

CONFIG = ROOT / "bench" / "tracking.yaml"
TARGETS = (0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)
LAWS = ("positional", "multiplicative")
"""The first at every set point with every seed, the other at the second with the first seed."""
TEXT_TOKENS = 100_000
TOLERANCE = 0.05
"""S is at the set point when it is within this fraction of it."""
END_WINDOWS = 5
"""Control windows that the mean at the end is taken over."""


def overshoot(s: Sequence[float], target: float) -> float | None:
    """How far S went past the set point after it first came within tolerance, as a fraction of it.

    None if it never came there, 0 if it never went past.
    """
    for first, value in enumerate(s):
        if value >= (1.0 - TOLERANCE) * target:
            return max(0.0, max(s[first:]) / target - 1.0)
    return None


def settling_step(steps: Sequence[float], s: Sequence[float], target: float) -> int | None:
    """Optimizer step from which S stayed within tolerance to the end; None if it did not."""
    settled = None
    for step, value in zip(reversed(steps), reversed(s), strict=True):
        if abs(value / target - 1.0) > TOLERANCE:
            break
        settled = int(step)
    return settled


def row(outcome: Outcome, free_s: float) -> dict[str, Any]:
    scu, trace = outcome.settings["scu"], outcome.trace
    s, target, lam = trace["s"], scu["target_s"], trace["lam"]
    return {
        "text": outcome.settings["data"]["train_data"],
        "law": scu["law"],
        "target_s": target,
        "seed": outcome.settings["training"]["seed"],
        "s_unregularized": free_s,
        "s_last": s[-1],
        "s_end_mean": fmean(s[-END_WINDOWS:]),
        "error_last": s[-1] / target - 1.0,
        "error_end_mean": fmean(s[-END_WINDOWS:]) / target - 1.0,
        "overshoot": overshoot(s, target),
        "settling_step": settling_step(trace["step"], s, target),
        "lambda_end": lam[-1],
        "lambda_range": [min(lam), max(lam)],
        "touched_bound": min(lam) <= scu["lambda_min"] or max(lam) >= scu["lambda_max"],
        "authority": outcome.metadata["authority"],
        "trace": trace,
    }


def summary(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The criteria over some runs."""
    runs = list(rows)
    settled = [r["settling_step"] for r in runs if r["settling_step"] is not None]
    overshoots = [r["overshoot"] for r in runs if r["overshoot"] is not None]
    return {
        "runs": len(runs),
        "within": sum(abs(r["error_last"]) <= TOLERANCE for r in runs),
        "within_mean": sum(abs(r["error_end_mean"]) <= TOLERANCE for r in runs),
        "worst_error": max(abs(r["error_last"]) for r in runs),
        "worst_error_mean": max(abs(r["error_end_mean"]) for r in runs),
        "arrived": len(overshoots),
        "worst_overshoot": max(overshoots, default=None),
        "settled": len(settled),
        "median_settling_step": median(settled) if settled else None,
        "touched_bound": sum(r["touched_bound"] for r in runs),
    }


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By law, and for each law by text."""
    found = []
    for law in dict.fromkeys(r["law"] for r in rows):
        own = [r for r in rows if r["law"] == law]
        found.append({"law": law, "text": "all"} | summary(own))
        for text in dict.fromkeys(r["text"] for r in own):
            found.append({"law": law, "text": text} | summary(r for r in own if r["text"] == text))
    return found


def jobs_of(texts: dict[str, str], options: argparse.Namespace) -> tuple[list[Job], list[Job]]:
    """The runs without regularization, one per text, and those at a set point."""

    def job(name: str, source: str, *sets: str) -> Job:
        return Job(name, CONFIG, (*options.set, f"data.train_data={source}", *sets))

    free = [job(f"{name}-free", source, "scu.actuator=none") for name, source in texts.items()]
    held = [
        job(
            f"{name}-{law}-{target:g}-{seed}",
            source,
            f"scu.law={law}",
            f"scu.target_s={target}",
            f"training.seed={seed}",
        )
        for law in options.laws
        for name, source in texts.items()
        for target in (options.targets if law == LAWS[0] else options.targets[1:2])
        for seed in (options.seeds if law == LAWS[0] else options.seeds[:1])
    ]
    return free, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--tokens", type=int, default=TEXT_TOKENS, help="of each given text")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--laws", nargs="+", default=LAWS, choices=LAWS)
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--result", default="tracking", help="bench/results/RESULT.json")
    parser.add_argument("--work", type=Path, help="folder of the runs; runs/bench/RESULT")
    parser.add_argument("--only-look", action="store_true", help="print, write no result")
    options = parser.parse_args()
    quiet()
    work = options.work or WORK / options.result
    texts = {"stdlib-train": "stdlib:train"}
    for given in options.text:
        name, _, source = given.partition("=")
        texts[name] = write_documents(
            source, work / "texts" / f"{name}.jsonl", tokens=options.tokens
        )

    free, held = jobs_of(texts, options)
    outcomes = run_all(free + held, work)
    free_outcomes, held_outcomes = outcomes[: len(free)], outcomes[len(free) :]
    free_s = {o.settings["data"]["train_data"]: o.trace["s"][-1] for o in free_outcomes}
    unregularized = [
        {"text": o.settings["data"]["train_data"], "s_last": o.trace["s"][-1], "trace": o.trace}
        for o in free_outcomes
    ]
    rows = [row(o, free_s[o.settings["data"]["train_data"]]) for o in held_outcomes]
    found = summaries(rows)
    for line in found:
        print(json.dumps(line))
    if not options.only_look:
        result = {
            "provenance": provenance(held_outcomes + free_outcomes),
            "summary": found,
            "unregularized": unregularized,
            "runs": rows,
        }
        write_result(options.result, result)


if __name__ == "__main__":
    main()
