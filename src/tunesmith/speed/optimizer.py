"""AdamW in one pass over memory, which also clips, since gradients are multiplied where they are read, and writes the weights a second time
in bf16, as the stacks of `linear` want them for the next step."""

from __future__ import annotations

import math
from typing import Any

import torch

from tunesmith.native.library import why_not_native
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts
from tunesmith.speed.stacks import STACKS, Copy, Stack

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW with its state, for fp32 parameters on the processor."""

    grad_scale = 1.0
    """What the gradients of the next step are multiplied by."""

    def __init__(self, params: Any, model: torch.nn.Module | None = None) -> None:
        """`model` is the one whose parameters these are."""
        super().__init__(params)
        self.model = model
        self._stacks: list[Stack] = []
        self._copies: dict[torch.Tensor, Copy] = {}

    def copies(self) -> dict[torch.Tensor, Copy]:
        """Those that the model's stacks keep, by parameter."""
        stacks = [] if self.model is None else STACKS.get(self.model, [])
        if stacks is not self._stacks or not self._copies:
            self._stacks, self._copies = stacks, {copy.weight: copy for stack in stacks for copy in stack.copies()}
        return self._copies

    def clip(self, max_norm: float) -> torch.Tensor:
        """The norm of all gradients; the next step scales them down to `max_norm`, as torch.nn.utils.clip_grad_norm_ would now."""
        from tunesmith.native.functions import grad_norm

        trained = (parameter for group in self.param_groups for parameter in group["params"])
        norm = grad_norm([parameter.grad.contiguous() for parameter in trained if parameter.grad is not None])
        self.grad_scale = min(max_norm / (norm + 1e-6), 1.0) if math.isfinite(norm) else 1.0
        return torch.tensor(norm)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            zeros = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state.update(step=torch.tensor(0.0), exp_avg=zeros, exp_avg_sq=zeros.clone())
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        from tunesmith.native.functions import adamw_step

        assert closure is None
        copies = self.copies()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            steps = [self._state_of(parameter)["step"] for parameter in trained]
            torch._foreach_add_(steps, 1)
            by_step: dict[int, list[tuple[Any, ...]]] = {}
            for parameter, number in zip(trained, torch.stack(steps).tolist(), strict=True):
                state, copy = self.state[parameter], copies.get(parameter)
                place = None if copy is None else copy.place
                tensors = parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"], place
                by_step.setdefault(int(number), []).append(tensors)
            for number, found in by_step.items():
                adamw_step(
                    *map(list, zip(*found, strict=True)),
                    lr=float(group["lr"]),
                    betas=group["betas"],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    step=number,
                    grad_scale=self.grad_scale,
                )
                for parameter, *_, place in found:
                    if place is not None:
                        copies[parameter].note()
        self.grad_scale = 1.0


def why_not(facts: Facts) -> str | None:
    """Another device or optimizer, nothing to train, or no compiled kernels."""
    if not facts.on_cpu:
        return "the device has its own"
    if not facts.training:
        return "nothing is trained"
    if facts.extra.get("optim", OPTIMIZERS[0]) not in OPTIMIZERS or facts.extra.get("optim_args"):
        return "another optimizer is asked for in train.extra"
    return why_not_native()


OPTIMIZER = Acceleration(
    name="optimizer",
    summary="AdamW reads gradients once, clips as it reads, and writes the weights in bf16 too",
    why_not=why_not,
    apply=lambda facts: lambda: None,  # the engine makes the optimizer: see engines/trainer.py
)
