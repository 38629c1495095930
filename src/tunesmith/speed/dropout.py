"""Dropout from 16 random bits an element rather than from one draw of a serial generator each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts
from tunesmith.speed.instances import override
from tunesmith.speed.kernels import dropout


def why_not(facts: Facts) -> str | None:
    """Nothing to drop, or a device whose generator is parallel."""
    if not facts.on_cpu:
        return "the device draws in parallel"
    if not facts.training:
        return "nothing is dropped in prediction"
    return None if _layers(facts.model) else "the model has no layers of dropout"


def apply(facts: Facts) -> Callable[[], None]:
    """Dropout layers with draws of their own, seeded from torch's generator."""
    return override({layer: _forward(layer) for layer in _layers(facts.model)})


def _layers(model: torch.nn.Module) -> list[torch.nn.Dropout]:
    return [module for module in model.modules() if type(module) is torch.nn.Dropout and module.p > 0]


def _forward(layer: torch.nn.Dropout) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> Any:
        return dropout(input, layer.p) if layer.training else input

    return forward


DROPOUT = Acceleration(name="dropout", summary="masks from 16 random bits an element, drawn in parallel", why_not=why_not, apply=apply)
