"""Tokens end to end: the blocks of a model compute the real tokens of a batch and no padding.

A batch [rows, tokens] goes into the model as ever. Before the first block its real tokens are laid end to end, [1, all tokens];
after the last they are put back in their places. Attention, reached through transformers' AttentionInterface, keeps the rows apart.
What stands outside the blocks (embeddings, pooler, head) sees what it always saw. Of an encoder-decoder both sides are laid out, each by
the tokens of its own text, and attention that is not causal in the decoder is to the text that is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface

from tunesmith.models.blocks import find_blocks
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
    """Where the tokens of the forward pass under way lie, of one side of a model."""

    prefix: str = ""
    """What stands before the names of the model's inputs: `decoder_`."""
    source: Layout | None = None
    """Of a decoder, that of the text that it attends to."""
    boundaries: torch.Tensor | None = None
    """Where each row begins and ends, in tokens, [rows + 1] int32; None: the pass is not laid out so."""
    index: torch.Tensor | None = None
    """Place of each token in the padded batch, [all tokens]; None: the batch came end to end."""
    shape: tuple[int, int] = (0, 0)
    """Of the padded batch."""
    num_tokens: int = 0
    """Real ones."""
    is_one_of_two: bool = False
    """Whether the model has another side."""
    num_attended: int = 0
    """Attention layers that this pass went through."""
    packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Tensors that were laid end to end, beside what they were made of, by identity of the latter."""
    laid_out: bool = False
    """Whether the pass under way is one."""
    read: torch.Tensor | None = None
    """Which tokens the last block was given, their places; None: all."""
    num_read: int = 0
    """How many of these are read."""
    given: torch.Tensor | None = None
    """What the last block would have been given, [1, tokens, hidden], where it is given fewer tokens."""
    whole: list[torch.Tensor] = field(default_factory=list)
    """Keys and values [1, tokens, width] of the text that is attended to, where a block is given fewer tokens than that has."""
    _longest_first: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin(self, inputs: dict[str, Any]) -> bool:
        """Reads the layout of a batch; whether its tokens can lie end to end."""
        self.boundaries, self.index, self.read, self.num_attended = None, None, None, 0
        self.packed.clear()
        ids, mask, positions = (inputs.get(f"{self.prefix}{name}") for name in ("input_ids", "attention_mask", "position_ids"))
        if ids is None or ids.dim() != 2 or inputs.get("past_key_values") is not None or inputs.get("use_cache"):
            return False
        if mask is None and self.source is not None:
            mask = torch.ones_like(ids)
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
        if self.is_one_of_two:
            fill = fill or LENGTH_MULTIPLE  # so that both sides have as many rows
        if fill:
            index = torch.cat([index, index[:1].expand(fill)])
            ends = torch.cat([ends, ends[-1:] + fill])
        self.boundaries = torch.cat([ends.new_zeros(1), ends]).int()
        self.index, self.shape = index, (mask.shape[0], mask.shape[1])
        return True

    def attended(self, causal: bool) -> Layout:
        """The tokens that those of each row attend to: their own, or those of a text."""
        return self if self.source is None or causal else self.source

    def longest_first(self) -> torch.Tensor:
        """The rows that have tokens, int32, in the order in which attention had best compute them: threads then finish together."""
        assert self.boundaries is not None
        if self._longest_first is None or self._longest_first[0] is not self.boundaries:
            lengths = self.boundaries.diff()
            self._longest_first = self.boundaries, lengths.argsort(descending=True)[: int((lengths > 0).sum())].int()
        return self._longest_first[1]

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
        places = self.index[: self.num_tokens] if self.read is None else self.index[self.read[: self.num_read]]
        padded = hidden.new_zeros(self.shape[0] * self.shape[1], hidden.shape[2])
        padded = padded.index_copy(0, places, hidden[0, : len(places)])
        return padded.view(*self.shape, -1)


LAYOUTS: WeakKeyDictionary[torch.nn.Module, Layout] = WeakKeyDictionary()
"""Of each module of the blocks."""


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
    strange = [name for name in ("softcap", "s_aux", "cache") if others.get(name) is not None]
    bias = others.get("position_bias")
    if strange or (bias is not None and bias.dim() != 1):
        raise Unfit(f"attention with {', '.join(strange or ['position_bias'])}")
    layout = LAYOUTS[module]
    layout.num_attended += 1
    if layout.whole:
        key, value = (
            whole.view(1, -1, *states.shape[1::2]).transpose(1, 2) for whole, states in zip(layout.whole, (key, value), strict=True)
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    read = layout.attended(causal)
    assert layout.boundaries is not None
    assert read.boundaries is not None
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
            key_boundaries=read.boundaries,
            bias=bias.view(query.shape[1], -1) if bias is not None and len(bias) else None,
        )
    return attended[None], None


def _by_distance(module: Any, layout: Layout) -> Callable[..., torch.Tensor]:
    """T5's bias of positions, [heads * distances], instead of one for each two tokens of the batch."""
    plain = module.compute_bias

    def compute_bias(query_length: int, key_length: int, **others: Any) -> torch.Tensor:
        if module.config._attn_implementation != NAME:
            return plain(query_length, key_length, **others)  # type: ignore[no-any-return]
        assert layout.boundaries is not None
        longest = int(layout.boundaries.diff().max())
        bias: torch.Tensor = plain(1, 2 * longest - 1, **{**others, "past_seen_tokens": longest - 1})
        return bias[0, :, 0].flatten()

    return compute_bias


