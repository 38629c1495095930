"""Whether a model keeps examples apart that lie end to end."""

from __future__ import annotations

from typing import Any

import torch

PROBE_LENGTHS = (5, 9, 3)
TOLERANCE = 1e-4
"""Largest difference allowed, times the largest logit if that is above 1: fp32 sums in another order."""


def packed_difference(model: Any) -> float:
    """The largest difference of logits between examples end to end and each alone, relative to what rounding allows; above 1, one
    example sees another (or the model reads no positions)."""
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    drawn = torch.Generator().manual_seed(0)
    examples = [torch.randint(vocabulary, (length,), generator=drawn).to(device) for length in PROBE_LENGTHS]
    positions = torch.cat([torch.arange(len(example), device=device) for example in examples])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([model(input_ids=example[None, :]).logits[0] for example in examples]).float()
            packed = model(input_ids=torch.cat(examples)[None, :], position_ids=positions[None, :]).logits[0].float()
    except TypeError:  # the model takes no position_ids
        return float("inf")
    finally:
        model.train(was_training)
    return float((packed - alone).abs().max() / (TOLERANCE * max(float(alone.abs().max()), 1.0)))
