"""The folder of a run, alike for every engine: may it be used, and what a person finds in it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scu.errors import OutputError

_RUN_FILES = (
    *("trace.jsonl", "metadata.json", "start.json", "config.yaml", "README.md", "eval.json"),
    *("report.html", "run.png"),
    *("adapter_model.safetensors", "adapter_config.json"),
)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run (unless overwrite) or anything else, or is not writable."""
    for name in ("metadata.json", "trace.jsonl"):
        if (output / name).exists() and not overwrite:
            what = "a finished run" if name == "metadata.json" else "a run that was not finished"
            raise OutputError(f"{output} holds {what}; choose another output, or pass --overwrite")
    if output.is_dir() and not _holds_run(output) and (others := sorted(output.iterdir())):
        raise OutputError(
            f"{output} is not empty and holds no run ({others[0].name}, ...); choose a new folder, "
            "so that nothing of yours is replaced"
        )
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to the output folder {output}: {error.strerror or error}"
        ) from error


def remove_old_run(output: Path) -> None:
    """Delete what an earlier run left, and nothing else."""
    if not _holds_run(output):
        return
    for name in _RUN_FILES:
        (output / name).unlink(missing_ok=True)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _holds_run(output: Path) -> bool:
    return (output / "metadata.json").exists() or (output / "trace.jsonl").exists()


def model_card(metadata: Mapping[str, Any]) -> str:
    """README.md of an adapter, with the front matter that the hub reads."""
    base, s, target = metadata["base_model"], metadata["final_s_ratio"], metadata["target_s"]
    s_text = "never measured" if s is None else f"{s:.2%}"
    return f"""---
library_name: peft
base_model: {base}
tags: [lora, shannon-control-unit]
---

# LoRA adapter for {base}

Trained with the Shannon Control Unit: a PI controller held its information ratio S at {target:.2%}.

| | |
|---|---|
| S at the end | {s_text} |
| lambda at the end | {metadata["final_lambda"]:.4g} |
| optimizer steps | {metadata["optimizer_steps"]} |
| stopped because | {metadata["stop_reason"]} |
| last verdict | {metadata["verdict"]}: {metadata["verdict_reason"]} |
| training tokens N | {metadata["tokens_per_epoch"]:,} |

![The run: S, lambda, bits, verdicts](run.png)

`config.yaml` repeats the run, `trace.jsonl` holds every control window, `metadata.json` the rest.
"""
