"""Ends a training on a signal without losing it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


@contextmanager
def stop_on_signal(trainer: Any) -> Iterator[list[int]]:
    """SIGINT or SIGTERM ends training after its step; a second one raises KeyboardInterrupt.

    Yields the signals received so far.
    """
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        # The same signal again: a launcher that passes Ctrl-C on sends another one, SIGTERM.
        if number in received:
            raise KeyboardInterrupt
        received.append(number)

    class StopAfterStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if args.world_size > 1 and _any_process(trainer.accelerator, bool(received)):
                # All processes must leave at the same step, or the rest wait for ever.
                received.append(0)
            if received:
                control.should_training_stop = control.should_log = True  # the last window ends
            return control

    stopper = StopAfterStep()
    trainer.add_callback(stopper)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        trainer.remove_callback(stopper)


def _any_process(accelerator: Any, flag: bool) -> bool:
    if flag:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())
