"""Blocks of encoders that normalise sums (BERT, RoBERTa, Electra, DistilBERT), each one kernel forward and one back: one node in the graph.

What the other accelerations make of a block's parts encoder_block.cpp does in a row: no module is called, and what is added or rounded is
so while it is normalised. The numbers, and what is drawn for dropout, are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.models.bert import modeling_bert as bert
from transformers.models.distilbert import modeling_distilbert as distilbert

from tunesmith.native.functions import gelu_name
from tunesmith.native.library import call
from tunesmith.native.structs import EncoderPass, LayerNorm, kernel_address
from tunesmith.native.tensors import address
from tunesmith.registry import Acceleration
from tunesmith.speed.activation import gelu_kind
from tunesmith.speed.blocks import (
    Block,
    Held,
    apply_to_blocks,
    computes,
    in_types_of,
    of_each,
    places_for,
    room_for,
    stack_of,
    why_not_whole,
    written_over,
)
from tunesmith.speed.facts import Facts
from tunesmith.speed.kernels import draw_seed
from tunesmith.speed.stacks import Stack
from tunesmith.speed.varlen import UNBOUNDED


def why_not(facts: Facts) -> str | None:
    """What blocks.py says, and blocks of another make."""
    return why_not_whole(facts, lambda block: _parts(block) is not None)


def apply(facts: Facts) -> Callable[[], None]:
    """The blocks of a model whose tokens lie end to end and whose linear layers are in stacks."""
    return apply_to_blocks(facts, _Block)


@dataclass(frozen=True)
class _Parts:
    """The modules of a block."""

    attention: Any
    projections: tuple[Any, ...]
    """Of queries, keys and values."""
    attended: tuple[Any, Any, Any]
    """The linear layer after attention, its dropout (or None), and the norm of the sum."""
    up: Any
    activation: Any
    down: tuple[Any, Any, Any]
    """The last linear layer, its dropout, and the norm of the sum."""


def _parts(block: Any) -> _Parts | None:
    """None where the block's code is of another kind, or one of its layers."""
    found = _parts_of_bert(block) or _parts_of_distilbert(block)
    if found is None or gelu_kind(found.activation) is None:
        return None
    return found if all(type(norm) is torch.nn.LayerNorm for norm in (found.attended[2], found.down[2])) else None


def _parts_of_bert(block: Any) -> _Parts | None:
    if not computes(block, bert.BertLayer, "forward", "feed_forward_chunk") or block.is_decoder:
        return None
    attention, first, last = block.attention.self, block.attention.output, block.output
    kinds = (block.attention, bert.BertAttention), (attention, bert.BertSelfAttention), (first, bert.BertSelfOutput)
    if not all(computes(module, kind) for module, kind in (*kinds, (block.intermediate, bert.BertIntermediate), (last, bert.BertOutput))):
        return None
    return _Parts(
        attention,
        (attention.query, attention.key, attention.value),
        (first.dense, first.dropout, first.LayerNorm),
        block.intermediate.dense,
        block.intermediate.intermediate_act_fn,
        (last.dense, last.dropout, last.LayerNorm),
    )


def _parts_of_distilbert(block: Any) -> _Parts | None:
    if not computes(block, distilbert.TransformerBlock):
        return None
    attention, ffn = block.attention, block.ffn
    if not computes(attention, distilbert.DistilBertSelfAttention) or not computes(ffn, distilbert.FFN, "forward", "ff_chunk"):
        return None
    return _Parts(
        attention,
        (attention.q_lin, attention.k_lin, attention.v_lin),
        (attention.out_lin, None, block.sa_layer_norm),
        ffn.lin1,
        ffn.activation,
        (ffn.lin2, ffn.dropout, block.output_layer_norm),
    )


class _Block(Block):
    """A block, computed from the stacks of its linear layers."""

    def __init__(self, block: Any, stacks: dict[int, Stack]) -> None:
        parts = _parts(block)
        assert parts is not None
        self.attention, self.head_dim = parts.attention, int(parts.attention.attention_head_size)
        is_last = stacks.get(id(parts.projections[0])) is not stacks.get(id(parts.projections[1]))
        self.queries = stack_of(stacks, *(parts.projections[:1] if is_last else parts.projections))
        self.keys = stack_of(stacks, *parts.projections[1:]) if is_last else None
        """Where the block is given the tokens that are read of it, and keys and values are those of others."""
        self.reader = self.keys or self.queries
        """What reads the output of the block before it."""
        (attended, *self.middle), (down, *self.last) = parts.attended, parts.down
        self.attended, self.up, self.down = stack_of(stacks, attended), stack_of(stacks, parts.up), stack_of(stacks, down)
        activation = gelu_name(str(gelu_kind(parts.activation)))
        self.activation = kernel_address(f"{activation}_bf16"), kernel_address(f"backward_{activation}_bf16")
        of_keys = [] if self.keys is None else self.keys.parameters
        of_norms = [parameter for _, norm in (self.middle, self.last) for parameter in (norm.weight, norm.bias)]
        stacks_of_rest = (self.attended, self.up, self.down)
        super().__init__(block, [self.queries.parameters, of_keys, *(stack.parameters for stack in stacks_of_rest), of_norms])

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """In the place of the module's."""
        given = self.layout.given
        (x,) = self.handed(hidden_states if given is None else given) or (None,)
        laid_out = self.layout.laid_out if self.keys is None else given is not None
        if not laid_out or self.is_left_to_modules(hidden_states):
            return self.plain(hidden_states, *arguments, **named)
        output, rounded = _Computed.apply(hidden_states, given, x, self, *self.parameters)  # type: ignore[no-untyped-call]
        self.hand_on(output, rounded)
        return output

    def fill(self, held: Held) -> EncoderPass:
        """A pass with all that is the block's, drawing what its modules would, in their order."""
        attention = self.attention
        p = attention.dropout.p if attention.training else 0.0
        heads = self.queries.out_sizes[0] // self.head_dim
        return EncoderPass(
            queries=held.linear(self.queries),
            keys=held.linear(self.keys),
            attention=held.attention(self.layout, heads, heads, self.head_dim, UNBOUNDED, UNBOUNDED, attention.scaling, p),
            attended=held.linear(self.attended),
            middle=_norm(held, *self.middle),
            up=held.linear(self.up),
            down=held.linear(self.down),
            last=_norm(held, *self.last),
            activate=self.activation[0],
            activate_backward=self.activation[1],
        )


