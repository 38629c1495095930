"""Only the rows of the embedding matrix that the data reads are trained.

The others would have no gradient, and AdamW without decay leaves them as they are: gradients, moments and their passes over memory are
those of the rows in use, and the result is the same. What is saved and loaded is the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd.function import once_differentiable

from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts
from tunesmith.speed.instances import override

MOST_USED = 0.8
"""Share of the rows in use above which nothing is gained."""


def why_not(facts: Facts) -> str | None:
    """The matrix is not trained, is also the head's, decays, or is used nearly whole."""
    module = facts.model.get_input_embeddings()
    head = facts.model.get_output_embeddings()
    if not facts.training or not module.weight.requires_grad:
        return "the embeddings are not trained"
    if head is not None and head.weight is module.weight:
        return "the head is the embedding matrix, and reads every row"
    if sum(getattr(other, "weight", None) is module.weight for other in facts.model.modules()) > 1:
        return "several modules hold the embedding matrix"
    if facts.weight_decay:
        return "weight decay moves every row"
    if type(module) is not torch.nn.Embedding or module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        return "the embeddings are of another kind"
    used = len(_rows_in_use(facts, module))
    if used > MOST_USED * module.num_embeddings:
        return f"the data uses {used:,} of {module.num_embeddings:,} rows"
    return None


def apply(facts: Facts) -> Callable[[], None]:
    """A matrix of the rows in use in the place of the whole one."""
    module = facts.model.get_input_embeddings()
    whole: torch.Tensor = module.weight
    used = _rows_in_use(facts, module)
    place = torch.full((module.num_embeddings,), -1)
    place[used] = torch.arange(len(used))
    rows = torch.nn.Parameter(whole.detach()[used])
    padding = None if module.padding_idx is None else int(place[module.padding_idx])
    synced = rows._version
    gradient = _Gradient(rows, padding)

    def sync() -> torch.Tensor:
        nonlocal synced
        if synced != rows._version:
            with torch.no_grad():
                whole[used] = rows
            synced = rows._version
        return whole.detach()

    def forward(input: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return F.embedding(input, sync(), module.padding_idx)
        places = place[input]
        assert int(places.min()) >= 0, "a token that no training row has"
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # what adds gradients up wants to be handed them
            return F.embedding(places, rows, padding)
        return _Embedding.apply(rows, places, gradient)  # type: ignore[no-any-return, no-untyped-call]

    def save(_: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
        state[f"{prefix}weight"] = sync()

    def load(_: Any, state: dict[str, torch.Tensor], prefix: str, *others: Any) -> None:
        found = state.get(f"{prefix}weight")
        if found is not None and found.shape == whole.shape:
            with torch.no_grad():
                whole.copy_(found)
            state[f"{prefix}weight"] = found[used]

    module.weight = rows
    handles = [module.register_state_dict_post_hook(save), module.register_load_state_dict_pre_hook(load)]
    undo_forward = override({module: forward})

    def undo() -> None:
        sync()
        undo_forward()
        for handle in handles:
            handle.remove()
        module.weight = whole

    return undo


class _Gradient:
    """The gradient of the rows: one tensor for all steps, of which only what the last step wrote is cleared."""

    def __init__(self, rows: torch.nn.Parameter, padding: int | None) -> None:
        self.rows, self.padding = rows, padding
        self._tensor: torch.Tensor | None = None
        self._written: list[torch.Tensor] = []

    def add(self, places: torch.Tensor, grad: torch.Tensor) -> None:
        """Adds grad [tokens, width] to the rows at `places`, as the backward pass of an embedding does."""
        if self._tensor is None:
            self._tensor = torch.zeros_like(self.rows)
        if self.rows.grad is None:
            for written in self._written:
                self._tensor[written] = 0
            self._written.clear()
            self.rows.grad = self._tensor
        self.rows.grad.index_add_(0, places, grad.to(self.rows.dtype))
        if self.padding is not None:
            self.rows.grad[self.padding] = 0
        self._written.append(places)


class _Embedding(torch.autograd.Function):
    """F.embedding whose gradient is not the size of the matrix."""

    @staticmethod
    def forward(ctx: Any, rows: torch.nn.Parameter, places: torch.Tensor, gradient: _Gradient) -> torch.Tensor:
        ctx.places, ctx.gradient = places, gradient
        return F.embedding(places, rows)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        ctx.gradient.add(ctx.places.flatten(), grad.flatten(0, -2))
        return None, None, None


def _rows_in_use(facts: Facts, module: torch.nn.Embedding) -> torch.Tensor:
    """The ids that the training rows hold, and padding, ascending."""
    ids = torch.from_numpy(facts.token_ids())
    padding = facts.model.config.pad_token_id
    start = getattr(facts.model.config, "decoder_start_token_id", None)
    extra = {index for index in (padding, module.padding_idx, start) if index is not None}
    used: torch.Tensor = torch.cat([ids, torch.tensor(sorted(extra), dtype=torch.int64)]).unique()  # type: ignore[no-untyped-call]
    return used


EMBEDDING_ROWS = Acceleration(
    name="embedding_rows", summary="only the embedding rows that the data reads are trained", why_not=why_not, apply=apply
)
