"""Blocks of encoders that normalise sums (BERT, RoBERTa, Electra, DistilBERT), each one function with one node in the graph.

What the other accelerations make of a block's parts is done here in a row: no module is called, autograd sees one step instead of some
twenty, and what is added or rounded is so while it is normalised. The numbers, and what is drawn for dropout, are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.models.bert import modeling_bert as bert
from transformers.models.distilbert import modeling_distilbert as distilbert

from tunesmith.native.attention import Shape
from tunesmith.native.passes import activate, activate_backward, gelu_name, normalise, normalise_backward
from tunesmith.registry import Acceleration
from tunesmith.speed.activation import gelu_kind
from tunesmith.speed.blocks import Block, Tape, apply_to_blocks, computes, stack_of, why_not_whole
from tunesmith.speed.facts import Facts
from tunesmith.speed.instances import compute_dtype
from tunesmith.speed.kernels import draw_seed
from tunesmith.speed.stacks import Stack
from tunesmith.speed.varlen import UNBOUNDED, attend, attend_backward


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
        self.attended = _Sum(stack_of(stacks, parts.attended[0]), *parts.attended[1:])
        self.up, self.activation = stack_of(stacks, parts.up), gelu_name(str(gelu_kind(parts.activation)))
        self.down = _Sum(stack_of(stacks, parts.down[0]), *parts.down[1:])
        of_keys = [] if self.keys is None else self.keys.parameters
        super().__init__(block, [self.queries.parameters, of_keys, self.attended.parameters, self.up.parameters, self.down.parameters])

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

    def shape(self) -> Shape:
        """Of attention in the pass under way."""
        layout = self.layout
        assert layout.boundaries is not None
        read = layout.boundaries if layout.source is None else layout.source.boundaries
        assert read is not None
        p = self.attention.dropout.p if self.attention.training else 0.0
        return Shape(layout.boundaries, read, UNBOUNDED, UNBOUNDED, self.attention.scaling, p, draw_seed() if p else 0)


class _Sum:
    """norm(residual + dropout(linear(x)))."""

    def __init__(self, stack: Stack, dropout: Any, norm: Any) -> None:
        self.stack, self.dropout, self.norm = stack, dropout, norm
        self.parameters = [*stack.parameters, norm.weight, norm.bias]

    def forward(self, x: torch.Tensor, residual: torch.Tensor, tape: Tape, reader: Stack | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The result in the residual's type, and in that of x, which is in the room of the stack that reads it, if there is one."""
        outputs = tape.multiply(self.stack, x)
        p = self.dropout.p if self.dropout is not None and self.dropout.training else 0.0
        draw = p, draw_seed() if p else 0
        room = rounded = None
        if residual.dtype != x.dtype and reader is not None:
            room = reader.room(len(residual), x.dtype)
            rounded = reader.input(room)
        result, *normed = normalise(outputs, residual, self.norm.weight, self.norm.bias, self.norm.eps, *draw, rounded)
        tape.tensors += normed
        tape.drawn.append((outputs.dtype, *draw))
        return result, result if room is None else room

    def backward(
        self, grad: torch.Tensor, more: torch.Tensor | None, tape: Tape, needs_x: bool, wanted: Sequence[bool]
    ) -> tuple[torch.Tensor, Any, list[torch.Tensor | None]]:
        """The gradients of residual, x and parameters, from that of the result, which may have two parts."""
        total, mean, rstd = tape.take(3)
        x_dtype, p, seed = tape.drawn.pop()
        room = self.stack.grad_room(len(total), x_dtype)
        of_residual, *of_norm = normalise_backward(grad, total, self.norm.weight, mean, rstd, self.stack.output(room), p, seed, more)
        found = tape.differentiate(self.stack, room, needs_x, wanted[:-2])
        return of_residual, found.of_input if needs_x else None, [*found.of_parameters(), *of_norm]


