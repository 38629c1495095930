"""Attention within sequences that lie end to end, or from each to another, by the compiled kernel; any head dimension, fp32 and bf16."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunesmith.native.library import call


@dataclass(frozen=True)
class Shape:
    """What of a problem is not a tensor of numbers."""

    boundaries: torch.Tensor
    """int32 [num_sequences + 1]: where each sequence begins, and the end."""
    key_boundaries: torch.Tensor
    """The same of the keys that the tokens of each see; those tokens themselves, or others."""
    left: int
    """How many tokens before its own place a query sees."""
    right: int
    """How many tokens after its own place a query sees."""
    scale: float
    dropout: float
    seed: int


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, row_sums: torch.Tensor, shape: Shape, sequences: torch.Tensor
) -> None:
    """Writes `out` and `row_sums` (fp32 [tokens, heads, 2], for the gradient) of the tokens of `sequences` (int32 indices)."""
    _call("attention_forward", [q, k, v, out], row_sums, shape, sequences)


def backward(
    inputs: list[torch.Tensor], grad: torch.Tensor, row_sums: torch.Tensor, shape: Shape, sequences: torch.Tensor, grads: list[torch.Tensor]
) -> None:
    """Writes the gradients of q, k, v from `inputs` (q, k, v, out) and the gradient of out, for the tokens of `sequences`."""
    _call("attention_backward", [*inputs, grad, *grads], row_sums, shape, sequences)


def _call(kernel: str, tensors: list[torch.Tensor], row_sums: torch.Tensor, shape: Shape, sequences: torch.Tensor) -> None:
    q, k = tensors[:2]
    assert q.dtype in (torch.float32, torch.bfloat16), q.dtype
    assert all(tensor.dtype == q.dtype and tensor.stride(2) == 1 for tensor in tensors)
    assert row_sums.dtype == torch.float32
    assert row_sums.is_contiguous()
    assert shape.boundaries.dtype == shape.key_boundaries.dtype == sequences.dtype == torch.int32
    strides = torch.tensor([tensor.stride()[:2] for tensor in tensors])
    sizes = (len(sequences), q.shape[1], k.shape[1], q.shape[2], shape.left, shape.right)
    numbers = (float(shape.scale), float(shape.dropout), shape.seed, int(q.dtype == torch.bfloat16))
    call(kernel, *tensors, row_sums, strides, shape.boundaries, shape.key_boundaries, sequences, *sizes, *numbers)
