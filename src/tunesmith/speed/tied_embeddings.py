"""Where the embedding matrix is also the head's, the gradient of the rows that were read is added to the head's where it lies.

Otherwise each backward pass fills a matrix of the size of the vocabulary with zeros, writes those rows, and adds it all to the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from tunesmith.registry import Acceleration
from tunesmith.speed.embedding_rows import embed
from tunesmith.speed.facts import Facts
from tunesmith.speed.instances import override


def why_not(facts: Facts) -> str | None:
    """Another device, or a matrix that is not trained, not the head's, or not plainly looked up."""
    if not facts.on_cpu:
        return "measured on processors only"
    module, head = facts.model.get_input_embeddings(), facts.model.get_output_embeddings()
    if not facts.training or not module.weight.requires_grad:
        return "the embeddings are not trained"
    if head is None or head.weight is not module.weight:
        return "the head has a matrix of its own, or there is none"
    if type(module) is not torch.nn.Embedding or module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        return "the embeddings are of another kind"
    return None


def apply(facts: Facts) -> Callable[[], None]:
    """The embeddings' backward pass."""
    module = facts.model.get_input_embeddings()
    gradient = _Gradient(module)

    def forward(input: torch.Tensor) -> torch.Tensor:
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # what adds gradients up wants to be handed them
            return F.embedding(input, module.weight, module.padding_idx)
        return embed(module.weight, input, gradient)

    return override({module: forward})


class _Gradient:
    """The matrix's own."""

    def __init__(self, module: torch.nn.Embedding) -> None:
        self.module = module

    def add(self, places: torch.Tensor, grad: torch.Tensor) -> None:
        """Adds grad [tokens, width] to the rows at `places`, but to that of padding, as the backward pass of an embedding does."""
        weight, padding = self.module.weight, self.module.padding_idx
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if padding is not None:
            grad = grad.masked_fill((places == padding)[:, None], 0)
        weight.grad.index_add_(0, places, grad.to(weight.dtype))


TIED_EMBEDDINGS = Acceleration(
    name="tied_embeddings",
    summary="the gradient of embeddings that are also the head's is added to the head's where it lies",
    why_not=why_not,
    apply=apply,
)
