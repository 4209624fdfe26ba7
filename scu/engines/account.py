"""What a run says of itself: start.json before its first step, metadata.json after its last."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scu.metrics import data_bpt
from scu.plant import pulse_result

_PACKAGES = ("shannon-control-unit", "torch", "transformers", "peft", "trl", "accelerate")


def loop_summary(callback: Any) -> dict[str, Any]:
    """What the run's metadata says about the loop: final values, ranges, settings."""
    lambdas = [callback.settings.lambda_init, *(record.lam for record in callback.records)]
    last = callback.records[-1] if callback.records else None
    tested = pulse_result(callback.records)
    return {
        "final_lambda": callback.state.lam,
        "lambda_range": [min(lambdas), max(lambdas)],
        "lambda_bounds": [callback.settings.lambda_min, callback.settings.lambda_max],
        "final_s_ratio": last and last.s,
        "target_s": callback.settings.target_s,
        "s_at_start": callback.s_at_start,
        "final_data_bpt": last and last.data_bpt,
        "final_param_bpt": last and last.param_bpt,
        "tokens_per_epoch": callback.tokens_per_epoch,
        "prior_sigma": callback.prior_sigma,
        "prior_mean": callback.prior_mean,
        "actuator": callback.actuator_kind,
        "law": callback.settings.law,
        "control_interval": callback.settings.control_interval,
        "kp": callback.settings.kp,
        "ki": callback.settings.ki,
        "authority": callback.authority,
        "pulse": {"state": callback.pulse.state}
        | (tested._asdict() | {"certified": tested.certified} if tested else {}),
        "skipped_steps": callback.skipped_steps,
    }


def start_of(run: Any) -> dict[str, Any]:
    """What is known before the first step, for whoever watches the run."""
    callback = run.callback
    return {
        "tokens_per_epoch": callback.tokens_per_epoch,
        "tokens_per_pass": callback.tokens_per_pass,
        "context_free_bpt": callback.context_free_bpt,
        "processes": run.trainer.args.world_size,
        "notes": run.notes,
    }


def metadata_of(run: Any, interrupted: bool, duration_sec: float) -> dict[str, Any]:
    """All that metadata.json holds."""
    trainer, last = run.trainer, run.callback.records[-1:]
    return (
        loop_summary(run.callback)
        | _ending(run, interrupted)
        | {
            "base_model": run.config.model.base_model,
            "optimizer_steps": trainer.state.global_step,
            "steps_planned": run.config.training.steps,
            "tokens_seen": last[0].tokens_seen if last else 0,
            "duration_sec": duration_sec,
            "seed": run.config.training.seed,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "processes": trainer.args.world_size,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
            "data": {
                part: {"source": docs.source, "sha256": docs.sha256, "documents": len(docs.rows)}
                for part, docs in run.documents.items()
            },
            "notes": run.notes,
        }
    )


def _ending(run: Any, interrupted: bool) -> dict[str, Any]:
    """Why the run ended, what was last judged, and where validation was best."""
    ending, state = run.callback.ending, run.trainer.state
    assert ending is not None
    judgment = ending.judgment
    best = None
    if state.best_metric is not None:
        checkpoint = Path(run.output, f"checkpoint-{state.best_global_step}")
        best = {
            "step": state.best_global_step,
            "eval_bpt": data_bpt(state.best_metric),
            "checkpoint": checkpoint.name if checkpoint.is_dir() else None,
        }
    return {
        "stop_reason": "interrupted" if interrupted else ending.reason or "steps done",
        "stop_detail": f"while ending: {ending.reason}" * bool(ending.reason)
        if interrupted
        else ending.detail,
        "cooldown_from": ending.cooldown_from,
        "verdict": judgment.verdict if judgment else "not judged",
        "verdict_reason": judgment.reason if judgment else "the run was too short to judge",
        "statistics": dict(judgment.statistics) if judgment else {},
        "context_free_bpt": run.callback.context_free_bpt,
        "best": best,
    }
