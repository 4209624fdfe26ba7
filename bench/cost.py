"""What the loop costs: `python -m bench.cost`, on an otherwise idle machine.

The same trainer on the same data, with ShannonCallback and without. Both are in one process and
take turns, step by step, so that whatever else slows the machine slows both; who goes first
alternates between processes. The same is done with two trainers that are both without: what differs
there is noise. Memory is counted, not sampled: what the actuator keeps, and what a step takes at
its peak.
"""

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.common import BASE, ROOT, code_state, file_sha256, quiet, scu_sha256, write_result

DEMO = ROOT / "scu" / "base" / "demo.yaml"
STEPS = 50
WARMUP_STEPS = 10
"""Not counted: the first steps allocate."""
PAIRS = 8
CONTROL_PAIRS = 4
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Both trainers allocate alike, and keep what they have: else page faults decide who is faster."""
ARMS = {"scu": (True, False), "control": (False, False)}
"""Which of the two trainers has the callback."""


def _trainer(with_scu: bool, steps: int) -> Any:
    import torch

    from scu.config_file import load
    from scu.engines import torch_engine

    torch.set_num_threads(1)
    sets = (f"training.steps={steps}", "training.warmup_steps=0", "training.cooldown_steps=0")
    run = torch_engine.prepare(load(DEMO, sets=sets), Path("not-written"))
    if not with_scu:
        run.trainer.remove_callback(run.callback)
    return run


def step_times(arm: str, turn: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds per optimizer step of the two trainers of an arm, its logging and data included."""
    from transformers import TrainerCallback

    class TakeTurns(TrainerCallback):
        """Waits for its turn before a step, and hands it over after."""

        def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
            self.mine, self.other, self.seconds = mine, other, [0.0]
            self.started_sec = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step:
                self.seconds.append(time.perf_counter() - self.started_sec)
                self.other.release()
            self.mine.acquire()
            self.started_sec = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.other.release()

    flags = [threading.Semaphore(int(turn % 2 == i)) for i in range(2)]
    takers = [TakeTurns(flags[i], flags[1 - i]) for i in range(2)]
    runs = [_trainer(with_scu, steps) for with_scu in ARMS[arm]]
    threads = []
    for run, taker in zip(runs, takers, strict=True):
        run.trainer.add_callback(taker)
        threads.append(threading.Thread(target=run.trainer.train))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (taker.seconds[1 + WARMUP_STEPS :] for taker in takers)
    assert len(first) == len(second) > 0, "a trainer failed"
    return first, second


def pair(arm: str, turn: int, steps: int) -> dict[str, Any]:
    first, second = step_times(arm, turn, steps)
    return {
        "arm": arm,
        "steps": len(first),
        "first_ms": 1e3 * median(first),
        "second_ms": 1e3 * median(second),
        "ratio_of_medians": median(first) / median(second),
        "median_of_ratios": median(a / b for a, b in zip(first, second, strict=True)),
        "ratio_of_means": fmean(first) / fmean(second),
    }


def memory() -> dict[str, Any]:
    """Bytes that the actuator keeps, and that a step and a reading take at their peak."""
    import torch

    from scu.engines.actuator import Actuator, adapter_weights

    run = _trainer(with_scu=True, steps=2)
    run.trainer.train()
    optimizer = run.trainer.optimizer.optimizer  # accelerate's wrapper
    weights = adapter_weights(run.trainer.model)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    without = _allocated(optimizer.step)[1]
    made: list[Actuator] = []
    kept = _allocated(lambda: made.append(Actuator(optimizer, weights)))[0]
    made[0].pull = 1.0
    return {
        "adapter_bytes": sum(weight.nbytes for weight in weights.values()),
        "kept_bytes": kept,
        "step_peak_bytes": _allocated(optimizer.step)[1],
        "step_peak_without_bytes": without,
        "reading_peak_bytes": _allocated(made[0].read)[1],
    }


def _allocated(action: Callable[[], object]) -> tuple[int, int]:
    """Bytes of tensors that are left after an action, and at its peak, above what was there."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    levels = [0, *accumulate(change for _, change in changes)]
    return levels[-1], max(levels)


def summary(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median over pairs of each ratio, with its range."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        own = [p for p in pairs if p["arm"] == arm]
        found[arm] = {"pairs": len(own)}
        for name in ("ratio_of_medians", "median_of_ratios", "ratio_of_means"):
            values = [p[name] for p in own]
            found[arm][name] = {"median": median(values), "range": [min(values), max(values)]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--control-pairs", type=int, default=CONTROL_PAIRS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only-look", action="store_true", help="print, write no result")
    options = parser.parse_args()
    plan = [("scu", turn) for turn in range(options.pairs)]
    plan += [("control", turn) for turn in range(options.control_pairs)]
    plan.sort(key=lambda item: item[1])  # the two kinds side by side
    pairs = []
    os.environ.update(MALLOC)  # read by each fresh process as it starts
    context = multiprocessing.get_context("spawn")
    for arm, turn in plan:
        with ProcessPoolExecutor(1, mp_context=context, initializer=quiet) as fresh:
            pairs.append(fresh.submit(pair, arm, turn, options.steps).result())
        print(json.dumps(pairs[-1]), flush=True)
    with ProcessPoolExecutor(1, mp_context=context, initializer=quiet) as fresh:
        counted = fresh.submit(memory).result()
    found = summary(pairs)
    print(json.dumps(found, indent=2), json.dumps(counted, indent=2), sep="\n")
    if not options.only_look:
        origin = code_state() | {
            "scu_sha256": [scu_sha256()],
            "base_sha256": [file_sha256(BASE)],
            "threads_per_run": 1,
            "runs_at_a_time": 1,
        }
        write_result(
            "cost", {"provenance": origin, "summary": found, "memory": counted, "runs": pairs}
        )


if __name__ == "__main__":
    main()
