"""Training runs for the benchmarks: each in a worker process, each remembered, all with provenance.

A run is remembered as one JSON file in the work folder, under the hash of everything that it
depends on but the code: a benchmark that was interrupted goes on where it stopped. The code's own
hash is recorded with each run, and a result names all that took part.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import platform
import subprocess
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scu.config_file import load
from scu.trace import StepRecord, read_trace

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
WORK = ROOT / "runs" / "bench"
BASE = ROOT / "scu/base/model.safetensors"
WORKERS = 2
"""Processes, each with one thread: on matrices this small a second thread mostly waits."""

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy")
KEPT = (
    *("data", "authority", "final_lambda", "tokens_per_epoch", "stop_reason", "verdict"),
    "context_free_bpt",
)
"""What a result keeps of a run's metadata."""
COLUMNS = ("step", "s", "lam", "data_bpt", "param_bpt")
"""What a result keeps of each control window."""


@dataclass(frozen=True)
class Job:
    """One training run."""

    name: str
    config: Path
    sets: tuple[str, ...] = ()
    score_every: int = 0
    """Optimizer steps between scorings of every held-out token; 0: none."""
    test_data: str = ""
    """What is scored; empty: the run's own validation data."""
    schedule: str = ""
    """Of the learning rate, as transformers names it; empty: the run's own."""
    patience: int = 0
    """Evaluations without a better one after which the run is ended; 0: none."""
    branch: bool = False
    """Also follow the run to where it would have ended itself: see bench.branch."""


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    name: str
    trace: dict[str, list[float]]
    """COLUMNS, one entry per control window."""
    held_out: list[tuple[int, float]]
    """(step, bits per held-out token)."""
    metadata: dict[str, Any]
    """The run's own, with the data by name in place of where they lay."""
    settings: dict[str, Any]
    """The configuration, by dotted key, without paths."""
    scu_sha256: str
    base_sha256: str
    branch: dict[str, Any] | None = None
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """(step, bits per validation token), as the trainer evaluated."""


def run_all(jobs: Sequence[Job], work: Path, *, workers: int = WORKERS) -> list[Outcome]:
    """Run what is not yet in the work folder; outcomes in the order of the jobs."""
    work.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet) as pool:
        futures = {pool.submit(_remembered, job, work): job for job in jobs}
        for future in as_completed(futures):
            outcome = outcomes[futures[future].name] = future.result()
            scored = f", held-out {outcome.held_out[-1][1]:.4f} BPT" if outcome.held_out else ""
            s, lam = outcome.trace["s"][-1], outcome.trace["lam"][-1]
            print(f"{outcome.name}: S {s:.2%}, lambda {lam:.4g}{scored}", flush=True)
    return [outcomes[job.name] for job in jobs]


def _remembered(job: Job, work: Path) -> Outcome:
    file, key = work / f"{job.name}.json", _key(job)
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known.pop("key") == key:
            return Outcome(**known)
    outcome = _run(job, work / job.name)
    content = {"key": key} | {f.name: getattr(outcome, f.name) for f in fields(Outcome)}
    file.write_text(json.dumps(content), encoding="utf-8")
    return outcome


