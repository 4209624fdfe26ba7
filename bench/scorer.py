"""Scores every held-out token of a run while it trains.

The trainer's own evaluation cuts each document to one block; this one reads all of it.
"""

from typing import Any

from transformers import TrainerCallback

from scu.engines.scoring import score, tokenize
from scu.engines.torch_engine import Run
from scu.evaluate import bits_per_token


class HeldOutScorer(TrainerCallback):
    """Adds itself to the trainer; scores every so many optimizer steps, and after the last."""

    def __init__(self, run: Run, *, every: int) -> None:
        self.scores: list[tuple[int, float]] = []
        """(step, bits per held-out token)."""
        self._every = every
        self._context = run.config.training.block_size
        if every:
            self._documents = tokenize(run.documents["validation"], run.trainer.processing_class)
            run.trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            model = kwargs["model"]
            scores = score(model, self._documents, context=self._context, batch_tokens=1024)
            model.train()
            self.scores.append((state.global_step, bits_per_token(scores)))
