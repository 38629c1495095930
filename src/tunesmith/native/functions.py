"""The kernels as functions of CPU tensors, in fp32 or bf16 with fp32 arithmetic inside; those of a network have gradients.

All of them want `library()` to be there. None depends on the number of threads, and none is changed by autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from tunesmith.native.library import call
from tunesmith.native.tensors import NAMES, address, check, row_stride, rows_of


def dropout(x: torch.Tensor, p: float, seed: int, offset: int = 0) -> torch.Tensor:
    """Element i is kept when the 16-bit uniform of (seed, offset + i) is at least p * 65536, rounded, and scaled by 1 / (1 - p).

    The mask is not stored: backward draws it again.
    """
    return _Dropout.apply(x, float(p), seed, offset)  # type: ignore[no-any-return, no-untyped-call]


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm over the last dimension, in x's type."""
    return _LayerNorm.apply(x, None, weight, bias, float(eps), 0.0, 0)  # type: ignore[no-any-return, no-untyped-call]


def dropout_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, p: float, seed: int
) -> torch.Tensor:
    """`layer_norm(residual + dropout(x))` in the type that x and residual promote to."""
    return _LayerNorm.apply(x, residual, weight, bias, float(eps), float(p), seed)  # type: ignore[no-any-return, no-untyped-call]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """LlamaRMSNorm, rounded where upstream rounds, in the type that x and weight promote to.

    An `offset` is added to the weight, as Gemma does with 1; the result then is in x's type.
    """
    return _RMSNorm.apply(x, weight, float(eps), float(offset))  # type: ignore[no-any-return, no-untyped-call]


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """GELU, exact or (`tanh`) approximated; backward computes it again from x."""
    return _Activation.apply(x, gelu_name(approximate))  # type: ignore[no-any-return, no-untyped-call]


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`; their rows may lie apart, as those of two halves of one product do."""
    return _Gated.apply(gate, up, "silu")  # type: ignore[no-any-return, no-untyped-call]


