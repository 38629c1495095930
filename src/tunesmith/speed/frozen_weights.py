"""Frozen weights once in memory: in the matrices that products are computed from, and not as they were loaded beside these.

A weight that is still what its file holds gives its memory back; the system reads it again when someone asks. One that the type of the
products holds exactly becomes a part of the matrix, and is widened again afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tunesmith.models.mapped import give_back
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.stacks import STACKS


def why_not(facts: Facts) -> str | None:
    """Nothing is frozen, or another device."""
    if not facts.on_cpu:
        return "measured on processors only"
    if not facts.training or all(parameter.requires_grad for parameter in facts.model.parameters()):
        return "no weight is frozen"
    return None


def apply(facts: Facts) -> Callable[[], None]:
    """The frozen weights of the stacks that `linear` made."""
    pairs = [pair for stack in STACKS.get(facts.model, []) for pair in stack.frozen()]
    if not pairs:
        raise Unfit("`linear` holds no copy of a frozen weight")
    held: list[tuple[torch.Tensor, torch.dtype]] = []
    num_twice = 0
    for weight, place in pairs:
        if give_back(weight):
            continue
        if not torch.equal(place.to(weight.dtype), weight.detach()):
            num_twice += 1
            continue
        held.append((weight, weight.dtype))
        weight.data = place
    if num_twice == len(pairs):
        raise Unfit("they are not what the model's file holds, and have more digits than the type of the products")

    def undo() -> None:
        for weight, dtype in held:
            weight.data = weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    return undo


FROZEN_WEIGHTS = Acceleration(
    name="frozen_weights", summary="frozen weights are in memory once, as products read them", why_not=why_not, apply=apply
)
