"""Cross-entropy of rows of logits in one visit of each."""

from __future__ import annotations

import torch

from tunesmith.native.library import call
from tunesmith.native.tensors import NAMES, row_stride


def token_loss(
    logits: torch.Tensor, targets: torch.Tensor, scale: float, softcap: float | None, with_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy [rows] and whether the target is a likeliest token [rows], of the raw output [rows, vocabulary] of a head, whose
    rows may lie apart.

    With `with_grad` the gradient of the losses' sum is written over the logits.
    """
    assert targets.is_contiguous()
    rows, columns = logits.shape
    losses, correct = torch.empty(rows), torch.empty(rows, dtype=torch.bool)
    kernel = f"token_loss_{NAMES[logits.dtype]}"
    call(kernel, logits, targets, losses, correct, rows, columns, row_stride(logits), float(scale), float(softcap or 0.0), int(with_grad))
    return losses, correct