def gelu_mul(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """`gelu(gate) * up`; their rows may lie apart, as those of two halves of one product do."""
    return _Gated.apply(gate, up, gelu_name(approximate))  # type: ignore[no-any-return, no-untyped-call]


def rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upstream's apply_rotary_pos_emb: q [batch, heads, T, d], k [batch, kv_heads, T, d], cos and sin [batch or 1, T, d].

    Heads and T of q and k may have any strides; the results are views of [batch, T, heads, d], which attention and products read in place.
    """
    return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)  # type: ignore[no-untyped-call]


def adamw_step(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor | None] | None = None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One step of torch.optim.AdamW in place, over fp32 tensors with gradients times `grad_scale`; `step` counts from 1.

    `copies` are bf16, and become the parameters, rounded.
    """
    sizes = [param.numel() for param in params]
    for tensors in (params, grads, exp_avgs, exp_avg_sqs):
        _check_all(tensors, sizes, torch.float32)
    pointers = [_pointers(tensors) for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    numbers = (float(lr), float(betas[0]), float(betas[1]), float(eps), float(weight_decay), int(step), float(grad_scale))
    copies = [None] * len(params) if copies is None else copies
    assert all(
        copy is None or (copy.dtype, copy.numel(), copy.is_contiguous()) == (torch.bfloat16, size, True)
        for copy, size in zip(copies, sizes, strict=True)
    )
    pointers.append(torch.tensor([address(copy) or 0 for copy in copies], dtype=torch.int64))
    call("adamw_step", *pointers, torch.tensor(sizes, dtype=torch.int64), len(sizes), *numbers)
    increment_version([*params, *exp_avgs, *exp_avg_sqs])


def grad_norm(grads: Sequence[torch.Tensor]) -> float:
    """The 2-norm of all gradients as one vector, summed in double."""
    squares = 0.0
    for dtype, name in NAMES.items():
        tensors = [grad for grad in grads if grad.dtype == dtype]
        sizes = [tensor.numel() for tensor in tensors]
        _check_all(tensors, sizes, dtype)
        total = torch.zeros(1, dtype=torch.float64)
        call(f"sum_of_squares_{name}", _pointers(tensors), torch.tensor(sizes, dtype=torch.int64), len(sizes), total)
        squares += total.item()
    assert all(grad.dtype in NAMES for grad in grads)
    return math.sqrt(squares)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float, seed: int, offset: int) -> torch.Tensor:
        ctx.dtype, ctx.draw = x.dtype, (p, seed, offset)
        check(x)
        return _dropped(x, x.dtype, ctx.draw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _dropped(grad.contiguous(), ctx.dtype, ctx.draw), None, None, None


def _dropped(x: torch.Tensor, dtype: torch.dtype, draw: tuple[float, int, int]) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=dtype)
    call(f"dropout_{NAMES[x.dtype]}_{NAMES[dtype]}", x, out, x.numel(), *draw)
    return out


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        p: float,
        seed: int,
    ) -> Any:
        dtype, ctx.dtypes, ctx.draw = x.dtype, (x.dtype, None if residual is None else residual.dtype), (p, seed)
        if residual is not None:
            assert residual.shape == x.shape
            dtype = torch.promote_types(x.dtype, residual.dtype)
            residual = residual.to(dtype)
            check(residual)
        check(x)
        rows, width = rows_of(x, weight, bias)
        total = x if residual is None else torch.empty(x.shape, dtype=dtype)
        out, mean, rstd = torch.empty(x.shape, dtype=dtype), torch.empty(rows), torch.empty(rows)
        tensors = x, residual, weight.float(), bias.float(), total, out, None, 0, mean, rstd
        call(f"layer_norm_{NAMES[x.dtype]}_{NAMES[dtype]}", *tensors, rows, width, eps, p, seed)
        ctx.save_for_backward(total, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        total, weight, mean, rstd = ctx.saved_tensors
        x_dtype, residual_dtype = ctx.dtypes
        has_dropped = residual_dtype is not None and ctx.needs_input_grad[0]
        grad_x = torch.empty(total.shape, dtype=x_dtype) if has_dropped else None
        grad_total, grad_weight, grad_bias = torch.empty_like(total), torch.zeros(weight.shape), torch.zeros(weight.shape)
        kernel = f"layer_norm_backward_{NAMES[x_dtype if has_dropped else total.dtype]}_{NAMES[total.dtype]}"
        tensors = total, weight.float(), mean, rstd, grad.contiguous(), None, 0, grad_total, grad_x, len(weight), grad_weight, grad_bias
        call(kernel, *tensors, len(mean), len(weight), *ctx.draw)
        if residual_dtype is None:
            grad_x = grad_total
        grad_residual = grad_total.to(residual_dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_residual, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        check(x)
        rows, width = rows_of(x, weight)
        out = torch.empty(x.shape, dtype=x.dtype if offset else torch.promote_types(x.dtype, weight.dtype))
        rstd = torch.empty(rows)
        call(f"rms_norm_{NAMES[x.dtype]}_{NAMES[out.dtype]}", x, weight.float(), out, rstd, rows, width, eps, offset)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset = offset
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape) if ctx.needs_input_grad[1] else None
        kernel = f"rms_norm_backward_{NAMES[x.dtype]}_{NAMES[grad.dtype]}"
        call(kernel, x, weight.float(), rstd, grad.contiguous(), grad_x, grad_weight, len(rstd), len(weight), ctx.offset)
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernel: str) -> torch.Tensor:
        check(x)
        ctx.save_for_backward(x)
        ctx.kernel, out = kernel, torch.empty_like(x)
        rows, width = rows_of(x)
        call(f"{kernel}_{NAMES[x.dtype]}", x, out, rows, width, width, width)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (x,), grad = ctx.saved_tensors, grad.contiguous()
        grad_x, (rows, width) = torch.empty_like(x), rows_of(x)
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype), (grad.shape, grad.dtype)
        call(f"backward_{ctx.kernel}_{NAMES[x.dtype]}", x, grad, grad_x, rows, width, width, width, width)
        return grad_x, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, kernel: str) -> torch.Tensor:
        assert (gate.shape, gate.dtype, row_stride(gate)) == (up.shape, up.dtype, row_stride(up))
        ctx.save_for_backward(gate, up)
        ctx.kernel, out = kernel, torch.empty(gate.shape, dtype=gate.dtype)
        rows, width = rows_of(gate)
        call(f"times_{kernel}_{NAMES[gate.dtype]}", gate, up, out, rows, width, row_stride(gate), width)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (gate, up), grad = ctx.saved_tensors, grad.contiguous()
        assert (grad.shape, grad.dtype) == (gate.shape, gate.dtype), (grad.shape, grad.dtype)
        rows, width = rows_of(gate)
        both = torch.empty(*gate.shape[:-1], 2 * width, dtype=gate.dtype)  # side by side, as of one product
        grads = both.split_with_sizes([width] * 2, -1)
        strides = row_stride(gate), width, 2 * width, 0
        call(f"times_backward_{ctx.kernel}_{NAMES[gate.dtype]}", gate, up, grad, *grads, None, rows, width, *strides)
        return *grads, None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        assert (cos.shape, cos.dtype) == (sin.shape, sin.dtype)
        assert cos.shape in ((1, *x.shape[2:]), (x.shape[0], *x.shape[2:])), (cos.shape, x.shape)
        assert x.shape[3] % 2 == 0
        check(cos)
        check(sin)
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, True), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> torch.Tensor:
    if x.stride(3) != 1:
        x = x.contiguous()
    batch, heads, tokens, width = x.shape
    out = torch.empty(batch, tokens, heads, width, dtype=x.dtype)
    strides = x.stride(0), x.stride(2), x.stride(1), heads * width, 0 if len(cos) == 1 else cos.stride(0)
    call(f"rotary_{NAMES[x.dtype]}_{NAMES[cos.dtype]}", x, cos, sin, out, batch, tokens, heads, width, *strides, int(back))
    return out.transpose(1, 2)


def gelu_name(approximate: str) -> str:
    """What the kernel is called of a GELU that is exact (`none`) or approximated (`tanh`)."""
    return {"none": "gelu", "tanh": "gelu_tanh"}[approximate]


def _check_all(tensors: Sequence[torch.Tensor], sizes: list[int], dtype: torch.dtype) -> None:
    assert [tensor.numel() for tensor in tensors] == sizes
    assert all(tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous() for tensor in tensors)


def _pointers(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