class _Computed(torch.autograd.Function):
    """A block's output, [1, tokens, hidden], from the hidden states of its tokens, and of those that they read where these are others.

    `x` is what is read, in the type of products, if it is known; the output is also given in that type.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, given: torch.Tensor | None, x: torch.Tensor | None, block: _Block, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dtype, width, tape = compute_dtype(hidden), hidden.shape[2], Tape([], [])
        with torch.autocast("cpu", enabled=False):
            residual = hidden.reshape(-1, width)
            x = (hidden if given is None else given).reshape(-1, width).to(dtype) if x is None else x
            parts = block.queries.split(tape.multiply(block.queries, x if given is None else residual.to(dtype)))
            if block.keys is not None:
                parts += block.keys.split(tape.multiply(block.keys, x))
            q, k, v = (part.view(len(part), -1, block.head_dim) for part in parts)
            shape = block.shape()
            room = block.attended.stack.room(len(q), dtype)
            out, row_sums, plan = attend(q, k, v, shape, block.attended.stack.input(room).view(q.shape))
            tape.tensors += [q, k, v, out, row_sums]
            tape.drawn.append((plan, shape))
            middle, middle_x = block.attended.forward(room, residual, tape, block.up)
            up = tape.multiply(block.up, middle_x)
            tape.tensors.append(up)
            room = block.down.stack.room(len(up), dtype)
            activate(up, block.activation, block.down.stack.input(room))
            output, output_x = block.down.forward(room, middle, tape, None if block.following is None else block.following.reader)
        ctx.save_for_backward(*tape.tensors)
        ctx.drawn, ctx.block = tape.drawn, block
        if output_x is output:
            return output.view(hidden.shape), None
        ctx.mark_non_differentiable(output_x)
        return output.view(hidden.shape), output_x

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        block, tape, width = ctx.block, Tape(list(ctx.saved_tensors), list(ctx.drawn)), grad.shape[2]
        needs_hidden, needs_given, _, _, *flags = ctx.needs_input_grad
        queries, keys, attended, up, down = (flags[part] for part in block.places)
        of_middle, of_inner, of_down = block.down.backward(grad.reshape(-1, width), None, tape, True, down)
        (inner,) = tape.take(1)
        room = block.up.grad_room(len(inner), inner.dtype)
        activate_backward(inner, of_inner, block.activation, block.up.output(room))
        found = tape.differentiate(block.up, room, True, up)
        more, of_up = found.of_input, found.of_parameters()
        needs_projections = needs_hidden or needs_given or any(queries) or any(keys)
        of_hidden, of_out, of_attended = block.attended.backward(of_middle, more, tape, needs_projections, attended)
        of_given: torch.Tensor | None = None
        of_queries: Sequence[torch.Tensor | None] = [None] * len(queries)
        of_keys: Sequence[torch.Tensor | None] = [None] * len(keys)
        if needs_projections:
            *inputs, row_sums = tape.take(5)
            plan, shape = tape.drawn.pop()
            stacks = [block.queries] if block.keys is None else [block.queries, block.keys]
            rooms = [stack.grad_room(len(read), inner.dtype) for stack, read in zip(stacks, inputs, strict=False)]
            parts = [part for stack, room in zip(stacks, rooms, strict=True) for part in stack.split(stack.output(room))]
            places = [part.view(len(part), -1, block.head_dim) for part in parts]
            attend_backward(inputs, of_out.view(inputs[3].shape), row_sums, plan, shape, places)
            if block.keys is not None:
                found = tape.differentiate(block.keys, rooms[1], needs_given, keys)
                of_given, of_keys = found.of_input if needs_given else None, found.of_parameters()
            found = tape.differentiate(block.queries, rooms[0], needs_hidden, queries)
            of_queries = found.of_parameters()
            if needs_hidden:
                of_hidden += found.of_input
        if of_given is not None:
            of_given = of_given.reshape(1, -1, width).to(grad.dtype)
        return of_hidden.view(grad.shape), of_given, None, None, *of_queries, *of_keys, *of_attended, *of_up, *of_down


ENCODER_BLOCKS = Acceleration(
    name="encoder_blocks",
    summary="a block that normalises sums is one function, with nothing between its products",
    why_not=why_not,
    apply=apply,
)
