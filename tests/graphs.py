"""What a tensor came through."""

from __future__ import annotations

from typing import Any

import torch


def nodes_of(tensor: torch.Tensor) -> list[Any]:
    """The functions in its graph."""
    seen: dict[Any, None] = {}
    left: list[Any] = [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen[node] = None
            left += [following for following, _ in node.next_functions]
    return list(seen)


def node_names(tensor: torch.Tensor) -> list[str]:
    """The names of the functions in its graph."""
    return [node.name() for node in nodes_of(tensor)]
