"""Linear layers that read the same input computed as one, with their adapters, from weights cast once a step: see stacks.py.

Layers with one input (query, key, value; gate, up) are found by watching a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunesmith.native.library import library
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import override
from tunesmith.speed.stacks import STACKS, Layer, Stack


def why_not(facts: Facts) -> str | None:
    """A model without blocks, or on another device."""
    if facts.blocks is None:
        return "the model has no list of blocks"
    return None if facts.on_cpu else "measured on processors only"


def apply(facts: Facts) -> Callable[[], None]:
    """The linear layers of the blocks, in stacks."""
    stacks = find_stacks(facts)
    if not stacks:
        raise Unfit("none of its linear layers share an input")
    forwards = {layer.module: _forward(stack, number, layer.module) for stack in stacks for number, layer in enumerate(stack.layers)}
    take_away = override(forwards)
    STACKS[facts.model] = stacks

    def undo() -> None:
        del STACKS[facts.model]
        take_away()

    return undo


def _forward(stack: Stack, number: int, module: Any) -> Callable[..., Any]:
    plain = module.forward

    def forward(x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if arguments or named or getattr(module, "disable_adapters", False):
            return plain(x, *arguments, **named)
        return stack.forward(number, x)

    return forward


def find_stacks(facts: Facts) -> list[Stack]:
    """The linear layers of the blocks by the input that they read, as a forward pass shows it."""
    assert facts.blocks is not None
    layers: dict[Any, Layer] = {}
    inside: set[Any] = set()
    for module in facts.modules_of_blocks:
        layer = None if module in inside else _layer(module)
        if layer is not None:
            layers[module] = layer
        if layer is not None or hasattr(module, "base_layer"):  # an adapter of another kind is computed by PEFT
            inside.update(module.modules())
    seen: list[tuple[Any, torch.Tensor]] = []

    def watch(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append((module, arguments[0]))

    handles = [module.register_forward_pre_hook(watch) for module in layers]
    try:
        facts.outputs()
    finally:
        for handle in handles:
            handle.remove()
    stacks: list[list[Layer]] = []
    known: set[Any] = set()
    last: torch.Tensor | None = None
    for module, hidden in seen:
        if module in known:  # blocks that share their weights
            last = None
            continue
        known.add(module)
        layer = layers[module]
        if hidden is last and all(layer.weight.dtype == other.weight.dtype for other in stacks[-1]):
            stacks[-1].append(layer)
        else:
            stacks.append([layer])
        last = hidden
    return [
        Stack(layers, torch.bfloat16 if facts.bf16 else layers[0].weight.dtype)
        for layers in stacks
        if facts.bf16 or len(layers) > 1 or layers[0].lora_a is not None
    ]


def _layer(module: Any) -> Layer | None:
    """A plain linear layer, or PEFT's wrapper of one with a single plain adapter; None for anything else."""
    if type(module) is torch.nn.Linear:
        return Layer(module, module.weight, module.bias)
    base = getattr(module, "base_layer", None)
    names = getattr(module, "active_adapters", [])
    if type(base) is not torch.nn.Linear or len(names) != 1 or not hasattr(module, "lora_A") or module.merged:
        return None
    name = names[0]
    if name not in module.lora_A or getattr(module, "lora_variant", {}):
        return None
    dropout = module.lora_dropout[name] if getattr(module.lora_dropout[name], "p", 0.0) > 0 else None
    lora_a, lora_b = module.lora_A[name], module.lora_B[name]
    if type(lora_a) is not torch.nn.Linear or type(lora_b) is not torch.nn.Linear or lora_b.bias is not None:
        return None
    if dropout is not None and (library() is None or type(dropout) is not torch.nn.Dropout):
        return None
    return Layer(module, base.weight, base.bias, lora_a.weight, lora_b.weight, float(module.scaling[name]), dropout)


LINEAR = Acceleration(
    name="linear",
    summary="layers with one input are one product, with their adapters, from weights cast once a step",
    why_not=why_not,
    apply=apply,
)
