"""Kernels of a network and of its gradient without a graph, in fp32 or bf16: functions.py gives them one, blocks call them in a row."""

from __future__ import annotations

import torch

from tunesmith.native.library import call

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def normalise(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    p: float,
    seed: int,
    rounded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(`dropout_add_layer_norm`, or `layer_norm` without a residual; what is normalised, its means and 1 / its deviations).

    `rounded` is filled with the first in bf16; its rows may lie apart.
    """
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    if residual is not None:
        assert residual.shape == x.shape
        residual = residual.to(dtype)
        check(residual)
    check(x)
    rows, width = rows_of(x, weight, bias)
    total = x if residual is None else torch.empty(x.shape, dtype=dtype)
    out = torch.empty(x.shape, dtype=dtype)
    mean, rstd = torch.empty(rows), torch.empty(rows)
    kernel = f"layer_norm_{NAMES[x.dtype]}_{NAMES[dtype]}"
    stride = 0 if rounded is None else row_stride(rounded)
    call(kernel, x, residual, weight.float(), bias.float(), total, out, rounded, stride, mean, rstd, rows, width, eps, p, seed)
    return out, total, mean, rstd


def normalise_backward(
    grad: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    of_x: torch.Tensor | None,
    p: float,
    seed: int,
    more: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of what is normalised, of weight and of bias; `of_x` is filled with that of what was dropped from before.

    The gradient of the result is `grad`, or its sum with `more` [rows, width]; the rows of `more` and of `of_x` may lie apart.
    """
    if more is not None and more.dtype != torch.bfloat16:
        grad, more = grad + more, None
    assert more is None or (more.shape == grad.shape and more.stride(1) == 1), (more.shape, more.stride())
    grad_total = torch.empty_like(total)
    grad_weight, grad_bias = torch.zeros(weight.shape), torch.zeros(weight.shape)
    assert of_x is None or of_x.shape == total.shape, of_x.shape
    call(
        f"layer_norm_backward_{NAMES[total.dtype if of_x is None else of_x.dtype]}_{NAMES[total.dtype]}",
        *(total, weight.float(), mean, rstd, grad.contiguous(), more, 0 if more is None else more.stride(0), grad_total),
        *(of_x, 0 if of_x is None else row_stride(of_x), grad_weight, grad_bias, len(mean), len(weight), p, seed),
    )
    return grad_total, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def add_rms_norm(
    x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual + x, or the residual alone, in fp32; 1 / the root mean square of each row).

    `out`, in the type of x, is filled with the LlamaRMSNorm of the first; its rows may lie apart.
    """
    check(residual)
    assert residual.dtype == torch.float32
    assert out.shape == residual.shape
    assert x is None or (x.shape, x.dtype, x.is_contiguous()) == (residual.shape, out.dtype, True)
    rows, width = rows_of(residual, weight)
    total, rstd = residual if x is None else torch.empty_like(residual), torch.empty(rows)
    call(f"add_rms_norm_{NAMES[out.dtype]}", x, residual, weight.float(), total, out, row_stride(out), rstd, rows, width, eps)
    return total, rstd


def add_rms_norm_backward(
    grad: torch.Tensor,
    more: torch.Tensor,
    x: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    trains: bool,
    rounded: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradient of residual + x, from that of its norm and `more` of its own, and that of the weight if it `trains`.

    If given, `rounded` is filled with the first, and `out`, which may be `grad`, with the norm once more, as `add_rms_norm` made it. The
    rows of all three, which have one type, may lie apart.
    """
    assert more.dtype == residual.dtype == torch.float32
    check(more)
    check(residual)
    assert x is None or (x.shape, x.dtype, x.is_contiguous()) == (residual.shape, grad.dtype, True)
    places = [rounded, out]
    assert all(place is None or (place.shape, place.dtype) == (residual.shape, grad.dtype) for place in places)
    of_places = [value for place in places for value in (place, 0 if place is None else row_stride(place))]
    grad_total = torch.empty_like(residual)
    grad_weight = torch.zeros(weight.shape) if trains else None
    tensors = x, residual, weight.float(), rstd, grad, row_stride(grad), more, grad_total, *of_places, grad_weight
    call(f"add_rms_norm_backward_{NAMES[grad.dtype]}", *tensors, len(rstd), len(weight))
    return grad_total, None if grad_weight is None else grad_weight.to(weight.dtype)


def activate(x: torch.Tensor, kernel: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """What an activation of one input, as `gelu_name` names it, makes of x; in `out`, if given, whose rows may lie apart."""
    check(x)
    out = torch.empty_like(x) if out is None else out
    assert (out.shape, out.dtype) == (x.shape, x.dtype), (out.shape, out.dtype)
    call(f"{kernel}_{NAMES[x.dtype]}", x, out, *rows_of(x), row_stride(out))
    return out


def activate_backward(x: torch.Tensor, grad: torch.Tensor, kernel: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient of x, in `out`, if given, from that of the result; the rows of both may lie apart."""
    check(x)
    out = torch.empty_like(x) if out is None else out
    assert (out.shape, out.dtype) == (x.shape, x.dtype) == (grad.shape, grad.dtype), (out.shape, out.dtype, grad.shape, grad.dtype)
    call(f"backward_{kernel}_{NAMES[x.dtype]}", x, grad, out, *rows_of(x), row_stride(grad), row_stride(out))
    return out


def multiply_by_gate(gate: torch.Tensor, up: torch.Tensor, kernel: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """activation(gate) * up, in `out`, if given; the rows of all may lie apart."""
    assert gate.shape == up.shape
    assert gate.dtype == up.dtype, (gate.dtype, up.dtype)
    assert row_stride(up) == row_stride(gate)
    out = torch.empty(gate.shape, dtype=gate.dtype) if out is None else out
    assert (out.shape, out.dtype) == (gate.shape, gate.dtype), (out.shape, out.dtype)
    call(f"times_{kernel}_{NAMES[gate.dtype]}", gate, up, out, *rows_of(gate), row_stride(gate), row_stride(out))
    return out


def multiply_by_gate_backward(
    gate: torch.Tensor,
    up: torch.Tensor,
    grad: torch.Tensor,
    kernel: str,
    both: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradients of gate and up, side by side as of one product: [..., 2 width], in `both`, if given; from that of the result.

    `out`, if given, is filled with the result once more, as `multiply_by_gate` made it; it may be `grad`. The rows of all may lie apart.
    """
    assert (grad.shape, grad.dtype) == (gate.shape, gate.dtype), (grad.shape, grad.dtype)
    width = gate.shape[-1]
    both = torch.empty(*gate.shape[:-1], 2 * width, dtype=gate.dtype) if both is None else both
    assert (both.shape, both.dtype) == ((*gate.shape[:-1], 2 * width), gate.dtype), (both.shape, both.dtype)
    assert out is None or (out.shape, out.dtype) == (gate.shape, gate.dtype), (out.shape, out.dtype)
    strides = row_stride(gate), row_stride(grad), row_stride(both), 0 if out is None else row_stride(out)
    call(f"times_backward_{kernel}_{NAMES[gate.dtype]}", gate, up, grad, both, both[..., width:], out, *rows_of(gate), *strides)
    return both


def rotate_(rows: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> None:
    """Rotary positions of the first `heads` heads of rows [tokens, columns] in place, by cos and sin [tokens, head size]; or back."""
    check(cos)
    check(sin)
    width = cos.shape[-1]
    assert rows.stride(1) == 1
    assert heads * width <= rows.shape[1]
    assert cos.numel() == sin.numel() == len(rows) * width
    strides = 0, rows.stride(0), width, rows.stride(0), 0
    call(f"rotary_{NAMES[rows.dtype]}_{NAMES[cos.dtype]}", rows, cos, sin, rows, 1, len(rows), heads, width, *strides, int(back))


def gelu_name(approximate: str) -> str:
    """What the kernel is called of a GELU that is exact (`none`) or approximated (`tanh`)."""
    return {"none": "gelu", "tanh": "gelu_tanh"}[approximate]


def check(x: torch.Tensor) -> None:
    """Holds a tensor to what kernels read."""
    assert (x.device.type, x.dtype) in (("cpu", dtype) for dtype in NAMES), (x.device, x.dtype)
    assert x.is_contiguous(), x.stride()


def rows_of(x: torch.Tensor, *weights: torch.Tensor) -> tuple[int, int]:
    """(how many rows, how wide), and a number in each of `weights` for every column."""
    width = x.shape[-1]
    assert all(weight.shape == (width,) and weight.is_contiguous() for weight in weights), x.shape
    return x.numel() // max(width, 1), width


def row_stride(x: torch.Tensor) -> int:
    """How far the rows of the last dimension lie apart, which must be the same for all."""
    if x.is_contiguous():
        return x.shape[-1]
    rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
    assert x.device.type == "cpu", x.device
    assert rows.data_ptr() == x.data_ptr(), x.stride()
    assert rows.stride(1) == 1, x.stride()
    return rows.stride(0)
