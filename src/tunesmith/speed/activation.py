"""Activations in one pass over memory, gated ones (SwiGLU, GeGLU) with their gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from tunesmith.native.library import why_not_native
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import body_of, override


def why_not(facts: Facts) -> str | None:
    """Another device, or no compiled kernels."""
    return why_not_native() if facts.on_cpu else "the device has its own"


def apply(facts: Facts) -> Callable[[], None]:
    """GELU layers (exact ones in bf16), and multi-layer perceptrons whose gate and up projections meet in down_proj(act(gate) * up)."""
    forwards: dict[torch.nn.Module, Callable[..., Any]] = {}
    for module in facts.model.modules():
        product = _gated(getattr(module, "act_fn", None)) if body_of(type(module)) == body_of(LlamaMLP) else None
        if product is not None:
            forwards[module] = _perceptron(module, product)
        kind = gelu_kind(module)
        if kind == "tanh" or (kind == "none" and facts.bf16):  # in fp32 torch's exact one is as fast
            forwards[module] = _gelu(module, kind)
    if not forwards:
        raise Unfit("the model has no activation that torch is slow at")
    return override(forwards)


def _gelu(module: torch.nn.Module, kind: str) -> Callable[..., Any]:
    from tunesmith.native.functions import gelu

    plain = module.forward
    return lambda input: gelu(input.contiguous(), kind) if kind == "tanh" or input.dtype == torch.bfloat16 else plain(input)


def gelu_kind(module: Any) -> str | None:
    """`none` or `tanh`, as torch's approximate=, of a GELU layer."""
    if type(module) is torch.nn.GELU:
        return str(module.approximate)
    if type(module) is GELUActivation:
        return "none"
    return "tanh" if type(module) in (GELUTanh, NewGELUActivation) else None


def is_silu(module: Any) -> bool:
    """Whether a module is SiLU."""
    return type(module) in (SiLUActivation, torch.nn.SiLU)


def _gated(activation: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """act(gate) * up for an activation."""
    from tunesmith.native.functions import gelu_mul, silu_mul

    if is_silu(activation):
        return silu_mul
    kind = gelu_kind(activation)
    return None if kind is None else lambda gate, up: gelu_mul(gate, up, kind)


def _perceptron(module: Any, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    return lambda x: module.down_proj(product(module.gate_proj(x), module.up_proj(x)))


ACTIVATION = Acceleration(
    name="activation", summary="activations in one pass, with their gate where they have one", why_not=why_not, apply=apply
)
