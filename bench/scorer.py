"""Scores every token of held-out documents while a run trains.

The trainer's own evaluation cuts each document to one block; this one reads all of it.
"""

from typing import Any

from transformers import TrainerCallback

from scu.data import Documents
from scu.engines.scoring import score, tokenize
from scu.engines.torch_engine import Run
from scu.evaluate import bits_per_token


class HeldOutScorer(TrainerCallback):
    """Adds itself to the trainer; scores every so many optimizer steps, and after the last."""

    def __init__(self, run: Run, *, every: int, documents: Documents | None = None) -> None:
        self.scores: list[tuple[int, float]] = []
        """(step, bits per held-out token)."""
        self._every = every
        self._context = run.config.training.block_size
        if every:
            held_out = documents or run.documents["validation"]
            self._documents = tokenize(held_out, run.trainer.processing_class)
            run.trainer.add_callback(self)

    def measure(self, model: Any) -> float:
        """Bits per held-out token of the model as it is."""
        scores = score(model, self._documents, context=self._context, batch_tokens=1024)
        model.train()
        return bits_per_token(scores)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self.scores.append((state.global_step, self.measure(kwargs["model"])))


class Patience(TrainerCallback):
    """Ends a run after so many evaluations without a better one."""

    def __init__(self, evaluations: int) -> None:
        self._evaluations = evaluations
        self._losses: list[float] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._losses.append(kwargs["metrics"]["eval_loss"])
        best = self._losses.index(min(self._losses))
        if len(self._losses) - 1 - best >= self._evaluations:
            control.should_training_stop = True
