"""Writes docs/EVIDENCE.md from bench/results/*.json: `python -m bench.evidence`.

The document holds no measured number that is not in a result file; a test compares the two.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.common import RESULTS, ROOT

DOCUMENT = ROOT / "docs" / "EVIDENCE.md"
HEAD = """# Evidence

Written by `python -m bench.evidence` from `bench/results/`; not to be edited by hand. How well the
embedded base model predicts text, beside gzip and xz, is in [its card](../scu/base/README.md).

S is the share of the total description length that the adapter costs, S* its set point, lambda the
regularization strength that the controller sets; BPT is bits per token. All runs were made on CPUs
with the embedded model (about 4 million weights). Larger models, GPUs, quantized bases and MLX were
**not measured** here."""


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the names of its columns are separated by ` | `."""
    rule = " | ".join("---" for _ in head.split(" | "))
    return "\n".join(f"| {line} |" for line in (head, rule, *(" | ".join(row) for row in rows)))


def percent(value: float | None, digits: int = 1) -> str:
    return "never" if value is None else f"{100.0 * value:.{digits}f} %"


def verdict(holds: bool) -> str:
    return "met" if holds else "**not met**"


def origin(provenance: dict[str, Any]) -> str:
    """When, from what code, versions and data a result was measured."""
    short = {
        key: ", ".join(f"`{sha[:16]}`" for sha in provenance[key])
        for key in ("scu_sha256", "base_sha256")
    }
    data = [
        f"`{name}` ({part['documents']} documents, "
        + (f"N = {part['tokens']:,} tokens, " if part["tokens"] else "")
        + f"SHA-256 `{part['sha256'][:16]}`)"
        for name, part in provenance.get("data", {}).items()
    ]
    return (
        f"Measured {provenance['date']} at commit `{provenance['commit'][:12]}`"
        f"{' with uncommitted changes' if provenance['dirty'] else ''}; SHA-256 of the library's "
        f"source {short['scu_sha256']}, of the base model {short['base_sha256']}; "
        f"{provenance['cpus']} CPUs, {provenance['threads_per_run']} thread per run, "
        f"{provenance['runs_at_a_time']} at a time; Python {provenance['python']}, "
        + ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
        + (f". Data: {', '.join(data)}." if data else ".")
    )


def setup(config: dict[str, Any]) -> str:
    """The settings that the runs of a result share."""
    lora, scu, training = config["lora"], config["scu"], config["training"]
    return (
        f"LoRA rank {lora['rank']} (alpha {lora['alpha']}) on {lora['targets']}; "
        f"prior_sigma {scu['prior_sigma']}, prior mean {scu['prior_mean']}; kp {scu['kp']}, "
        f"ki {scu['ki']}, one update per {scu['control_interval']} steps, lambda from "
        f"{scu['lambda_init']:g} within [{scu['lambda_min']:g}, {scu['lambda_max']:g}]; "
        f"{training['steps']} steps of {training['batch_size']} x {training['block_size']} tokens, "
        f"learning rate {training['learning_rate']:g}, warmup {training['warmup_steps']} steps, "
        f"cooldown {training['cooldown_steps']} steps."
    )


def tracking(result: dict[str, Any]) -> str:
    total = result["summary"][0]
    share, past = total["within"] / total["runs"], total["worst_overshoot"]
    arrived_all = total["arrived"] == total["runs"]
    criteria = [
        [
            "S within 5 % of S* at the last step, in at least 95 % of the runs",
            f"{total['within']} of {total['runs']} ({percent(share)}); "
            f"worst error {percent(total['worst_error'])}",
            verdict(share >= 0.95),
        ],
        [
            "S at most 25 % past S* after it first arrived",
            f"worst {percent(past)}; {total['arrived']} of {total['runs']} arrived",
            verdict(past is not None and past <= 0.25 and arrived_all),
        ],
    ]
    sums = [
        [
            line["law"],
            line["text"],
            f"{line['within']} / {line['runs']}",
            f"{line['within_mean']} / {line['runs']}",
            percent(line["worst_error"]),
            percent(line["worst_overshoot"]),
            f"{line['settled']} / {line['runs']}",
            "-" if line["median_settling_step"] is None else f"{line['median_settling_step']:g}",
            str(line["touched_bound"]),
        ]
        for line in result["summary"]
    ]
    runs = [
        [
            run["law"],
            run["text"],
            percent(run["target_s"], 0),
            str(run["seed"]),
            percent(run["s_last"], 2),
            f"{100 * run['error_last']:+.1f} %",
            f"{100 * run['error_end_mean']:+.1f} %",
            percent(run["overshoot"]),
            "-" if run["settling_step"] is None else str(run["settling_step"]),
            f"{run['lambda_end']:.3f}",
            f"{run['lambda_range'][0]:.3g} to {run['lambda_range'][1]:.3g}",
        ]
        for run in result["runs"]
    ]
    free = (f"`{u['text']}` {percent(u['s_last'])}" for u in result["unregularized"])
    return f"""## Tracking: is S held at its set point?

Three texts, three set points, three seeds, the default law and gains, at a constant learning rate.
Without regularization S reaches, at the same step: {", ".join(free)}.

{table("criterion | measured | ", criteria)}

By law and text. "Last" judges S at the last step, "mean" its mean over the last five control
windows; settled: within 5 % from some step to the end.

{
        table(
            "law | text | last within 5 % | mean within 5 % | worst error, last | worst overshoot"
            " | settled | median settling step | runs that touched a bound of lambda",
            sums,
        )
    }

Every run:

{
        table(
            "law | text | S* | seed | S, last | error, last | error, mean | overshoot"
            " | settled at step | lambda, last | lambda, range",
            runs,
        )
    }

{setup(result["provenance"]["config"])} Not measured: other learning rates, gains, intervals, ranks,
batch sizes and priors; longer runs.

{origin(result["provenance"])}"""


