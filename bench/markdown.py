"""What the sections of docs/EVIDENCE.md are made of."""

from collections.abc import Iterable, Sequence
from typing import Any


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
        f"Measured {provenance['date']}, written at commit `{provenance['commit'][:12]}`"
        f"{' with uncommitted changes' if provenance['dirty'] else ''}; SHA-256 of the library's "
        f"source as the runs loaded it {short['scu_sha256']}, "
        f"of the base model {short['base_sha256']}; "
        f"{provenance['cpus']} CPUs, {provenance['threads_per_run']} thread per run, "
        f"{provenance['runs_at_a_time']} at a time; Python {provenance['python']}, "
        + ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
        + (f". Data: {', '.join(data)}." if data else ".")
    )


def setup(config: dict[str, Any]) -> str:
    """The settings that the runs of a result share."""
    lora, scu, training = config["lora"], config["scu"], config["training"]
    return (
        f"Base model in {config['model']['precision']}; "
        f"LoRA rank {lora['rank']} (alpha {lora['alpha']}) on {lora['targets']}; "
        f"prior_sigma {scu['prior_sigma']}, prior mean {scu['prior_mean']}; kp {scu['kp']}, "
        f"ki {scu['ki']}, one update per {scu['control_interval']} steps, moving average weight "
        f"{scu['ema']}, lambda from "
        f"{scu['lambda_init']:g} within [{scu['lambda_min']:g}, {scu['lambda_max']:g}]; "
        f"{training['steps']} steps of {training['batch_size']} x {training['block_size']} tokens, "
        f"learning rate {training['learning_rate']:g}, warmup {training['warmup_steps']} steps, "
        f"cooldown {training['cooldown_steps']} steps."
    )