def _norm(held: Held, dropout: Any, norm: Any) -> LayerNorm:
    p = dropout.p if dropout is not None and dropout.training else 0.0
    return LayerNorm(held.address(norm.weight), held.address(norm.bias), norm.eps, p, draw_seed() if p else 0)


class _Computed(torch.autograd.Function):
    """A block's output, [1, tokens, hidden], from the hidden states of its tokens, and of those that they read where these are others.

    `x` is what is read, in its room, if it is known; the output is also given in that of the next block.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, given: torch.Tensor | None, x: torch.Tensor | None, block: _Block, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        held, reader = Held(), None if block.following is None else block.following.reader
        of_pass, hidden, (_, rows, width) = block.fill(held), hidden.contiguous(), hidden.shape
        if x is None:
            read = hidden if given is None else given
            x = block.reader.placed(read.reshape(-1, width).to(torch.bfloat16))
        output, output_x = torch.empty(1, rows, width), None if reader is None else reader.room(rows, torch.bfloat16)
        of_pass.rows, of_pass.num_given = rows, len(x)
        of_pass.hidden, of_pass.x, of_pass.output = map(address, (hidden, x, output))
        if output_x is not None:
            of_pass.output_x, of_pass.output_x_stride = address(output_x), output_x.shape[1]
            ctx.mark_non_differentiable(output_x)
        kept, wanted, ctx.wanted = room_for("encoder_block_sizes", of_pass)
        temporary = torch.empty(wanted, dtype=torch.uint8)
        of_pass.kept, of_pass.temporary = address(kept), address(temporary)
        call("encoder_block_forward", of_pass)
        ctx.save_for_backward(kept, x)
        ctx.held, ctx.of_pass, ctx.block = held, of_pass, block
        return output, output_x

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        (kept, x), block, of_pass = ctx.saved_tensors, ctx.block, EncoderPass.from_buffer_copy(ctx.of_pass)
        needs_hidden, needs_given, _, _, *flags = ctx.needs_input_grad
        *of_stacks, of_norms = (flags[part] for part in block.places)
        grad, kept, temporary = grad.contiguous(), written_over(kept), torch.empty(ctx.wanted, dtype=torch.uint8)
        of_hidden = torch.empty(grad.shape)
        of_given = torch.empty(len(x), grad.shape[2], dtype=torch.bfloat16) if needs_given else None
        of_pass.kept, of_pass.temporary, of_pass.x = map(address, (kept, temporary, x))
        of_pass.grad, of_pass.of_hidden, of_pass.of_given = map(address, (grad, of_hidden, of_given))
        of_pass.needs_hidden = needs_hidden
        of_pass.needs_projections = needs_hidden or needs_given or any(of_stacks[0]) or any(of_stacks[1])
        linears = of_pass.queries, of_pass.keys, of_pass.attended, of_pass.up, of_pass.down
        found = list(map(places_for, ctx.held.products, linears, of_stacks))
        norms = [torch.empty(grad.shape[2]) if wanted else None for wanted in of_norms]
        of_pass.middle.of_weight, of_pass.middle.of_bias, of_pass.last.of_weight, of_pass.last.of_bias = map(address, norms)
        call("encoder_block_backward", of_pass)
        if of_given is not None:
            of_given = of_given[None].to(grad.dtype)
        of_parameters = chain.from_iterable(map(of_each, ctx.held.products, found, of_stacks))
        of_norms = in_types_of(block.parameters[block.places[-1]], norms)
        return of_hidden if needs_hidden else None, of_given, None, None, *of_parameters, *of_norms


ENCODER_BLOCKS = Acceleration(
    name="encoder_blocks",
    summary="a block that normalises sums is one kernel forward and one back, with nothing between its products",
    why_not=why_not,
    apply=apply,
)
