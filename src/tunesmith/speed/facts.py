"""What is known when accelerations are chosen, and how a model is tried with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.models.blocks import find_blocks
from tunesmith.models.outputs import logits_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROBE_LENGTHS = (11, 7, 2)
PROBE_TARGET_LENGTH = 5
TOLERANCE = 1e-4
"""Largest difference allowed, times the largest output if that is above 1: fp32 sums in another order."""


class Unfit(Exception):  # noqa: N818
    """Why a model is not made for an acceleration, found while it was applied."""


@dataclass
class Facts:
    """The run that is to be made faster."""

    model: PreTrainedModel
    bf16: bool
    """Whether matrix products are in bf16 (autocast)."""
    training: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    """`train.extra`: what else Trainer is told."""
    weight_decay: float = 0.0
    token_ids: Callable[[], np.ndarray] = lambda: np.empty(0, np.int64)
    """The ids of the tokens that the training rows hold, each once."""

    num_tokens: int = 0
    """Of the training rows."""
    epochs: float = 1.0
    """How often each of them is read."""

    @property
    def on_cpu(self) -> bool:
        """Whether the model computes on the processor."""
        return str(self.model.device.type) == "cpu"

    @cached_property
    def blocks(self) -> tuple[str, torch.nn.ModuleList] | None:
        """Name and list of the model's blocks."""
        return find_blocks(self.model)

    @property
    def modules_of_blocks(self) -> list[torch.nn.Module]:
        """The modules of all blocks, an encoder's and a decoder's."""
        found = {id(side[1]): side[1] for name in ("encoder", "decoder") if (side := find_blocks(self.model, name)) is not None}
        return [module for blocks in found.values() for module in blocks.modules()]

    @property
    def writes_beside_reading(self) -> bool:
        """Whether a decoder writes one text while it reads another."""
        return bool(self.model.config.is_encoder_decoder) and self.model.get_output_embeddings() is not None

    @cached_property
    def probe(self) -> dict[str, torch.Tensor]:
        """Three rows of drawn tokens of different lengths, padded on the right: [3, 11]."""
        import torch

        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        mask = torch.arange(max(PROBE_LENGTHS))[None, :] < torch.tensor(PROBE_LENGTHS)[:, None]
        ids = torch.randint(vocabulary, mask.shape, generator=torch.Generator().manual_seed(0))
        pad = self.model.config.pad_token_id or 0
        batch = {"input_ids": ids.masked_fill(~mask, pad), "attention_mask": mask.long()}
        if self.writes_beside_reading:
            batch["decoder_input_ids"] = ids[:, :PROBE_TARGET_LENGTH].flip(1)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def outputs(self) -> torch.Tensor:
        """The model's logits (or hidden states) of the probe in eval mode, those of padding as 0."""
        import torch

        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                batch = self.probe
                logits = logits_of(self.model(**batch)).float()
        finally:
            self.model.train(was_training)
        is_per_token = logits.dim() == 3 and "decoder_input_ids" not in batch
        return logits * batch["attention_mask"][..., None] if is_per_token else logits


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two outputs, relative to what rounding allows; above 1 they are not the same."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / (TOLERANCE * max(float(expected.abs().max()), 1.0)))
