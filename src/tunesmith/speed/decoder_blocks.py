"""Blocks of decoders of Llama's make (SmolLM, Mistral, Qwen2), each one kernel forward and one back: one node in the graph.

As with encoder_blocks no module is called. The sum of hidden states and what a sublayer adds is normalised by decoder_block.cpp while it is
made, straight to the type of products, the next block's first norm included; its gradient is added up likewise. Positions turn queries and
keys in place. What norms and gates make, which the gradients of weights want, is not kept: the pass that reads its gradient makes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.models.llama import modeling_llama as llama

from tunesmith.native.functions import gelu_name
from tunesmith.native.library import call
from tunesmith.native.structs import DecoderPass, RMSNorm, kernel_address
from tunesmith.native.tensors import NAMES, address
from tunesmith.registry import Acceleration
from tunesmith.speed.activation import gelu_kind, is_silu
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
from tunesmith.speed.rotary import is_llama_like, window_of
from tunesmith.speed.stacks import Stack
from tunesmith.speed.varlen import UNBOUNDED


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
        activation = "silu" if is_silu(mlp.act_fn) else gelu_name(str(gelu_kind(mlp.act_fn)))
        self.activation = kernel_address(f"times_{activation}_bf16"), kernel_address(f"times_backward_{activation}_bf16")
        self.rotations = {dtype: kernel_address(f"rotary_bf16_{name}") for dtype, name in NAMES.items()}
        """By the type of the angles."""
        self.norm, self.middle_norm = block.input_layernorm, block.post_attention_layernorm
        self.head_dim = int(self.attention.head_dim)
        self.num_heads, self.num_kv_heads = (size // self.head_dim for size in self.projections.out_sizes[:2])
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

    def fill(self, held: Held, cos: torch.Tensor, sin: torch.Tensor, rows: int) -> DecoderPass:
        """A pass with all that is the block's and its angles, drawing what its modules would, in their order."""
        assert (cos.dtype, cos.numel()) == (sin.dtype, sin.numel()) == (cos.dtype, rows * self.head_dim), (cos.shape, sin.shape)
        assert cos.is_contiguous()
        assert sin.is_contiguous()
        projections, window = held.linear(self.projections), window_of(self.attention)
        left = UNBOUNDED if window is None else window - 1
        p = self.attention.attention_dropout if self.attention.training else 0.0
        heads = self.num_heads, self.num_kv_heads, self.head_dim
        following = None if self.following is None else self.following.norm
        return DecoderPass(
            projections=projections,
            attention=held.attention(self.layout, *heads, left, 0, self.attention.scaling, p),
            attended=held.linear(self.attended),
            gates=held.linear(self.gates),
            down=held.linear(self.down),
            first=_norm(held, self.norm),
            middle=_norm(held, self.middle_norm),
            next=RMSNorm() if following is None else _norm(held, following),
            times=self.activation[0],
            times_backward=self.activation[1],
            rotate=self.rotations[cos.dtype],
            cos=address(cos),
            sin=address(sin),
            rows=rows,
        )


def _norm(held: Held, norm: Any) -> RMSNorm:
    return RMSNorm(held.address(norm.weight), norm.variance_epsilon)


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
        held, hidden, (_, rows, _) = Held(), hidden.contiguous(), hidden.shape
        of_pass = block.fill(held, cos, sin, rows)
        if x is None or rstd is None:
            x, rstd, of_pass.makes_x = block.projections.room(rows, torch.bfloat16), torch.empty(rows), True
        output, next_x, next_rstd = torch.empty(hidden.shape), None, None
        if block.following is not None:
            next_x, next_rstd = block.following.projections.room(rows, torch.bfloat16), torch.empty(rows)
            of_pass.next_stride = next_x.shape[1]
            ctx.mark_non_differentiable(next_x, next_rstd)
        of_pass.hidden, of_pass.x, of_pass.rstd = map(address, (hidden, x, rstd))
        of_pass.output, of_pass.next_x, of_pass.next_rstd = map(address, (output, next_x, next_rstd))
        kept, wanted, ctx.wanted = room_for("decoder_block_sizes", of_pass)
        temporary = torch.empty(wanted, dtype=torch.uint8)
        of_pass.kept, of_pass.temporary = address(kept), address(temporary)
        call("decoder_block_forward", of_pass)
        is_made_again = not block.projections.between and (ctx.needs_input_grad[0] or block.norm.weight.requires_grad)
        ctx.save_for_backward(kept, hidden, None if is_made_again else x, rstd, cos, sin)
        ctx.held, ctx.of_pass, ctx.block = held, of_pass, block
        return output, next_x, next_rstd

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor, *of_made_of_it: Any) -> tuple[torch.Tensor | None, ...]:
        kept, hidden, x, rstd, cos, sin = ctx.saved_tensors
        block, of_pass, needs_hidden = ctx.block, DecoderPass.from_buffer_copy(ctx.of_pass), ctx.needs_input_grad[0]
        (norm, middle_norm), *of_stacks = (ctx.needs_input_grad[6:][part] for part in block.places)
        of_pass.needs_x = needs_hidden or norm
        of_pass.needs_projections = of_pass.needs_x or any(of_stacks[0])
        grad, kept, temporary = grad.contiguous(), written_over(kept), torch.empty(ctx.wanted, dtype=torch.uint8)
        of_hidden = torch.empty(hidden.shape) if of_pass.needs_x else None
        of_pass.kept, of_pass.temporary, of_pass.hidden, of_pass.x, of_pass.rstd = map(address, (kept, temporary, hidden, x, rstd))
        of_pass.cos, of_pass.sin, of_pass.grad, of_pass.of_hidden = map(address, (cos, sin, grad, of_hidden))
        linears = of_pass.projections, of_pass.attended, of_pass.gates, of_pass.down
        found = list(map(places_for, ctx.held.products, linears, of_stacks))
        norms = [torch.empty(hidden.shape[2]) if wanted else None for wanted in (norm, middle_norm)]
        of_pass.first.of_weight, of_pass.middle.of_weight = map(address, norms)
        call("decoder_block_backward", of_pass)
        of_parameters = chain.from_iterable(map(of_each, ctx.held.products, found, of_stacks))
        of_norms = in_types_of(block.parameters[block.places[0]], norms)
        return of_hidden if needs_hidden else None, None, None, None, None, None, *of_norms, *of_parameters


DECODER_BLOCKS = Acceleration(
    name="decoder_blocks",
    summary="a block of Llama's make is one kernel forward and one back, with nothing between its products",
    why_not=why_not,
    apply=apply,
)
