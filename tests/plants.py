"""Simulated runs: a plant whose growth and pull are known, under the real controller."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from scu.control import ControlSettings, start, update
from scu.pulse import levels
from scu.trace import StepRecord

SETTINGS = ControlSettings(target_s=0.1)


def simulate(
    settings: ControlSettings = SETTINGS,
    *,
    steps: int = 600,
    pull: float = 0.1,
    growth: float = 0.05,
    restoring: float = 1.0,
    noise: float = 0.01,
    drift: float = 0.0,
    seed: int = 0,
    loss: Callable[[int], float] = lambda step: 6.0 + 2.0 * math.exp(-step / 40.0),
    wire: float = 1.0,
    warmup: int = 20,
) -> list[StepRecord]:
    """d ln P / d step = growth P^-restoring e^(drift step) - pull lambda wire, from P near 0."""
    draw, state = random.Random(seed), start(settings)
    log_p, records = math.log(1e-3), []
    for step in range(1, steps + 1):
        rate = min(1.0, step / max(warmup, 1))
        push = growth * math.exp(-restoring * log_p + drift * step)
        log_p += rate * (min(push, 1.0) - pull * wire * state.lam) + draw.gauss(0.0, noise)
        if step % settings.control_interval:
            continue
        data, param = loss(step) * math.exp(draw.gauss(0.0, 2.0 * noise)), math.exp(log_p)
        acted = state.lam
        state = update(state, data_bpt=data, param_bpt=param, settings=settings)
        records.append(
            StepRecord(
                step=step,
                tokens_seen=500 * step,
                loss_nats=data * math.log(2.0),
                data_bpt=data,
                param_bpt=param,
                s=state.s,
                lam=state.lam,
                integral=state.integral,
                error=state.error,
                learning_rate=1e-3 * rate,
                grad_norm=1.0,
                penalty_grad_ratio=0.1,
                shrink_rate=rate * pull * wire * acted,
                tokens_per_sec=1000.0,
                elapsed_sec=0.5 * step,
            )
        )
    return records


def changed(records: list[StepRecord], **values: object) -> list[StepRecord]:
    return [replace(record, **values) for record in records]


def pulsed(gain: float, *, noise: float = 0.01, windows: int = 4) -> list[StepRecord]:
    """Windows whose ln P answers lambda with a gain at once."""
    draw = random.Random(0)
    before = simulate(steps=200)
    records = [before[-1]]
    base, last = math.log(before[-1].param_bpt), before[-1].lam
    test = levels(last, SETTINGS, windows * 5.0)
    for lam in test:
        records[-1] = replace(records[-1], lam=lam)
        log_p = base + gain * math.log(lam / last) + draw.gauss(0.0, noise)
        step = records[-1].step + 5
        records.append(
            replace(records[-1], step=step, param_bpt=math.exp(log_p), held="pulse", lam=last)
        )
    return before[:-1] + records
