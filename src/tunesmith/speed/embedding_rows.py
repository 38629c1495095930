"""Only the rows of the embedding matrix that the data reads are in memory, and trained.

The others would have no gradient, and AdamW without decay leaves them as they are: gradients, moments and their passes over memory are
those of the rows in use, and the result is the same. What is saved and loaded is the whole matrix; until then it stays in the model's file,
if it came from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd.function import once_differentiable

from tunesmith.models.mapped import give_back
from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import override

MOST_USED = 0.8
"""Share of the rows in use above which nothing is gained."""


def why_not(facts: Facts) -> str | None:
    """Another device; nothing is trained, or the matrix is also the head's, decays, or is used nearly whole."""
    if not facts.on_cpu:
        return "measured on processors only"
    if not facts.training:
        return "nothing is trained"
    module = facts.model.get_input_embeddings()
    head = facts.model.get_output_embeddings()
    if head is not None and head.weight is module.weight:
        return "the head is the embedding matrix, and reads every row"
    if sum(getattr(other, "weight", None) is module.weight for other in facts.model.modules()) > 1:
        return "several modules hold the embedding matrix"
    if facts.weight_decay and module.weight.requires_grad:
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
    in_use = _InUse(module, _rows_in_use(facts, module))
    if not in_use.rows.requires_grad:
        if not in_use.is_given_back:
            raise Unfit("the embeddings are frozen, and not as their file has them: they are in memory anyway")
        return override({module: in_use.read})
    module.weight = in_use.rows
    handles = [  # torch marks the functions that it is given, which methods cannot be
        module.register_state_dict_post_hook(lambda *given: in_use.save(*given)),
        module.register_load_state_dict_pre_hook(lambda *given: in_use.load(*given)),
    ]
    undo_forward = override({module: in_use.forward})

    def undo() -> None:
        module.weight = in_use.sync()
        undo_forward()
        for handle in handles:
            handle.remove()

    return undo


class _InUse:
    """The rows in use, and the whole matrix."""

    def __init__(self, module: Any, used: torch.Tensor) -> None:
        self.module, self.used, self.whole = module, used, module.weight
        self.place = torch.full((module.num_embeddings,), -1)
        """Of each token among the rows in use, or -1."""
        self.place[used] = torch.arange(len(used))
        self.rows = torch.nn.Parameter(self.whole.detach()[used], requires_grad=self.whole.requires_grad)
        self.is_given_back = give_back(self.whole)
        self.padding = None if module.padding_idx is None else int(self.place[module.padding_idx])
        self.gradient = _Gradient(self.rows, self.padding)
        self.synced = self.rows._version

    def read(self, input: torch.Tensor) -> torch.Tensor:
        """The vectors of any tokens; those that no training row has are read from the whole matrix."""
        places = self.place[input]
        found, others = F.embedding(places.clamp_min(0), self.rows), places < 0
        if others.any():
            found[others] = self.whole.detach()[input[others]]
        return found

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """In the place of the module's, where the rows are trained."""
        if not self.module.training:
            return self.read(input)
        places = self.place[input]
        assert int(places.min()) >= 0, "a token that no training row has"
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # what adds gradients up wants to be handed them
            return F.embedding(places, self.rows, self.padding)
        return embed(self.rows, places, self.gradient)

    def sync(self) -> torch.nn.Parameter:
        """The whole matrix, with what the rows have become."""
        if self.synced != self.rows._version:
            with torch.no_grad():
                self.whole[self.used] = self.rows
            self.synced = self.rows._version
        return self.whole  # type: ignore[no-any-return]

    def save(self, _: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
        """Puts the whole matrix into a state dict."""
        state[f"{prefix}weight"] = self.sync().detach()

    def load(self, _: Any, state: dict[str, torch.Tensor], prefix: str, *others: Any) -> None:
        """Takes the whole matrix from a state dict, and leaves the rows in it."""
        found = state.get(f"{prefix}weight")
        if found is not None and found.shape == self.whole.shape:
            with torch.no_grad():
                self.whole.copy_(found)
            state[f"{prefix}weight"] = found[self.used]


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


class Gradient(Protocol):
    """Where the gradient of an embedding goes."""

    def add(self, places: torch.Tensor, grad: torch.Tensor) -> None:
        """Adds grad [tokens, width] to that of the rows at `places`."""


def embed(matrix: torch.Tensor, places: torch.Tensor, gradient: Gradient) -> torch.Tensor:
    """The rows of a matrix at `places`; `gradient` is given theirs, and the matrix is no part of the graph from here."""
    reached = torch.zeros((), requires_grad=torch.is_grad_enabled())
    return _Embedding.apply(reached, matrix.detach(), places, gradient)  # type: ignore[no-any-return, no-untyped-call]


class _Embedding(torch.autograd.Function):
    """F.embedding whose gradient is not the size of the matrix; the first input is there to be reached by the backward pass."""

    @staticmethod
    def forward(ctx: Any, reached: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, gradient: Gradient) -> torch.Tensor:
        ctx.places, ctx.gradient = places, gradient
        return F.embedding(places, rows)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        ctx.gradient.add(ctx.places.flatten(), grad.flatten(0, -2))
        return None, None, None, None


def _rows_in_use(facts: Facts, module: torch.nn.Embedding) -> torch.Tensor:
    """The ids that the training rows hold, and padding, ascending."""
    ids = torch.from_numpy(facts.token_ids())
    padding = facts.model.config.pad_token_id
    start = getattr(facts.model.config, "decoder_start_token_id", None)
    extra = {index for index in (padding, module.padding_idx, start) if index is not None}
    used: torch.Tensor = torch.cat([ids, torch.tensor(sorted(extra), dtype=torch.int64)]).unique()  # type: ignore[no-untyped-call]
    return used


EMBEDDING_ROWS = Acceleration(
    name="embedding_rows", summary="only the embedding rows that the data reads are in memory, and trained", why_not=why_not, apply=apply
)
