"""What kernels want of the tensors that they are given."""

from __future__ import annotations

import torch

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
"""What a kernel of a type has in its name."""


def address(tensor: torch.Tensor | None) -> int | None:
    """Of the first element; None of nothing."""
    return None if tensor is None else tensor.data_ptr()


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
