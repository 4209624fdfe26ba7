"""The actuator against closed forms and a reference implementation."""

import math

import pytest
import torch
from torch import nn

from scu.engines.actuator import Actuator, adapter_weights
from scu.errors import ConfigError, ModelError


def weight(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def adam(*weights: nn.Parameter, **options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(weights), **({"lr": 0.01, "weight_decay": 0.0} | options))


def step_with(optimizer, weights, gradients) -> None:
    for w, g in zip(weights, gradients, strict=True):
        w.grad = g.clone()
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("prior_mean", ["init", "zero"])
def test_prox_divides_delta_by_its_closed_form_after_the_adam_step(fused, prior_mean):
    w, free = weight(5, 3), weight(5, 3)
    start = w.detach().clone() if prior_mean == "init" else torch.zeros(5, 3)
    optimizer, plain = adam(w, fused=fused), adam(free, fused=fused)
    actuator = Actuator(optimizer, {"lora_A": w}, prior_mean=prior_mean)
    actuator.pull = 0.7
    for i in range(4):
        gradient = [weight(5, 3, seed=i + 1).detach()]
        with torch.no_grad():
            free.copy_(w)
        step_with(plain, [free], gradient)
        v_hat = plain.state[free]["exp_avg_sq"] / (1 - 0.999 ** (i + 1))
        expected = start + (free.detach() - start) / (1 + 0.01 * 0.7 / (v_hat.sqrt() + 1e-8))
        step_with(optimizer, [w], gradient)
        torch.testing.assert_close(w.detach(), expected)


def test_prox_has_the_stationary_points_of_the_penalized_loss():
    """Quadratic loss h/2 (x - m)^2 with the penalty c/2 (x - x0)^2: x = (h m + c x0) / (h + c)."""
    curvature, goal = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([1.0, -2.0, 0.5])
    x = nn.Parameter(torch.tensor([0.2, 0.3, 0.4]))
    start = x.detach().clone()
    optimizer = adam(x, lr=0.02, betas=(0.9, 0.99))
    Actuator(optimizer, {"lora_A": x}).pull = 0.5
    for i in range(6000):
        if i == 3000:
            optimizer.param_groups[0]["lr"] = 5e-4
        step_with(optimizer, [x], [curvature * (x.detach() - goal)])
    torch.testing.assert_close(
        x.detach(), (curvature * goal + 0.5 * start) / (curvature + 0.5), atol=5e-3, rtol=5e-3
    )


def test_gradient_adds_the_penalty_gradient_and_nothing_after_the_step():
    w = weight(4)
    start = w.detach().clone()
    optimizer = torch.optim.SGD([w], lr=0.1)
    Actuator(optimizer, {"lora_A": w}, kind="gradient").pull = 2.0
    with torch.no_grad():
        w.add_(1.0)
    step_with(optimizer, [w], [torch.full((4,), 3.0)])
    torch.testing.assert_close(w.detach(), start + 1.0 - 0.1 * (3.0 + 2.0 * 1.0))


def test_gradient_with_a_zero_prior_pulls_towards_zero():
    w = weight(4)
    optimizer = torch.optim.SGD([w], lr=0.1)
    Actuator(optimizer, {"lora_A": w}, kind="gradient", prior_mean="zero").pull = 2.0
    before = w.detach().clone()
    step_with(optimizer, [w], [torch.zeros(4)])
    torch.testing.assert_close(w.detach(), 0.8 * before)


@pytest.mark.parametrize("kind", ["prox", "none"])
def test_without_pull_or_wire_the_optimizer_steps_as_if_nothing_were_there(kind):
    w, free = weight(6), weight(6)
    optimizer, plain = adam(w), adam(free)
    actuator = Actuator(optimizer, {"lora_A": w}, kind=kind)
    actuator.pull = 0.0 if kind == "prox" else 5.0
    for i in range(3):
        gradient = [weight(6, seed=i + 1).detach()]
        step_with(optimizer, [w], gradient)
        step_with(plain, [free], gradient)
    assert torch.equal(w, free)


def test_enormous_lambda_ends_at_the_prior_and_never_beyond():
    w = weight(8)
    start = w.detach().clone()
    optimizer = adam(w)
    Actuator(optimizer, {"lora_A": w}).pull = 1e12
    for i in range(5):
        step_with(optimizer, [w], [weight(8, seed=i).detach()])
    torch.testing.assert_close(w.detach(), start, atol=1e-6, rtol=0)


def test_read_sums_delta_squared_over_all_parameter_groups():
    a, b = weight(3, 4), weight(4, 2, seed=1)
    optimizer = torch.optim.AdamW(
        [{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}, {"params": []}], weight_decay=0.0
    )
    actuator = Actuator(optimizer, {"lora_A": a, "lora_B": b})
    assert actuator.read() == (0.0, 0.0, 0, 0)
    with torch.no_grad():
        a.add_(0.5)
        b.sub_(2.0)
    assert actuator.read()[0] == pytest.approx(12 * 0.25 + 8 * 4.0)


def test_a_zero_prior_counts_the_weights_themselves():
    a = weight(3, 4)
    actuator = Actuator(adam(a), {"lora_A": a}, prior_mean="zero")
    assert actuator.read()[0] == pytest.approx(float(a.detach().square().sum()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(fused, poison, first):
    w = weight(4)
    optimizer = adam(w, fused=fused)
    actuator = Actuator(optimizer, {"lora_A": w})
    actuator.pull = 0.3
    good = [weight(4, seed=2).detach()]
    if not first:
        step_with(optimizer, [w], good)
    before = w.detach().clone()
    step_with(optimizer, [w], [torch.tensor([1.0, poison, 0.0, 0.0])])
    step_with(optimizer, [w], [torch.tensor([1.0, poison, 0.0, 0.0])])
    assert torch.equal(w.detach(), before)
    assert actuator.read()[2:] == (2, 2)
    step_with(optimizer, [w], good)
    assert torch.isfinite(w).all()
    assert not torch.equal(w.detach(), before)
    assert actuator.read()[2:] == (0, 0)


def test_steps_without_any_gradient_are_no_steps():
    w = weight(4)
    optimizer = adam(w)
    actuator = Actuator(optimizer, {"lora_A": w}, kind="gradient")
    actuator.pull = 1.0
    optimizer.step()
    assert actuator.read() == (0.0, 0.0, 0, 0)


def test_a_weight_without_a_gradient_gets_no_penalty_gradient():
    a, b = weight(2), weight(2, seed=1)
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    Actuator(optimizer, {"lora_A": a, "lora_B": b}, kind="gradient", prior_mean="zero").pull = 1.0
    before = b.detach().clone()
    a.grad = torch.zeros(2)
    optimizer.step()
    assert torch.equal(b.detach(), before)


@pytest.mark.parametrize("kind", ["prox", "gradient"])
def test_the_shrink_rate_is_what_the_pull_takes_off_the_distance_in_a_step(kind):
    """Once the gradients are silent, the distance falls by this rate and nothing else."""
    w = nn.Parameter(torch.zeros(50))
    sgd = kind == "gradient"
    optimizer = torch.optim.SGD([w], lr=0.01) if sgd else adam(w, betas=(0.0, 0.9999))
    actuator = Actuator(optimizer, {"lora_A": w}, kind=kind)
    step_with(optimizer, [w], [weight(50, seed=3).detach()])
    if not sgd:
        optimizer.state[w]["step"] += 1e6  # so that the second moment's correction rests
    actuator.pull = 0.001 if not sgd else 0.05
    step_with(optimizer, [w], [torch.zeros(50)])
    before, rate, _, _ = actuator.read()
    step_with(optimizer, [w], [torch.zeros(50)])
    assert 1.0 - actuator.read().sum_sq / before == pytest.approx(rate, rel=0.02)
    assert rate > 1e-4


def test_the_shrink_rate_is_zero_without_a_pull_and_unknown_without_a_known_metric():
    w = weight(4)
    optimizer = torch.optim.Adagrad([w], lr=0.1)
    actuator = Actuator(optimizer, {"lora_A": w}, kind="gradient", prior_mean="zero")
    assert actuator.read().shrink_rate == 0.0
    actuator.pull = 1.0
    step_with(optimizer, [w], [torch.ones(4)])
    assert actuator.read().shrink_rate is None
    assert actuator.read().shrink_rate == 0.0  # no step since: nothing pulled


def test_a_removed_actuator_leaves_the_optimizer_alone():
    w = weight(4)
    optimizer = adam(w)
    actuator = Actuator(optimizer, {"lora_A": w}, prior_mean="zero")
    actuator.pull = 1e9
    actuator.remove()
    before = w.detach().clone()
    step_with(optimizer, [w], [torch.ones(4)])
    torch.testing.assert_close(w.detach(), before - 0.01, atol=1e-4, rtol=0)


def test_a_removed_actuator_does_not_skip_steps_after_a_bad_one():
    w = weight(4)
    optimizer = adam(w, fused=True)
    actuator = Actuator(optimizer, {"lora_A": w})
    step_with(optimizer, [w], [torch.full((4,), math.nan)])
    actuator.remove()
    before = w.detach().clone()
    step_with(optimizer, [w], [torch.ones(4)])
    assert not torch.equal(w.detach(), before)


@pytest.mark.parametrize("prior_mean", ["init", "zero"])
def test_a_weight_that_never_had_a_gradient_is_left_alone(prior_mean):
    a, b = weight(2), weight(2, seed=1)
    optimizer = adam(a, b)
    actuator = Actuator(optimizer, {"lora_A": a, "lora_B": b}, prior_mean=prior_mean)
    actuator.pull = 1e9
    before = b.detach().clone()
    a.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(b.detach(), before)


@pytest.mark.parametrize(
    ("optimizer", "kind", "message"),
    [
        (lambda w: adam(w, weight_decay=0.01), "prox", "weight_decay is 0.01 and must be 0"),
        (lambda w: torch.optim.SGD([w], lr=0.1), "prox", "SGD does not keep it"),
        (lambda w: adam(w, amsgrad=True), "prox", "prox needs Adam's second moment"),
        (lambda w: adam(w), "loss", "actuator must be prox, gradient or none, got 'loss'"),
    ],
)
def test_optimizers_that_cannot_be_governed_are_refused(optimizer, kind, message):
    w = weight(3)
    with pytest.raises(ConfigError, match=message):
        Actuator(optimizer(w), {"lora_A": w}, kind=kind)


def test_an_adapter_weight_outside_the_optimizer_is_refused():
    with pytest.raises(ModelError, match="not in the optimizer"):
        Actuator(adam(weight(2)), {"lora_A": weight(3)})


def test_a_half_precision_adapter_is_refused():
    w = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(ModelError, match=r"torch\.bfloat16: lambda's pull is below its"):
        Actuator(adam(w), {"lora_A": w})


class Model(nn.Module):
    """Parameters by dotted name, as a PeftModel has them."""

    def __init__(self, **trainable: bool) -> None:
        super().__init__()
        for name, requires_grad in trainable.items():
            module: nn.Module = self
            *path, last = name.split("__")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.zeros(2), requires_grad))


def test_exactly_the_trainable_matrices_of_the_adapter_are_chosen():
    model = Model(
        q__base__weight=False,
        q__lora_A__default__weight=True,
        q__lora_B__default__weight=True,
        q__lora_magnitude_vector__default__weight=True,
        q__lora_A__frozen__weight=False,
        e__lora_embedding_A__default=True,
        e__lora_embedding_B__default=True,
        score__modules_to_save__default__weight=True,
        q__lora_B__default__bias=True,
    )
    assert set(adapter_weights(model)) == {
        "q.lora_A.default.weight",
        "q.lora_B.default.weight",
        "e.lora_embedding_A.default",
        "e.lora_embedding_B.default",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"q__weight": True}, "1 trainable weights and no LoRA adapter"),
        ({"q__weight": False}, "0 trainable weights and no LoRA adapter"),
        (
            {"q__lora_A__weight": True, "q__lora_B__weight": True, "k__weight": True},
            "'k.weight' is",
        ),
        ({"q__lora_A__weight": True, "q__lora_B__weight": False}, "its partner 'q.lora_B.weight'"),
    ],
)
def test_an_adapter_that_would_be_miscounted_is_refused(names, message):
    with pytest.raises(ModelError, match=message):
        adapter_weights(Model(**names))
