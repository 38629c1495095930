"""What a tensor came through."""

from __future__ import annotations

from typing import Any

import torch


def node_names(tensor: torch.Tensor) -> list[str]:
    """The names of the functions in its graph."""
    seen: dict[Any, str] = {}
    left: list[Any] = [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen[node] = node.name()
            left += [following for following, _ in node.next_functions]
    return list(seen.values())
