"""The blocks (transformer layers) of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def find_blocks(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList] | None:
    """Name and list of the blocks, the list of modules that holds the most weights; None where there is no list."""
    import torch

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters())) if lists else None
