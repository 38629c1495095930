"""Blocks of decoders of Llama's make (SmolLM, Mistral, Qwen2), each one function with one node in the graph.

As with encoder_blocks no module is called. The sum of hidden states and what a sublayer adds is normalised while it is made, straight to
the type of products, the next block's first norm included; its gradient is added up likewise. Positions turn queries and keys in place.
What norms and gates make, which the gradients of weights want, is not kept: the pass that reads its gradient makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.models.llama import modeling_llama as llama

from tunesmith.native.attention import Shape
from tunesmith.native.passes import (
    add_rms_norm,
    add_rms_norm_backward,
    gelu_name,
    multiply_by_gate,
    multiply_by_gate_backward,
    rotate_,
)
from tunesmith.registry import Acceleration
from tunesmith.speed.activation import gelu_kind, is_silu
from tunesmith.speed.blocks import Block, Tape, apply_to_blocks, computes, stack_of, why_not_whole
from tunesmith.speed.facts import Facts
from tunesmith.speed.instances import compute_dtype
from tunesmith.speed.kernels import draw_seed
from tunesmith.speed.rotary import is_llama_like, window_of
from tunesmith.speed.stacks import Stack
from tunesmith.speed.varlen import UNBOUNDED, attend, attend_backward


def why_not(facts: Facts) -> str | None:
    """What blocks.py says, and blocks of another make."""
    return why_not_whole(facts, _is_known)


def apply(facts: Facts) -> Callable[[], None]:
    """The blocks of a model whose tokens lie end to end and whose linear layers are in stacks."""
    return apply_to_blocks(facts, _Block)


def _is_known(block: Any) -> bool:
    if not computes(block, llama.LlamaDecoderLayer) or not is_llama_like(block.self_attn) or hasattr(block.self_attn, "q_norm"):
        return False
    norms = block.input_layernorm, block.post_attention_layernorm
    known = computes(block.mlp, llama.LlamaMLP) and all(computes(norm, llama.LlamaRMSNorm) for norm in norms)
    return known and (is_silu(block.mlp.act_fn) or gelu_kind(block.mlp.act_fn) is not None)


class _Block(Block):
    """A block, computed from the stacks of its linear layers."""

    def __init__(self, block: Any, stacks: dict[int, Stack]) -> None:
        self.attention, mlp = block.self_attn, block.mlp
        self.projections = stack_of(stacks, self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        self.attended, self.gates, self.down = (
            stack_of(stacks, self.attention.o_proj),
            stack_of(stacks, mlp.gate_proj, mlp.up_proj),
            stack_of(stacks, mlp.down_proj),
        )
        self.activation = "silu" if is_silu(mlp.act_fn) else gelu_name(str(gelu_kind(mlp.act_fn)))
        self.norm, self.middle_norm = block.input_layernorm, block.post_attention_layernorm
        self.head_dim = int(self.attention.head_dim)
        self.rotated = sum(self.projections.out_sizes[:2]) // self.head_dim
        """Heads of queries and keys."""
        groups = [stack.parameters for stack in (self.projections, self.attended, self.gates, self.down)]
        super().__init__(block, [[self.norm.weight, self.middle_norm.weight], *groups])

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """In the place of the module's."""
        x, rstd = self.handed(hidden_states) or (None, None)
        angles = named.get("position_embeddings")
        if not self.layout.laid_out or angles is None or self.is_left_to_modules(hidden_states):
            return self.plain(hidden_states, *arguments, **named)
        output, *made_of_it = _Computed.apply(hidden_states, x, rstd, *angles, self, *self.parameters)  # type: ignore[no-untyped-call]
        self.hand_on(output, *made_of_it)
        return output

    def shape(self) -> Shape:
        """Of attention in the pass under way."""
        assert self.layout.boundaries is not None
        window = window_of(self.attention)
        p = self.attention.attention_dropout if self.attention.training else 0.0
        left = UNBOUNDED if window is None else window - 1
        return Shape(self.layout.boundaries, self.layout.boundaries, left, 0, self.attention.scaling, p, draw_seed() if p else 0)


