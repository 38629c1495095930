"""What a model of transformers computed, as one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits, or whatever stands first; of a model that points at an answer those of its start and its end, [rows, tokens, 2]."""
    import torch

    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    return outputs[0]  # type: ignore[no-any-return]
