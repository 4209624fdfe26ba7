"""ShannonCallback: the closed loop inside any transformers Trainer or TRL trainer.

    trainer = SFTTrainer(..., callbacks=[ShannonCallback(ControlSettings(target_s=0.03))])

The trainer's own logged loss is the measurement: it is averaged over the steps since the last log
and over the ranks, and holds no penalty, so the loop costs one small read per control window.
Lambda acts through hooks on the optimizer (see actuator.py): once per optimizer step, whatever the
accumulation.

When the run is in equilibrium the callback ends it, after a cooldown: it lowers the learning rate
that the trainer's schedule sets, step by step, to 0. A schedule that falls by itself (cosine,
linear) hardly ever rests; give the trainer lr_scheduler_type "constant_with_warmup". Trackers get
what the loop adds to the logs (scu/s and so on) if the callback comes before theirs, as the torch
engine sees to: trainer.callback_handler.callbacks.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from scu.control import (
    ActuatorKind,
    ControlSettings,
    ControlState,
    PriorMean,
    StopRule,
    start,
    update,
)
from scu.ending import Ending
from scu.engines.account import loop_summary
from scu.engines.actuator import Actuator, adapter_weights
from scu.engines.counting import count_tokens
from scu.errors import ConfigError, TrainingError
from scu.metrics import data_bpt, info_ratio, param_bpt, pull
from scu.pulse import PulseTest
from scu.trace import StepRecord

__all__ = ["MAX_SKIPPED_IN_ROW", "ControlSettings", "ShannonCallback"]

MAX_SKIPPED_IN_ROW = 5
"""Training ends after this many steps in a row without a finite gradient."""


_TRACKED = ("s", "lam", "data_bpt", "param_bpt", "integral", "error")
"""What trackers get besides the loss, as scu/NAME."""


class ShannonCallback(TrainerCallback):
    """Holds the information ratio S of a LoRA adapter at settings.target_s while it trains.

    tokens_per_epoch is N, the distinct training tokens that carry loss; None counts them. on_record
    receives a StepRecord per control window, on the main process only. stop, cooldown_steps,
    max_sec and max_tokens end the run: see scu.ending. test_pulse moves lambda up and down for a
    while once S is near S*, to prove that S follows it: see scu.pulse. Raises ConfigError,
    ModelError or DataError when training begins and the loop could not work.
    """

    def __init__(
        self,
        settings: ControlSettings,
        *,
        prior_sigma: float = 0.01,
        prior_mean: PriorMean = "init",
        actuator: ActuatorKind = "prox",
        tokens_per_epoch: int | None = None,
        stop: StopRule = "equilibrium",
        cooldown_steps: int | None = None,
        max_sec: float | None = None,
        max_tokens: int | None = None,
        test_pulse: bool = False,
        on_record: Callable[[StepRecord], None] | None = None,
    ) -> None:
        self.settings = settings
        self.prior_sigma = prior_sigma
        self.prior_mean: PriorMean = prior_mean
        self.actuator_kind: ActuatorKind = actuator
        self.tokens_per_epoch = tokens_per_epoch
        self.tokens_per_pass = tokens_per_epoch
        """What one pass really holds, where tokens_per_epoch was given and not counted."""
        self.context_free_bpt: float | None = None
        """What a code that knows token frequencies costs: see engines.counting."""
        self.on_record = on_record
        self.state: ControlState = start(settings)
        self.records: list[StepRecord] = []
        self.ending: Ending | None = None
        self.s_at_start: float | None = None
        self.skipped_steps = 0
        self.authority = 0.0
        """How many e-folds closer to theta0 lambda_max could have pulled the adapter in this run;
        below about 0.1 no controller can move S."""
        self._end_options: dict[str, Any] = {
            "rule": stop,
            "cooldown_steps": cooldown_steps,
            "max_sec": max_sec,
            "max_tokens": max_tokens,
        }
        self._wants_pulse = test_pulse
        self.pulse = PulseTest(settings, wanted=test_pulse)
        self._pending: StepRecord | None = None
        self._eval_bpt: float | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # TRL casts the adapter of a quantized model to bf16, in which lambda's pull would be lost.
        for weight in adapter_weights(kwargs["model"]).values():
            weight.data = weight.data.float()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            raise TrainingError(
                "this run resumes from a checkpoint, which does not hold theta0 and the "
                "controller's state; start it from step 0"
            )
        if args.fp16:
            raise ConfigError(
                "fp16 scales gradients and drops steps behind the loop's back; use bf16, or fp32"
            )
        optimizer = kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
            optimizer = optimizer.optimizer
        self.state, self.records = start(self.settings), []
        self.s_at_start = self._pending = self._eval_bpt = None
        self.skipped_steps, self.authority = 0, 0.0
        self.pulse = PulseTest(self.settings, wanted=self._wants_pulse)
        if self.tokens_per_epoch is None:
            count = count_tokens(kwargs["train_dataloader"])
            self.tokens_per_epoch, self.context_free_bpt = count
        self.tokens_per_pass = self.tokens_per_pass or self.tokens_per_epoch
        self.ending = Ending(
            self.settings,
            steps=state.max_steps,
            context_free_bpt=self.context_free_bpt,
            **self._end_options,
        )
        # Computed before the actuator takes theta0 and the hooks, so that a bad N costs nothing.
        self._pull(self.settings.lambda_init)
        self._actuator = Actuator(
            optimizer,
            adapter_weights(kwargs["model"]),
            kind=self.actuator_kind,
            prior_mean=self.prior_mean,
        )
        self._actuator.pull = self._pull(self.settings.lambda_init)
        self._param_at_start_bpt = self._param_bpt(self._actuator.read().sum_sq)
        self._is_main = state.is_world_process_zero
        self._last_log_step = self._window_step = 0
        self._window_loss = 0.0
        self._start_sec = self._window_sec = time.monotonic()
        self._window_tokens = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.ending is not None
        factor = self.ending.rate_factor(state.global_step)
        groups = kwargs["optimizer"].param_groups
        self._scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] *= factor
        self._rate = groups[0]["lr"]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Some schedulers compute the next rate from this one, and must not see the factor in it.
        for group, rate in zip(kwargs["optimizer"].param_groups, self._scheduled, strict=True):
            group["lr"] = rate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self._ends_window(state, control):
            control.should_log = True  # whatever logging_steps is
        return control

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        logs = kwargs["logs"]
        if "loss" not in logs:  # evaluation and the end-of-training summary log too
            return control
        steps = state.global_step - self._last_log_step
        self._last_log_step = state.global_step
        self._window_loss += float(logs["loss"]) * steps
        if self._ends_window(state, control):
            self._close_window(args, state, control, logs)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._eval_bpt = data_bpt(kwargs["metrics"].get("eval_loss", math.nan))
        if self._pending is not None:
            self._emit(self._pending)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pending is not None:
            self._emit(self._pending)
        self._actuator.remove()

    def summary(self) -> dict[str, Any]:
        """What the run's metadata says about the loop: final values, ranges, settings."""
        return loop_summary(self)

    def _pull(self, lam: float) -> float:
        assert self.tokens_per_epoch is not None
        return pull(lam, prior_sigma=self.prior_sigma, tokens=self.tokens_per_epoch)

    def _param_bpt(self, sum_sq: float) -> float:
        assert self.tokens_per_epoch is not None
        return param_bpt(sum_sq, prior_sigma=self.prior_sigma, tokens=self.tokens_per_epoch)

    def _ends_window(self, state: Any, control: Any) -> bool:
        at_end = state.global_step == state.max_steps or control.should_training_stop
        return bool(state.global_step % self.settings.control_interval == 0 or at_end)

    def _close_window(self, args: Any, state: Any, control: Any, logs: dict[str, Any]) -> None:
        assert self.ending is not None
        record, streak = self._measure(state, logs)
        judgment = self.ending.observe(record)
        record = replace(record, verdict=judgment.verdict if judgment else "")
        logs |= {f"scu/{name}": getattr(record, name) for name in _TRACKED}
        logs["learning_rate"] = self._rate
        reason, detail = self._why_end(streak)
        if args.world_size > 1:  # clocks differ: all ranks do what the first one decides
            reason, detail = broadcast_object_list([reason, detail])
        if reason:
            self.ending.begin(state.global_step, reason, detail)
            state.max_steps = self.ending.end_step
            # Lambda is held in the cooldown: the controller's, also where a pulse was to begin.
            self._actuator.pull = self._pull(self.state.lam)
            record = replace(record, lam=self.state.lam)
            if self.ending.end_step == state.global_step:
                control.should_training_stop = True
                # As at the last step of any run, which the trainer does not know this to be.
                control.should_evaluate |= args.eval_strategy == "steps"
                control.should_save |= args.save_strategy == "steps"
        if control.should_evaluate:
            self._pending = record
        else:
            self._emit(record)

    def _why_end(self, streak: int) -> tuple[str, str]:
        assert self.ending is not None
        if streak >= MAX_SKIPPED_IN_ROW:
            return "diverged", f"{streak} steps in a row without a finite gradient"
        return self.ending.why()

    def _measure(self, state: Any, logs: dict[str, Any]) -> tuple[StepRecord, int]:
        """The window as a record, after the controller has answered it; steps skipped in a row."""
        assert self.tokens_per_pass is not None
        assert self.ending is not None
        acted = self._actuator.pull
        sum_sq, shrink_rate, skipped, streak = self._actuator.read()
        steps = state.global_step - self._window_step
        loss_nats = self._window_loss / steps
        data, param = data_bpt(loss_nats), self._param_bpt(sum_sq)
        if self.s_at_start is None:
            self.s_at_start = _ratio(data, self._param_at_start_bpt)
        held = self._held_because(state.global_step, data + param, skipped)
        if not held:
            self.state = update(self.state, data_bpt=data, param_bpt=param, settings=self.settings)
        cools = self.ending.cools(state.global_step + 1)
        held_next = "cooldown" if cools else held
        lam = self.pulse.next_lambda(self.state.lam, self.ending.judgment, held=held_next)
        self._actuator.pull = self._pull(lam)
        self.skipped_steps += skipped
        if acted > 0.0:
            strongest = self._pull(self.settings.lambda_max) / acted
            self.authority += 0.5 * steps * (shrink_rate or 0.0) * strongest
        grad_norm = logs.get("grad_norm")
        now, tokens = time.monotonic(), round(state.epoch * self.tokens_per_pass)
        record = StepRecord(
            step=state.global_step,
            tokens_seen=tokens,
            loss_nats=loss_nats,
            data_bpt=data,
            param_bpt=param,
            s=self.state.s if not held else _ratio(data, param),
            lam=lam,
            integral=self.state.integral,
            error=self.state.error,
            learning_rate=self._rate,
            grad_norm=grad_norm,
            penalty_grad_ratio=acted * math.sqrt(sum_sq) / grad_norm if grad_norm else None,
            shrink_rate=shrink_rate,
            tokens_per_sec=(tokens - self._window_tokens) / max(now - self._window_sec, 1e-9),
            elapsed_sec=now - self._start_sec,
            skipped_steps=skipped,
            held=held,
        )
        self._window_loss, self._window_step = 0.0, state.global_step
        self._window_sec, self._window_tokens = now, tokens
        return record, streak

    def _held_because(self, step: int, measured: float, skipped: int) -> str:
        assert self.ending is not None
        pulsed = self.pulse.ends_window()
        if skipped:
            return "skipped steps"
        if not math.isfinite(measured):
            return "loss not finite"
        if self.ending.cools(step):
            return "cooldown"
        return "pulse" if pulsed else ""

    def _emit(self, record: StepRecord) -> None:
        record = replace(record, eval_bpt=self._eval_bpt)
        self._pending = self._eval_bpt = None
        self.records.append(record)
        if self.on_record is not None and self._is_main:
            self.on_record(record)


def _ratio(data: float, param: float) -> float:
    return info_ratio(data, param) if math.isfinite(data + param) else math.nan