def _normalise(x: torch.Tensor | None, residual: torch.Tensor, norm: Any, stack: Stack, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The sum of x and residual, its norm in the room of the stack that reads it, and 1 / its root mean squares."""
    room = stack.room(len(residual), dtype)
    total, rstd = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon, stack.input(room))
    return total, room, rstd


class _Computed(torch.autograd.Function):
    """A block's output, [1, tokens, hidden], and of it the next block's normalised input, with 1 / its root mean squares.

    `x` and `rstd` are these of the hidden states, if they are known.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        x: torch.Tensor | None,
        rstd: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        block: _Block,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        dtype, tape = compute_dtype(hidden), Tape([], [])
        with torch.autocast("cpu", enabled=False):
            residual = hidden.reshape(-1, hidden.shape[2])
            if x is None or rstd is None:
                _, x, rstd = _normalise(None, residual, block.norm, block.projections, dtype)
            rows = tape.multiply(block.projections, x, keeps=not (ctx.needs_input_grad[0] or block.norm.weight.requires_grad))
            rotate_(rows, block.rotated, cos, sin, back=False)
            q, k, v = (part.view(len(part), -1, block.head_dim) for part in block.projections.split(rows))
            shape = block.shape()
            room = block.attended.room(len(q), dtype)
            out, row_sums, plan = attend(q, k, v, shape, block.attended.input(room).view(q.shape))
            tape.tensors += [q, k, v, out, row_sums]
            tape.drawn.append((plan, shape))
            outputs = tape.multiply(block.attended, room)
            middle, middle_x, middle_rstd = _normalise(outputs, residual, block.middle_norm, block.gates, dtype)
            gates = tape.multiply(block.gates, middle_x, keeps=False)
            tape.tensors.append(gates)
            room = block.down.room(len(gates), dtype)
            gate, up = block.gates.split(gates)
            multiply_by_gate(gate, up, block.activation, block.down.input(room))
            added = tape.multiply(block.down, room, keeps=False)
            next_x = next_rstd = None
            if block.following is None:
                output = middle + added
            else:
                output, next_x, next_rstd = _normalise(added, middle, block.following.norm, block.following.projections, dtype)
                ctx.mark_non_differentiable(next_x, next_rstd)
        ctx.save_for_backward(*tape.tensors, residual, rstd, outputs, middle_rstd, cos, sin)
        ctx.drawn, ctx.block = tape.drawn, block
        return output.view(hidden.shape), next_x, next_rstd

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: torch.Tensor, *of_made_of_it: Any) -> tuple[torch.Tensor | None, ...]:
        *tensors, residual, rstd, outputs, middle_rstd, cos, sin = ctx.saved_tensors
        block, tape, dtype, rows = ctx.block, Tape(tensors, list(ctx.drawn)), outputs.dtype, len(outputs)
        needs_hidden, flags = ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        norms, of_projections, of_attended, of_gates, of_down = (flags[part] for part in block.places)
        grad = grad_output.reshape(-1, grad_output.shape[2])
        down = tape.differentiate(block.down, block.down.placed_grads([grad], rows, dtype), True, of_down)
        gate, up = block.gates.split(tape.take(1)[0])
        room = block.gates.grad_room(rows, dtype)
        multiply_by_gate_backward(gate, up, down.of_input, block.activation, block.gates.output(room), down.again())
        gates = tape.differentiate(block.gates, room, True, of_gates)
        room, weight = block.attended.grad_room(rows, dtype), block.middle_norm.weight
        grad, of_middle_norm = add_rms_norm_backward(
            gates.of_input, grad, outputs, residual, weight, middle_rstd, norms[1], block.attended.output(room), gates.again()
        )
        needs_x = needs_hidden or norms[0]
        needs_projections = needs_x or any(of_projections)
        attended = tape.differentiate(block.attended, room, needs_projections, of_attended)
        found = [one.of_parameters() for one in (attended, gates, down)]
        of_norm: torch.Tensor | None = None
        of_first: Sequence[torch.Tensor | None] = [None] * len(of_projections)
        if needs_projections:
            *inputs, row_sums = tape.take(5)
            plan, shape = tape.drawn.pop()
            room = block.projections.grad_room(rows, dtype)
            parts = block.projections.split(block.projections.output(room))
            places = [part.view(rows, -1, block.head_dim) for part in parts]
            attend_backward(inputs, attended.of_input.view(inputs[3].shape), row_sums, plan, shape, places)
            rotate_(room, block.rotated, cos, sin, back=True)
            projections = tape.differentiate(block.projections, room, needs_x, of_projections)
            if needs_x:
                again = projections.again()
                grad, of_norm = add_rms_norm_backward(
                    projections.of_input, grad, None, residual, block.norm.weight, rstd, norms[0], out=again
                )
            of_first = projections.of_parameters()
        return grad[None], None, None, None, None, None, of_norm, of_middle_norm, *of_first, *chain.from_iterable(found)


DECODER_BLOCKS = Acceleration(
    name="decoder_blocks",
    summary="a block of Llama's make is one function, with nothing between its products",
    why_not=why_not,
    apply=apply,
)
