"""Rotary positions of queries and keys in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

from tunesmith.native.library import why_not_native
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import body_of, override

WINDOWS = (", sliding_window=self.sliding_window", ", sliding_window=getattr(self.config, 'sliding_window', None)")
"""What Qwen and Mistral tell their attention beside what Llama does."""


def why_not(facts: Facts) -> str | None:
    """Another device, or no compiled kernels."""
    return why_not_native() if facts.on_cpu else "the device has its own"


def apply(facts: Facts) -> Callable[[], None]:
    """Attention layers of Llama's make: four projections, and positions that turn queries and keys."""
    forwards = {module: _forward(module) for module in facts.model.modules() if is_llama_like(module)}
    if not forwards:
        raise Unfit("the model's attention is of another make")
    return override(forwards)


def is_llama_like(module: torch.nn.Module) -> bool:
    """Whether the code of the module is that of Llama's attention, but for norms of queries and keys and a window."""
    if not type(module).__name__.endswith("Attention"):
        return False
    body = body_of(type(module))
    for window in WINDOWS:
        body = body.replace(window, "")
    for name in ("q", "k"):
        body = body.replace(
            f"self.{name}_norm(self.{name}_proj(hidden_states).view(hidden_shape))", f"self.{name}_proj(hidden_states).view(hidden_shape)"
        )
    return body == body_of(LlamaAttention)


def window_of(module: Any) -> int | None:
    """How many tokens a query of this attention layer sees, as transformers counts them; None for all."""
    return module.sliding_window if hasattr(module, "sliding_window") else getattr(module.config, "sliding_window", None)


def _forward(module: Any) -> Callable[..., Any]:
    from tunesmith.native.functions import rotary

    plain, window = module.forward, window_of(module)

    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, None)
        if past_key_values is not None or position_embeddings is None or interface is None:
            return plain(hidden_states, position_embeddings, attention_mask, past_key_values, **others)
        shape = hidden_states.shape[:-1]
        query, key, value = (
            getattr(module, name)(hidden_states).view(*shape, -1, module.head_dim) for name in ("q_proj", "k_proj", "v_proj")
        )
        if hasattr(module, "q_norm"):
            query, key = module.q_norm(query), module.k_norm(key)
        cos, sin = position_embeddings
        query, key = rotary(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        attended, weights = interface(
            module,
            query,
            key,
            value.transpose(1, 2),
            attention_mask,
            dropout=module.attention_dropout if module.training else 0.0,
            scaling=module.scaling,
            sliding_window=window,
            **others,
        )
        return module.o_proj(attended.reshape(*shape, -1).contiguous()), weights

    return forward


ROTARY = Acceleration(name="rotary", summary="rotary positions in one pass", why_not=why_not, apply=apply)
