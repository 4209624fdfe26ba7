"""Both sides of a stop in one run: the process is copied where the run would end itself.

The copy starts its cooldown, as `scu.stop: equilibrium` would, is scored and ends; the original
goes on as if nothing had been judged. Up to the stop they are one run, bit by bit.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bench.scorer import HeldOutScorer
from scu.engines.torch_engine import Run


class Branch(TrainerCallback):
    """Adds itself to the trainer of a run with `scu.stop: never`."""

    def __init__(self, run: Run, scorer: HeldOutScorer) -> None:
        self.found: dict[str, Any] | None = None
        """What the stopped copy came to; None if the run never met its stop."""
        self._callback = run.callback
        self._scorer = scorer
        self._file: Path | None = None
        run.trainer.add_callback(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ending = self._callback.ending
        assert ending is not None
        judgment = ending.judgment
        if self.found is not None or judgment is None or not judgment.may_stop:
            return
        handle, name = tempfile.mkstemp(suffix=".json")
        os.close(handle)
        copy = os.fork()
        if copy == 0:
            self._callback.on_record = None  # the trace is the original's
            ending.begin(state.global_step, judgment.verdict, judgment.reason)
            state.max_steps = ending.end_step
            self._file = Path(name)
            self.found = {}
            return
        _, status = os.waitpid(copy, 0)
        if status != 0:
            raise RuntimeError(f"the stopped copy failed with status {status}")
        self.found = json.loads(Path(name).read_text(encoding="utf-8"))
        Path(name).unlink()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._file is None:
            ending = self._callback.ending
            assert ending is not None
            if (
                self.found is not None
                and state.global_step == self.found["end_step"]
                and not ending.cools(state.global_step)
            ):
                self.found["held_out_at_constant_rate"] = self._scorer.measure(kwargs["model"])
            return
        if state.global_step < state.max_steps:
            return
        ending = self._callback.ending
        assert ending is not None
        assert ending.judgment is not None
        content = {
            "reason": ending.reason,
            "stop_step": ending.cooldown_from,
            "end_step": ending.end_step,
            "statistics": dict(ending.judgment.statistics),
            "held_out": self._scorer.measure(kwargs["model"]),
        }
        self._file.write_text(json.dumps(content), encoding="utf-8")
        os._exit(0)
