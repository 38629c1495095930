"""Norms in one pass over memory, with the dropout and the residual before them where a model keeps these together (BERT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.models.bert.modeling_bert import BertSelfOutput

from tunesmith.native.library import why_not_native
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit, difference
from tunesmith.speed.instances import body_of, override
from tunesmith.speed.kernels import draw_seed

PROBE_ROWS = 4


def why_not(facts: Facts) -> str | None:
    """Another device, or no compiled kernels."""
    return why_not_native() if facts.on_cpu else "the device has its own"


def apply(facts: Facts) -> Callable[[], None]:
    """Layer norms and RMS norms of the model, computed natively."""
    forwards: dict[torch.nn.Module, Callable[..., Any]] = {}
    for module in facts.model.modules():
        forward = _layer_norm(module) or _rms_norm(module)
        if forward is not None:
            forwards[module] = forward
    for module in facts.model.modules():
        if _is_output(module):
            forwards[module] = _output(module)
    if not forwards:
        raise Unfit("the model has no norm of a known kind")
    return override(forwards)


def _layer_norm(module: torch.nn.Module) -> Callable[..., Any] | None:
    if type(module) is not torch.nn.LayerNorm or len(module.normalized_shape) != 1 or module.weight is None or module.bias is None:
        return None
    from tunesmith.native.functions import layer_norm

    return lambda input: layer_norm(input.contiguous(), module.weight, module.bias, module.eps)


def _rms_norm(module: torch.nn.Module) -> Callable[..., Any] | None:
    """The native norm, when the module turns out to compute it: with the weight itself, or with 1 + weight (Gemma)."""
    if not type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    from tunesmith.native.functions import rms_norm

    weight: Any = module.weight
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
    with torch.no_grad():
        probe = torch.randn(PROBE_ROWS, len(weight), generator=torch.Generator().manual_seed(0))
        expected = module(probe)
        for offset in (0.0, 1.0):
            if difference(rms_norm(probe, weight, eps, offset), expected) <= 1:
                return lambda hidden_states: rms_norm(hidden_states.contiguous(), weight, eps, offset)
    return None


def _is_output(module: Any) -> bool:
    """Whether the module's code is BERT's: a dense layer, dropout, the residual and a norm."""
    return body_of(type(module)) == body_of(BertSelfOutput) and type(module.LayerNorm) is torch.nn.LayerNorm


def _output(module: Any) -> Callable[..., Any]:
    from tunesmith.native.functions import dropout_add_layer_norm

    plain = module.forward

    def forward(hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> Any:
        norm, p = module.LayerNorm, module.dropout.p if module.training else 0.0
        if input_tensor.dtype != torch.float32:
            return plain(hidden_states, input_tensor)
        hidden = module.dense(hidden_states)
        return dropout_add_layer_norm(hidden, input_tensor, norm.weight, norm.bias, norm.eps, p, draw_seed() if p else 0)

    return forward


NORM = Acceleration(
    name="norm", summary="norms in one pass, with dropout and residual where they stand together", why_not=why_not, apply=apply
)
