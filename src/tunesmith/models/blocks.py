"""The blocks (transformer layers) of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def find_blocks(model: Any, side: str = "decoder") -> tuple[str, torch.nn.ModuleList] | None:
    """Name and list of the blocks, the list of modules that holds the most weights, of an encoder-decoder those of one side; None where
    there is no list."""
    import torch

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if model.config.is_encoder_decoder:
        lists = [(name, module) for name, module in lists if side in name.split(".")] or lists
    return max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters())) if lists else None
