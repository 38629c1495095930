"""The kernels that accelerations are made of: native ones where a compiler made them, otherwise torch's."""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.native.library import library

FULL_SCALE = 1 << 16


def draw_seed() -> int:
    """A seed from torch's generator, which a checkpoint holds."""
    return int(torch.empty((), dtype=torch.int64).random_())


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Drops elements with probability `p` (to 16 bits) and scales the others by 1 / (1 - p)."""
    return _Dropout.apply(x, p) if library() is None else seeded_dropout(x, p, draw_seed())  # type: ignore[no-any-return, no-untyped-call]


def seeded_dropout(x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    """The same of a mask that `seed` says; native only."""
    from tunesmith.native import functions

    return functions.dropout(x.contiguous(), p, seed)


class _Dropout(torch.autograd.Function):
    """Four masks from each 64 bits of torch's generator."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> Any:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * FULL_SCALE) - FULL_SCALE // 2
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p) if p < 1 else 0.0
        return x * keep * ctx.scale

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (keep,) = ctx.saved_tensors
        return grad * keep * ctx.scale, None