def demo_sweep(result: dict[str, Any]) -> str:
    demo = result["demo"]
    fixed = [run for run in result["runs"] if run["target_s"] is None]
    best_last = min(run["held_out_bpt_last"] for run in fixed)
    best = min(run["held_out_bpt_best"] for run in fixed)
    rows = [
        [
            f"lambda = {run['lambda_end']:g}, fixed"
            if run["target_s"] is None
            else f"S* = {percent(run['target_s'], 0)}",
            f"{run['lambda_end']:.3g}",
            percent(run["s_end"]),
            f"{run['data_bpt_end']:.3f}",
            f"{run['held_out_bpt_last']:.4f}",
            f"{run['held_out_bpt_best']:.4f} at {run['best_step']}",
            f"{100 * (run['held_out_bpt_last'] / best_last - 1):+.2f} %",
            f"{100 * (run['held_out_bpt_last'] / best - 1):+.2f} %",
        ]
        for run in result["runs"]
    ]
    return f"""## The demo: set point and prior

A grid of fixed lambdas at one prior_sigma (they act only through lambda / sigma^2), then the
controlled demo at several set points. Held-out files, every token scored, each with at least half a
block of context where the document has it.

{
        table(
            "run | lambda, last | S, last | training BPT | held-out BPT, last checkpoint"
            " | best checkpoint, at step | last against the grid's best last"
            " | last against the grid's best checkpoint",
            rows,
        )
    }

The demo itself: {demo["base_bpt"]:.3f} BPT before, {demo["adapter_bpt"]:.3f} after,
{demo["saved_bpt"]:.3f} saved (95 % interval {demo["saved_low"]:.3f} to {
        demo["saved_high"]:.3f}, files
resampled), better on {demo["wins"]} of {demo["documents"]} files; in bits per byte
{demo["base_bpb"]:.3f} and {demo["adapter_bpb"]:.3f}.

{setup(result["provenance"]["config"])} One seed. The set point and sigma were chosen on these same
held-out files.

{origin(result["provenance"])}"""


def cost(result: dict[str, Any]) -> str:
    summary, memory = result["summary"], result["memory"]
    adapter, kept, peak, bare, reading = (
        memory[f"{name}_bytes"]
        for name in ("adapter", "kept", "step_peak", "step_peak_without", "reading_peak")
    )
    buffer = max(peak - bare, reading)
    ratio = summary["scu"]["median_of_ratios"]["median"]
    rest = kept + buffer - 2 * adapter
    criteria = [
        ["median ratio of step time at most 1.01", f"{ratio:.4f}", verdict(ratio <= 1.01)],
        [
            "memory: theta0 and one buffer of the adapter's size",
            f"{kept / adapter:.4f} + {buffer / adapter:.4f} times the adapter: "
            f"{rest} bytes of scalars beside them",
            verdict(rest <= 0.001 * adapter),
        ],
    ]
    arms = {"with SCU / without": "scu", "without / without: noise": "control"}
    ratios = [
        [label, str(summary[arm]["pairs"])]
        + [
            f"{found['median']:.4f} ({found['range'][0]:.4f} to {found['range'][1]:.4f})"
            for name, found in summary[arm].items()
            if name != "pairs"
        ]
        for label, arm in arms.items()
    ]
    return f"""## Cost: the same trainer with SCU and without

{table("criterion | measured | ", criteria)}

The two trainers took turns step by step in one process; {result["runs"][0]["steps"]} steps of each
were counted per pair, data loading and logging included. Median over pairs, and the range:

{
        table(
            " | pairs | ratio of median step times | median ratio of step times | ratio of means",
            ratios,
        )
    }

The adapter has {adapter:,} bytes. The actuator keeps {kept:,}; an optimizer step takes {
        peak:,} at its
peak ({bare:,} without SCU), the reading at the end of a control window {reading:,}; both give them
back. Not measured: other models and batch sizes, GPUs, several processes, the process as a whole.

{origin(result["provenance"])}"""


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tracking": tracking,
    "cost": cost,
    "demo_sweep": demo_sweep,
}


def document() -> str:
    parts = [HEAD]
    for name, section in SECTIONS.items():
        file = RESULTS / f"{name}.json"
        if file.is_file():
            parts.append(section(json.loads(file.read_text(encoding="utf-8"))))
        else:
            parts.append(f"## {name}\n\nNot measured yet: `python -m bench.{name}`.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    print("written: docs/EVIDENCE.md")
