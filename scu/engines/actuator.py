"""How lambda reaches the weights: hooks on a torch optimizer.

    J(theta) = CE + (c/2) * sum((theta - theta0)^2)          c = lambda / (sigma^2 N), nats/token

`prox` (default) takes, after each Adam step, a proximal step on the penalty in Adam's own metric:

    Delta <- Delta / (1 + lr * c / (sqrt(v_hat) + eps))      Delta = theta - theta0

It has J's stationary points exactly, is stable for every c >= 0, does not enter Adam's moments and
is not diluted by gradient clipping. (AdamW's own decay is the approximate form, with other fixed
points: Zhuang et al., TMLR 2022, arXiv 2202.00089.) `gradient` adds c * Delta to the gradient
before the step, for optimizers without a second moment. `none` cuts the wire: S is measured, lambda
does nothing.

Also here, because it must share the hooks: a step whose gradients are not all finite is skipped,
before it can poison the weights. With a fused optimizer nothing reads from the device within a
step; read() does, once per window. (Without one, whether to skip is read at every step.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scu.control import ActuatorKind, PriorMean
from scu.errors import ConfigError, ModelError

_ADAPTER_MARKS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_UNPENALIZED_MARKS = ("lora_magnitude_vector", "modules_to_save", "bias")


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable LoRA A and B matrices of a model (also of DoRA and rsLoRA), by name.

    Magnitude vectors, biases and modules_to_save have no zero-mean prior and are not counted.
    Raises ModelError when there is no adapter, an A without its B, or a trainable weight of another
    kind: each would make ParamBPT silently wrong.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = {name: p for name, p in trainable.items() if _is_adapter_matrix(name)}
    if not chosen:
        raise ModelError(
            f"the model has {len(trainable)} trainable weights and no LoRA adapter among them; "
            "give the trainer a peft_config=LoraConfig(...) or a PeftModel"
        )
    for name in trainable.keys() - chosen.keys():
        if not any(mark in name for mark in _UNPENALIZED_MARKS):
            raise ModelError(
                f"trainable weight {name!r} is not part of a LoRA adapter; ParamBPT would not "
                "count it. Freeze it or list its module in modules_to_save"
            )
    for name in chosen:
        partner = name.replace("_A", "_#").replace("_B", "_A").replace("_#", "_B")
        if partner not in chosen:
            raise ModelError(
                f"adapter weight {name!r} is trainable but its partner {partner!r} is not"
            )
    return chosen


def _is_adapter_matrix(name: str) -> bool:
    parts = name.split(".")
    return any(mark in parts for mark in _ADAPTER_MARKS) and parts[-1] != "bias"


@dataclass
class _Group:
    options: dict[str, Any]
    """The optimizer's own parameter group: lr and betas are read from it at every step."""
    weights: list[Tensor]
    prior: list[Tensor] | None
    """theta0, weight by weight; None stands for zeros."""
    rate: float = 0.0
    """The learning rate of the last step; by the time of a read a scheduler has moved it on."""


class Reading(NamedTuple):
    """What Actuator.read found."""

    sum_sq: float
    """Of Delta, over all weights."""
    shrink_rate: float | None
    """Share of sum_sq that lambda's pull removes in one step, at its present strength: 2 sum(k
    Delta^2) / sum_sq, to first order in k. 0 where nothing pulls, None where the optimizer's metric
    is not known."""
    skipped: int
    """Steps skipped since the last read."""
    streak: int
    """Steps skipped in a row, up to now."""


