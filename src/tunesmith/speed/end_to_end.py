"""Tokens end to end: the blocks of a model compute the real tokens of a batch and no padding.

A batch [rows, tokens] goes into the model as ever. Before the first block its real tokens are laid end to end, [1, all tokens];
after the last they are put back in their places. Attention, reached through transformers' AttentionInterface, keeps the rows apart.
What stands outside the blocks (embeddings, pooler, head) sees what it always saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface

from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import compute_dtype
from tunesmith.speed.kernels import draw_seed
from tunesmith.speed.varlen import varlen_attention

NAME = "tunesmith_end_to_end"
LENGTH_MULTIPLE = 32
"""All tokens are filled up to a multiple of it by one more example, of which nothing is used: every new shape has kernels compiled and
kept."""


@dataclass
class Layout:
    """Where the tokens of the forward pass under way lie."""

    boundaries: torch.Tensor | None = None
    """Where each row begins and ends, in tokens, [rows + 1] int32; None: the pass is not laid out so."""
    index: torch.Tensor | None = None
    """Place of each token in the padded batch, [all tokens]; None: the batch came end to end."""
    shape: tuple[int, int] = (0, 0)
    """Of the padded batch."""
    num_tokens: int = 0
    """Real ones."""
    num_attended: int = 0
    """Attention layers that this pass went through."""
    packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Tensors that were laid end to end, beside what they were made of, by identity of the latter."""

    def begin(self, inputs: dict[str, Any]) -> bool:
        """Reads the layout of a batch; whether its tokens can lie end to end."""
        self.boundaries, self.index, self.num_attended = None, None, 0
        self.packed.clear()
        ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        if ids is None or ids.dim() != 2 or inputs.get("past_key_values") is not None or inputs.get("use_cache"):
            return False
        if mask is None:
            if positions is None or len(ids) != 1:
                return False
            starts = torch.nonzero(positions[0] == 0)[:, 0]
            self.boundaries = torch.cat([starts, starts.new_tensor([ids.shape[1]])]).int()
            return True
        if mask.dim() != 2 or mask.shape != ids.shape:
            return False
        index = torch.nonzero(mask.flatten())[:, 0]
        ends = mask.sum(1).cumsum(0)
        self.num_tokens = len(index)
        fill = -self.num_tokens % LENGTH_MULTIPLE
        if fill:
            index = torch.cat([index, index[:1].expand(fill)])
            ends = torch.cat([ends, ends[-1:] + fill])
        self.boundaries = torch.cat([ends.new_zeros(1), ends]).int()
        self.index, self.shape = index, (mask.shape[0], mask.shape[1])
        return True

    def pack(self, value: Any) -> Any:
        """The same with every tensor [rows or 1, tokens, ...] laid end to end."""
        if isinstance(value, tuple):
            return tuple(self.pack(item) for item in value)
        if self.index is None or not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[1] != self.shape[1]:
            return value
        if value.shape[0] not in (1, self.shape[0]):
            return value
        if id(value) not in self.packed:
            place = self.index if value.shape[0] == self.shape[0] else self.index % self.shape[1]
            self.packed[id(value)] = value, value.flatten(0, 1).index_select(0, place)[None]
        return self.packed[id(value)][1]

    def unpack(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, all tokens, hidden] back in the places of the padded batch; padding is 0."""
        assert self.index is not None
        padded = hidden.new_zeros(self.shape[0] * self.shape[1], hidden.shape[2])
        padded = padded.index_copy(0, self.index[: self.num_tokens], hidden[0, : self.num_tokens])
        return padded.view(*self.shape, -1)


_LAYOUTS: WeakKeyDictionary[torch.nn.Module, Layout] = WeakKeyDictionary()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [1, tokens, heads, head size] among the tokens of each row; called by transformers with [1, heads, tokens, head size]."""
    strange = [name for name in ("softcap", "s_aux", "position_bias", "cache") if others.get(name) is not None]
    if strange:
        raise Unfit(f"attention with {', '.join(strange)}")
    layout = _LAYOUTS[module]
    assert layout.boundaries is not None
    layout.num_attended += 1
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # What attention is told is one more than what the mask of an encoder is made of.
    window = sliding_window if sliding_window is None or causal else sliding_window - 1
    dtype = compute_dtype(value)
    query, key, value = (states.squeeze(0).transpose(0, 1).to(dtype) for states in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        attended = varlen_attention(
            query,
            key,
            value,
            layout.boundaries,
            causal=causal,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            dropout=dropout,
            seed=draw_seed() if dropout else 0,
            window=window,
        )
    return attended[None], None


def why_not(facts: Facts) -> str | None:
    """A model without blocks, or one whose blocks are computed again in the backward pass."""
    if facts.blocks is None:
        return "the model has no list of blocks"
    if facts.model.config.is_encoder_decoder:
        return "each token of the decoder attends to another text, whose tokens lie elsewhere"
    if not facts.on_cpu:
        return "the model does not compute on the processor: transformers chooses its attention"
    if any(facts.extra.get(name) for name in ("gradient_checkpointing", "activation_checkpointing")):
        return "activation checkpointing computes the blocks twice"
    return None


def apply(facts: Facts) -> Callable[[], None]:
    """Lays the tokens of every forward pass end to end that is no step of generation."""
    AttentionInterface.register(NAME, attend)
    assert facts.blocks is not None
    blocks = list(facts.blocks[1])
    passes = _Passes(facts.model, facts.blocks[1])
    undo = passes.watch(blocks)
    try:
        facts.outputs()
        if passes.layout.num_attended < len(blocks):
            raise Unfit("its attention does not go through transformers' AttentionInterface")
    except Exception:
        undo()
        raise
    return undo


class _Passes:
    """The hooks that lay out each forward pass of a model."""

    def __init__(self, model: torch.nn.Module, blocks: torch.nn.ModuleList) -> None:
        self.model, self.layout = model, Layout()
        self.modules = list(blocks.modules())
        configs: dict[int, Any] = {id(module.config): module.config for module in (model, *self.modules) if hasattr(module, "config")}
        self.configs = [(config, config._attn_implementation) for config in configs.values()]
        self.laid_out = False
        """Whether the pass under way is one."""
        self.inside = False
        """Whether it is between the first block and the last."""

    def watch(self, blocks: list[torch.nn.Module]) -> Callable[[], None]:
        """Hangs the hooks on model and blocks; returns what takes them away."""
        for module in self.modules:
            _LAYOUTS[module] = self.layout
        handles = [
            self.model.register_forward_pre_hook(self.begin, with_kwargs=True),
            *(block.register_forward_pre_hook(self.enter, with_kwargs=True) for block in blocks),
            blocks[-1].register_forward_hook(self.leave),
            self.model.register_forward_hook(self.end, always_call=True),
        ]

        def undo() -> None:
            for handle in handles:
                handle.remove()
            for module in self.modules:
                _LAYOUTS.pop(module, None)

        return undo

    def begin(self, module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        """Before the model."""
        self.laid_out, self.inside = self.layout.begin(inputs), False
        if self.laid_out:
            for config, _ in self.configs:
                config._attn_implementation = NAME

    def end(self, *_: Any) -> None:
        """After the model, or when it raised."""
        if self.laid_out:
            for config, name in self.configs:
                config._attn_implementation = name
        self.laid_out = False
        self.layout.packed.clear()

    def enter(self, module: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        """Before a block."""
        if not self.laid_out:
            return None
        if not arguments:
            raise Unfit("its blocks take the hidden states by name")
        hidden, *others = arguments
        hidden, self.inside = hidden if self.inside else self.layout.pack(hidden), True
        return (hidden, *map(self.layout.pack, others)), {name: self.layout.pack(value) for name, value in inputs.items()}

    def leave(self, module: Any, arguments: Any, output: Any) -> Any:
        """After the last block."""
        if not self.laid_out or self.layout.index is None:
            return output
        self.inside = False
        if isinstance(output, tuple):
            return (self.layout.unpack(output[0]), *output[1:])
        return self.layout.unpack(output)


END_TO_END = Acceleration(
    name="end_to_end", summary="real tokens lie end to end through the blocks, and no padding is computed", why_not=why_not, apply=apply
)