def _without_bias(module: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
    """T5's attention to the source adds zeros, one for each two tokens of the batch; here, none."""
    if module.config._attn_implementation == NAME and inputs.get("position_bias") is None:
        return arguments, {**inputs, "position_bias": torch.zeros(0)}
    return None


def why_not(facts: Facts) -> str | None:
    """A model without blocks, or one whose blocks are left out at random or computed again in the backward pass."""
    if facts.blocks is None:
        return "the model has no list of blocks"
    if facts.model.config.is_encoder_decoder and not facts.writes_beside_reading:
        return "its decoder reads again what its encoder read, as the model itself decides"
    if any(getattr(facts.model.config, name, None) for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")):
        return "blocks are left out at random (layerdrop)"
    if not facts.on_cpu:
        return "the model does not compute on the processor: transformers chooses its attention"
    if any(facts.extra.get(name) for name in ("gradient_checkpointing", "activation_checkpointing")):
        return "activation checkpointing computes the blocks twice"
    return None


def apply(facts: Facts) -> Callable[[], None]:
    """Lays the tokens of every forward pass end to end that is no step of generation."""
    AttentionInterface.register(NAME, attend)
    passes = _Passes(facts)
    undo = passes.watch()
    try:
        facts.outputs()
        if any(side.layout.num_attended < len(side.blocks) for side in passes.sides):
            raise Unfit("its attention does not go through transformers' AttentionInterface")
    except Exception:
        undo()
        raise
    return undo


class _Side:
    """The blocks of an encoder, of a decoder, or of a model that is one of these."""

    def __init__(self, blocks: torch.nn.ModuleList, layout: Layout) -> None:
        self.blocks, self.layout = list(blocks), layout
        self.modules = list(blocks.modules())
        self.names = dict(enumerate(list(inspect.signature(type(self.blocks[0]).forward).parameters)[2:]))
        """Of what a block is given after the hidden states, by place."""
        self.inside = False
        """Whether it is between the first block and the last."""

    def enter(self, module: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        """Before a block."""
        if not self.layout.laid_out:
            return None
        if not arguments:
            raise Unfit("its blocks take the hidden states by name")
        hidden, *others = arguments
        hidden, self.inside = hidden if self.inside else self.layout.pack(hidden), True
        others = [self._layout_of(self.names.get(place, "")).pack(value) for place, value in enumerate(others)]
        return (hidden, *others), {name: self._layout_of(name).pack(value) for name, value in inputs.items()}

    def _layout_of(self, name: str) -> Layout:
        return self.layout.source if self.layout.source is not None and name.startswith("encoder_") else self.layout

    def leave(self, module: Any, arguments: Any, output: Any) -> Any:
        """After the last block."""
        if not self.layout.laid_out or self.layout.index is None:
            return output
        self.inside = False
        if isinstance(output, tuple):
            return (self.layout.unpack(output[0]), *output[1:])
        return self.layout.unpack(output)


class _Passes:
    """The hooks that lay out each forward pass of a model."""

    def __init__(self, facts: Facts) -> None:
        self.model = facts.model
        assert facts.blocks is not None
        if self.model.config.is_encoder_decoder:
            encoder = find_blocks(self.model, "encoder")
            assert encoder is not None
            source = Layout(is_one_of_two=True)
            self.sides = [_Side(encoder[1], source), _Side(facts.blocks[1], Layout("decoder_", source, is_one_of_two=True))]
        else:
            self.sides = [_Side(facts.blocks[1], Layout())]
        modules = [module for side in self.sides for module in side.modules]
        configs: dict[int, Any] = {id(module.config): module.config for module in (self.model, *modules) if hasattr(module, "config")}
        self.configs = [(config, config._attn_implementation) for config in configs.values()]

    def watch(self) -> Callable[[], None]:
        """Hangs the hooks on model and blocks; returns what takes them away."""
        handles = [
            self.model.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.model.register_forward_hook(self.end, always_call=True),
        ]
        for side in self.sides:
            for module in side.modules:
                LAYOUTS[module] = side.layout
                if hasattr(module, "compute_bias"):
                    vars(module)["compute_bias"] = _by_distance(module, side.layout)
                    if not module.has_relative_attention_bias:
                        handles.append(module.register_forward_pre_hook(_without_bias, with_kwargs=True))
            handles += [block.register_forward_pre_hook(side.enter, with_kwargs=True) for block in side.blocks]
            handles.append(side.blocks[-1].register_forward_hook(side.leave))

        def undo() -> None:
            for handle in handles:
                handle.remove()
            for side in self.sides:
                for module in side.modules:
                    LAYOUTS.pop(module, None)
                    vars(module).pop("compute_bias", None)

        return undo

    def begin(self, module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        """Before the model."""
        laid_out = all(side.layout.begin(inputs) for side in self.sides)
        for side in self.sides:
            side.layout.laid_out, side.inside = laid_out, False
        if laid_out:
            for config, _ in self.configs:
                config._attn_implementation = NAME

    def end(self, *_: Any) -> None:
        """After the model, or when it raised."""
        if self.sides[0].layout.laid_out:
            for config, name in self.configs:
                config._attn_implementation = name
        for side in self.sides:
            side.layout.laid_out = False
            side.layout.packed.clear()


END_TO_END = Acceleration(
    name="end_to_end", summary="real tokens lie end to end through the blocks, and no padding is computed", why_not=why_not, apply=apply
)
