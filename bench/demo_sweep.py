"""Chooses the demo's prior_sigma and set point: `python -m bench.demo_sweep`.

First a grid of fixed lambdas at one sigma (lambda and sigma act only through lambda / sigma^2),
from no regularization at all to too much; then the controlled demo at candidate set points. Every
held-out token is scored while a run trains, so the last checkpoint and the best are both seen.
"""

import argparse
from pathlib import Path
from typing import Any

from bench.common import ROOT, WORK, Job, Outcome, provenance, quiet, run_all, write_result
from scu.config_file import load

DEMO = ROOT / "scu" / "base" / "demo.yaml"
LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
SCORE_EVERY_STEPS = 50


def fixed(lam: float, sets: tuple[str, ...]) -> Job:
    """The demo with its loop open: lambda stays where it starts, and windows only report."""
    windows = ("scu.control_interval=10", "scu.ema=0.5")
    if lam == 0.0:
        own: tuple[str, ...] = ("scu.actuator=none",)
    else:
        bound = f"scu.lambda_max={max(2.0, 2.0 * lam)}"
        own = ("scu.kp=0", "scu.ki=0", bound, f"scu.lambda_init={lam}")
    return Job(f"fixed-{lam:g}", DEMO, sets + windows + own, SCORE_EVERY_STEPS)


def controlled(target_s: float, sets: tuple[str, ...]) -> Job:
    return Job(f"s-{target_s:g}", DEMO, (*sets, f"scu.target_s={target_s}"), SCORE_EVERY_STEPS)


def row(outcome: Outcome) -> dict[str, Any]:
    scu = outcome.settings["scu"]
    best_step, best = min(outcome.held_out, key=lambda scored: scored[1])
    lam = 0.0 if scu["actuator"] == "none" else outcome.trace["lam"][-1]
    return {
        "name": outcome.name,
        "target_s": scu["target_s"] if outcome.name.startswith("s-") else None,
        "lambda_end": lam,
        "alpha_end": lam / scu["prior_sigma"] ** 2,
        "s_end": outcome.trace["s"][-1],
        "data_bpt_end": outcome.trace["data_bpt"][-1],
        "held_out_bpt_last": outcome.held_out[-1][1],
        "held_out_bpt_best": best,
        "best_step": best_step,
        "held_out": outcome.held_out,
        "trace": outcome.trace,
    }


def compared(folder: Path) -> dict[str, Any]:
    """The demo's adapter against the base, as `scu demo` prints it."""
    import torch

    from scu.engines.scoring import evaluate_adapter

    torch.set_num_threads(1)
    return evaluate_adapter(folder).as_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.1, 0.15, 0.2])
    parser.add_argument("--lambdas", type=float, nargs="+", default=list(LAMBDAS))
    parser.add_argument("--set", action="append", default=[], help="section.key=value of the demo")
    parser.add_argument("--work", type=Path, default=WORK / "demo_sweep")
    parser.add_argument("--only-look", action="store_true", help="print, write no result")
    options = parser.parse_args()
    quiet()
    sets = tuple(options.set)
    jobs = [fixed(lam, sets) for lam in options.lambdas]
    jobs += [controlled(target, sets) for target in options.targets]
    outcomes = run_all(jobs, options.work)
    rows = [row(outcome) for outcome in outcomes]
    for r in rows:
        print(
            f"{r['name']:>12} lambda {r['lambda_end']:<8.4g} S {r['s_end']:7.2%}  training"
            f" {r['data_bpt_end']:.3f}  held-out last {r['held_out_bpt_last']:.4f}"
            f"  best {r['held_out_bpt_best']:.4f} at {r['best_step']}"
        )
    if not options.only_look:
        demo = compared(options.work / f"s-{load(DEMO).scu.target_s:g}")
        write_result(
            "demo_sweep", {"provenance": provenance(outcomes[::-1]), "demo": demo, "runs": rows}
        )


if __name__ == "__main__":
    main()