def _key(job: Job) -> str:
    config = load(job.config, sets=job.sets)
    # What is set, and not what it resolves to: defaults belong to the code.
    parts = [job.config.read_text(encoding="utf-8"), *job.sets, str(job.score_every)]
    parts += [job.schedule, str(job.branch), file_sha256(BASE)]
    for source in (config.data.train_data, config.data.val_data, job.test_data):
        if source and Path(source).is_file():
            parts.append(file_sha256(Path(source)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _run(job: Job, folder: Path) -> Outcome:
    import torch
    from transformers import SchedulerType

    from bench.branch import Branch
    from bench.scorer import HeldOutScorer, Patience
    from scu.data import load_documents
    from scu.engines import torch_engine

    torch.set_num_threads(1)
    code = scu_sha256()
    config = load(job.config, sets=job.sets)
    run = torch_engine.prepare(config, folder, overwrite=True)
    test = load_documents(job.test_data) if job.test_data else None
    scorer = HeldOutScorer(run, every=job.score_every, documents=test)
    branch = Branch(run, scorer) if job.branch else None
    if job.patience:
        run.trainer.add_callback(Patience(job.patience))
    if job.schedule:
        run.trainer.args.lr_scheduler_type = SchedulerType(job.schedule)
    metadata = torch_engine.train(run)
    if metadata["stop_reason"] == "interrupted":
        raise RuntimeError(f"{job.name}: interrupted; not remembered, run it again")
    for part in metadata["data"].values():
        part["source"] = name_of(part["source"])
    records = read_trace(folder / "trace.jsonl")
    settings = config.model_dump(mode="json", exclude={"output"})
    for part in ("train_data", "val_data"):
        settings["data"][part] = settings["data"][part] and name_of(settings["data"][part])
    return Outcome(
        name=job.name,
        trace=columns(records),
        held_out=scorer.scores,
        metadata={key: metadata[key] for key in KEPT},
        settings=settings,
        scu_sha256=code,
        base_sha256=file_sha256(BASE),
        branch=branch and branch.found,
        evaluations=[(r.step, r.eval_bpt) for r in records if r.eval_bpt is not None],
    )


def columns(records: Iterable[StepRecord]) -> dict[str, list[float]]:
    """COLUMNS of a trace, to six digits."""
    kept = list(records)
    return {name: [float(f"{getattr(r, name):.6g}") for r in kept] for name in COLUMNS}


def provenance(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """When, with what code, versions and data the runs were made; nothing that names a machine."""
    data = {
        p["source"]: p | {"tokens": None} for o in outcomes for p in o.metadata["data"].values()
    }
    for outcome in outcomes:
        source = outcome.metadata["data"]["train"]["source"]
        data[source]["tokens"] = outcome.metadata["tokens_per_epoch"]
    return code_state() | {
        "scu_sha256": sorted({outcome.scu_sha256 for outcome in outcomes}),
        "base_sha256": sorted({outcome.base_sha256 for outcome in outcomes}),
        "threads_per_run": 1,
        "runs_at_a_time": WORKERS,
        "data": data,
        "config": outcomes[0].settings,
    }


def code_state() -> dict[str, Any]:
    """Date, commit, versions and the number of CPUs."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    status = [*git, "status", "--porcelain", "scu", "bench"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "dirty": bool(changed.stdout.strip()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
    }


def write_documents(source: str, file: Path, *, tokens: int, after: int = 0) -> str:
    """Write documents of a source, about so many tokens, as plain text; the path.

    They follow the first `after` tokens' documents.
    """
    from scu.config import Model
    from scu.data import load_documents
    from scu.engines.loading import load_tokenizer
    from scu.formats import document_text

    tokenizer = load_tokenizer(Model(base_model="embedded"))
    lines, total = [], 0
    for document in load_documents(source).rows:
        text = document_text(document)
        total += len(tokenizer(text)["input_ids"])
        if total > after + tokens:
            break
        if total > after:
            lines.append(json.dumps({"text": text}) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write bench/results/NAME.json: one line per run, so that a change can be read."""
    RESULTS.mkdir(exist_ok=True)
    lines = []
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            text = json.dumps(value, allow_nan=False, indent=2).replace("\n", "\n  ")
            lines.append(f"  {json.dumps(key)}: {text}")
    file = RESULTS / f"{name}.json"
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"written: bench/results/{file.name}")


def name_of(source: str) -> str:
    """A data source without the folders it lay in."""
    return source if source.startswith("stdlib:") else Path(source).stem


def file_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def scu_sha256() -> str:
    """Of the library's source files, in order of their names."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "scu").rglob("*.py")):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def quiet() -> None:
    """Offline, and without the libraries' bars and notices; before they are imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
