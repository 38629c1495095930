"""Dropout from 16 random bits an element rather than from one draw of a serial generator each.

Layers of dropout are given a `forward` of their own. Modules whose `forward` calls `nn.functional.dropout` (BART, Marian, Pegasus) keep
their code, in which the name `nn` means a namespace that differs from torch's in this function alone.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts
from tunesmith.speed.instances import override
from tunesmith.speed.kernels import dropout

CALLED = {"nn", "functional", "dropout"}
"""Names that the code of such a `forward` has."""
SETTINGS = ("dropout", "activation_dropout")
"""Attributes of such a module that hold a probability."""


def why_not(facts: Facts) -> str | None:
    """Nothing to drop, or a device whose generator is parallel."""
    if not facts.on_cpu:
        return "the device draws in parallel"
    if not facts.training:
        return "nothing is dropped in prediction"
    return None if _forwards(facts.model) else "the model has no layers of dropout"


def apply(facts: Facts) -> Callable[[], None]:
    """Dropout with draws of its own, seeded from torch's generator."""
    return override(_forwards(facts.model))


def _forwards(model: torch.nn.Module) -> dict[torch.nn.Module, Callable[..., Any]]:
    found: dict[torch.nn.Module, Callable[..., Any]] = {}
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            if module.p > 0:
                found[module] = _layer(module)
        elif any(getattr(module, name, 0) > 0 for name in SETTINGS if isinstance(getattr(module, name, 0), float)):
            forward = _calling(module)
            if forward is not None:
                found[module] = forward
    return found


def _layer(layer: torch.nn.Dropout) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> Any:
        return dropout(input, layer.p) if layer.training else input

    return forward


def _calling(module: torch.nn.Module) -> Callable[..., Any] | None:
    """The module's `forward`, to which `nn.functional.dropout` is the function below; None where it does not call it."""
    whole = type(module).forward
    # what checkpoints activations wraps the code of a block
    forward: Any = getattr(whole, "__wrapped__", None) if isinstance(module, GradientCheckpointingLayer) else whole
    if (
        not isinstance(forward, FunctionType)
        or forward.__globals__.get("nn") is not torch.nn
        or not CALLED.issubset(forward.__code__.co_names)
    ):
        return None
    names = {**forward.__globals__, "nn": _NN}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__

    def call(*arguments: Any, **named: Any) -> Any:
        return (whole if getattr(module, "gradient_checkpointing", False) else copy)(module, *arguments, **named)

    return call


def _functional_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return dropout(input, p) if training and p > 0 else input


_NN = SimpleNamespace(**{**vars(torch.nn), "functional": SimpleNamespace(**{**vars(torch.nn.functional), "dropout": _functional_dropout})})


DROPOUT = Acceleration(name="dropout", summary="masks from 16 random bits an element, drawn in parallel", why_not=why_not, apply=apply)
