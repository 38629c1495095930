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
    bias: torch.Tensor | None = None
    """fp32 [heads, 2 bias_center + 1]: what is added to scaled scores, by the distance from a query to a key."""

    @property
    def bias_center(self) -> int:
        """Where the bias of distance 0 stands."""
        return 0 if self.bias is None else self.bias.shape[1] // 2


BIAS_MARGIN = 64
"""By how much a bias is longer on either side than the longest sequence."""


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, row_sums: torch.Tensor, shape: Shape, sequences: torch.Tensor
) -> None:
    """Writes `out` and `row_sums` (fp32 [tokens, heads, 2], for the gradient) of the tokens of `sequences` (int32 indices)."""
    _call("attention_forward", [q, k, v, out], row_sums, shape, sequences)


def backward(
    inputs: list[torch.Tensor], grad: torch.Tensor, row_sums: torch.Tensor, shape: Shape, sequences: torch.Tensor, grads: list[torch.Tensor]
) -> torch.Tensor | None:
    """Writes the gradients of q, k, v from `inputs` (q, k, v, out) and the gradient of out, for the tokens of `sequences`; returns that of
    the bias, if there is one."""
    if shape.bias is None:
        _call("attention_backward", [*inputs, grad, *grads], row_sums, shape, sequences, None)
        return None
    by_sequence = torch.zeros(len(shape.boundaries) - 1, *shape.bias.shape)
    _call("attention_backward", [*inputs, grad, *grads], row_sums, shape, sequences, by_sequence)
    return by_sequence.sum(0)


def _call(
    kernel: str, tensors: list[torch.Tensor], row_sums: torch.Tensor, shape: Shape, sequences: torch.Tensor, *more: torch.Tensor | None
) -> None:
    q, k = tensors[:2]
    assert q.dtype in (torch.float32, torch.bfloat16), q.dtype
    assert all(tensor.dtype == q.dtype and tensor.stride(2) == 1 for tensor in tensors)
    assert row_sums.dtype == torch.float32
    assert row_sums.is_contiguous()
    assert shape.boundaries.dtype == shape.key_boundaries.dtype == sequences.dtype == torch.int32
    strides = torch.tensor([tensor.stride()[:2] for tensor in tensors])
    sizes = (len(sequences), q.shape[1], k.shape[1], q.shape[2], shape.left, shape.right)
    numbers = (float(shape.scale), float(shape.dropout), shape.seed, int(q.dtype == torch.bfloat16))
    bias = shape.bias, 0 if shape.bias is None else shape.bias.shape[1], shape.bias_center
    assert shape.bias is None or (shape.bias.dtype == torch.float32 and shape.bias.is_contiguous() and len(shape.bias) == q.shape[1])
    call(kernel, *tensors, row_sums, strides, shape.boundaries, shape.key_boundaries, sequences, *sizes, *numbers, *bias, *more)