class Actuator:
    """Applies lambda at every step of an optimizer, and skips steps that are not finite.

    Set `pull` to c = lambda / (sigma^2 N) (metrics.pull) whenever lambda changes. The weights must
    be fp32: a relative shrink of 1e-5 is below the resolution of bf16 and would be lost.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, nn.Parameter],
        *,
        kind: ActuatorKind = "prox",
        prior_mean: PriorMean = "init",
    ) -> None:
        _check(optimizer, weights, kind)
        self.pull = 0.0
        self._optimizer = optimizer
        prior = {w: w.detach().clone() for w in weights.values()} if prior_mean == "init" else None
        chosen = set(weights.values())
        self._groups = []
        for options in optimizer.param_groups:
            members = [w for w in options["params"] if w in chosen]
            if members:
                own = None if prior is None else [prior[w] for w in members]
                self._groups.append(_Group(options, members, own))
        self._members = [w for options in optimizer.param_groups for w in options["params"]]
        device = next(iter(weights.values())).device
        self._finite = torch.ones((), device=device)
        # Steps skipped since the last read, and how many in a row up to now; on the device.
        self._skipped = torch.zeros((), device=device)
        self._streak = torch.zeros((), device=device)
        self._hooks = [optimizer.register_step_pre_hook(self._before_step)]
        if kind == "prox":
            self._hooks.append(optimizer.register_step_post_hook(self._shrink))
        self._kind = kind
        self._acted = False  # since the last read

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()
        if hasattr(self._optimizer, "found_inf"):  # left at 1 it would skip every later step
            del self._optimizer.found_inf

    @torch.no_grad()
    def read(self) -> Reading:
        """What the window did, with one read from the device."""
        device = self._finite.device
        deltas = [
            group.weights if group.prior is None else torch._foreach_sub(group.weights, group.prior)
            for group in self._groups
        ]
        norms = [norm.to(device) for delta in deltas for norm in torch._foreach_norm(delta)]
        pulled = [
            norm.to(device)
            for group, delta in zip(self._groups, deltas, strict=True)
            for norm in self._pulled(group, list(delta))
        ]
        sum_sq = torch.stack(norms).square().sum()
        removed = torch.stack(pulled).square().sum() if pulled else torch.zeros((), device=device)
        values = torch.stack([sum_sq, removed, self._skipped, self._streak]).tolist()
        self._skipped.zero_()
        known = self._kind == "none" or not self._acted or bool(pulled)
        self._acted = False
        rate = 2.0 * values[1] / values[0] if values[0] > 0.0 else 0.0
        return Reading(values[0], rate if known else None, int(values[2]), int(values[3]))

    def _pulled(self, group: _Group, delta: list[Tensor]) -> Sequence[Tensor]:
        """Norms of sqrt(k) Delta, where a step takes Delta to (1 - k) Delta; empty if unknown."""
        if not self._acted:  # an optimizer that never called the hooks is not being pulled
            return []
        strength = group.rate * self.pull
        if isinstance(self._optimizer, torch.optim.SGD):
            lasting = strength / (1.0 - group.options["momentum"])
            return torch._foreach_norm(torch._foreach_mul(delta, math.sqrt(lasting)))
        states = [self._optimizer.state[weight] for weight in group.weights]
        moved = [i for i, state in enumerate(states) if "exp_avg_sq" in state]
        if not moved:
            return []
        k = self._coefficients(group, [states[i] for i in moved], strength)
        torch._foreach_sqrt_(k)
        return torch._foreach_norm(torch._foreach_mul(k, [delta[i] for i in moved]))

    @staticmethod
    def _bias(group: _Group, state: dict[str, Any]) -> Tensor:
        beta2 = group.options["betas"][1]
        # Never 0: a run whose first step was skipped has made no step yet.
        return torch.clamp(1.0 - beta2 ** torch.as_tensor(state["step"]), min=1.0 - beta2)

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in self._groups:
            group.rate = group.options["lr"]
        gradients = [w.grad for w in self._members if w.grad is not None]
        if not gradients:
            return
        device = self._finite.device
        norms = torch.stack([n.to(device) for n in torch._foreach_norm(gradients)])
        self._finite = norms.sum().isfinite().to(torch.float32)
        bad = 1.0 - self._finite
        self._skipped += bad
        self._streak = (self._streak + bad) * bad
        if optimizer.defaults.get("fused"):
            # The fused kernels skip by themselves, on the device, when found_inf is 1.
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif float(bad):
            for weight in self._members:
                weight.grad = None  # no gradient, no step
            return
        if self._kind == "gradient" and self.pull > 0.0:
            self._add_penalty()

    def _add_penalty(self) -> None:
        self._acted = True
        for group in self._groups:
            for i, weight in enumerate(group.weights):
                if weight.grad is not None:
                    delta = weight if group.prior is None else weight - group.prior[i]
                    weight.grad.add_(delta, alpha=self.pull)

    @torch.no_grad()
    def _shrink(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.pull == 0.0:
            return
        self._acted = True
        for group in self._groups:
            states = [optimizer.state[w] for w in group.weights]
            if all(states):
                self._shrink_group(group, group.weights, group.prior, states)
            else:  # a weight that never had a gradient has no second moment, and has not moved
                moved = [i for i, state in enumerate(states) if state]
                if moved:
                    prior = group.prior and [group.prior[i] for i in moved]
                    weights = [group.weights[i] for i in moved]
                    self._shrink_group(group, weights, prior, [states[i] for i in moved])

    def _shrink_group(
        self,
        group: _Group,
        weights: list[Tensor],
        prior: list[Tensor] | None,
        states: list[dict[str, Any]],
    ) -> None:
        # Delta <- (1 - k) Delta: one buffer in all.
        k = self._coefficients(group, states, group.rate * self.pull)
        torch._foreach_mul_(k, self._finite)
        if prior is None:
            torch._foreach_neg_(k)
            torch._foreach_addcmul_(weights, weights, k)
        else:
            torch._foreach_lerp_(weights, prior, k)

    def _coefficients(
        self, group: _Group, states: list[dict[str, Any]], strength: float
    ) -> list[Tensor]:
        """k = lr c / (sqrt(v_hat) + eps + lr c), weight by weight; strength is lr c."""
        # One bias correction for the group: its weights have made the same number of steps. (A
        # mixture's expert may lag; what that changes fades within 1 / (1 - beta2) steps.)
        k: list[Tensor] = list(torch._foreach_sqrt([state["exp_avg_sq"] for state in states]))
        torch._foreach_div_(k, self._bias(group, states[0]).sqrt().to(k[0].device))
        torch._foreach_add_(k, group.options["eps"] + strength)
        torch._foreach_reciprocal_(k)
        torch._foreach_mul_(k, strength)
        return k


def _check(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], kind: ActuatorKind
) -> None:
    for group in optimizer.param_groups:
        if group.get("weight_decay", 0.0) != 0.0:
            raise ConfigError(
                f"weight_decay is {group['weight_decay']} and must be 0: lambda is the only "
                "regularizer, a second one outside the loop would be charged to S"
            )
    if kind == "prox":
        name = type(optimizer).__name__
        if not isinstance(optimizer, torch.optim.Adam) or optimizer.defaults.get("amsgrad"):
            raise ConfigError(
                f"actuator prox needs Adam's second moment, and {name} does not keep it in full "
                "precision; use optim adamw_torch_fused, or actuator: gradient"
            )
    elif kind not in ("gradient", "none"):
        raise ConfigError(f"actuator must be prox, gradient or none, got {kind!r}")
    known = {w for group in optimizer.param_groups for w in group["params"]}
    for name, weight in weights.items():
        if weight not in known:
            raise ModelError(f"adapter weight {name!r} is trainable but not in the optimizer")
        if weight.dtype != torch.float32:
            raise ModelError(
                f"adapter weight {name!r} is {weight.dtype}: lambda's pull is below its "
                "resolution. Keep the adapter in float32; passed in callbacks=[...], the callback "
                "converts it by itself"
            )
