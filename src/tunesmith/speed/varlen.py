"""Attention within sequences that lie end to end, or from each to another, without a padded batch in memory.

The compiled kernel computes each sequence by itself. Without it, or where it is measured to be slower, sequences are padded to a
multiple of 32, and those of one length are computed together by torch, a few megabytes of scores at a time: by products and a softmax, or
by scaled_dot_product_attention, whose dropout no seed decides. None of the three keeps scores for the gradient.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tunesmith.native import attention as native
from tunesmith.native.attention import BIAS_MARGIN, Shape
from tunesmith.native.library import library
from tunesmith.runs.environment import measured

MEASURED_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
MAX_SCORE_BYTES = 2**24
UNBOUNDED = 2**30
"""More tokens than any sequence has."""


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    boundaries: torch.Tensor,
    *,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
    seed: int = 0,
    window: int | None = None,
    key_boundaries: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale q k^T + bias) v within each sequence, [tokens, heads, d], of q [tokens, heads, d] and k, v [tokens, kv_heads, d].

    fp32 or bf16, the last dimension contiguous; `boundaries` is int32 [num_sequences + 1], cumulative; `scale` is positive. `window` is
    what transformers' masks take as `sliding_window`: token i sees j with i - j < window if causal, else with |i - j| <= window.
    With `key_boundaries`, as many, the tokens of each sequence see all those of another instead, which is as empty. `bias` [heads, 2 n - 1]
    is by the distance from a token to the one it sees, from 1 - n to n - 1; no sequence is longer than n.
    Which probabilities are dropped is a function of `seed`: give each layer and step its own.
    """
    key_boundaries = boundaries if key_boundaries is None else key_boundaries
    assert len(boundaries) == len(key_boundaries), (boundaries, key_boundaries)
    assert int(boundaries[-1]) == len(q), (boundaries[-1], q.shape)
    assert int(key_boundaries[-1]) == len(k) == len(v), (key_boundaries[-1], k.shape, v.shape)
    assert key_boundaries is boundaries or not (causal or window), "tokens of one text have no place in another"
    assert q.shape[1] % k.shape[1] == 0, (q.shape, k.shape)
    assert scale > 0, scale
    assert 0 <= dropout < 1, dropout
    assert window is None or window >= causal, window
    left = UNBOUNDED if window is None else window - causal
    right = 0 if causal else left
    if bias is not None:
        assert key_boundaries is boundaries, "tokens of one text have no distance to those of another"
        assert bias.shape == (q.shape[1], bias.shape[1] // 2 * 2 + 1), bias.shape
        bias = torch.nn.functional.pad(bias.float(), (BIAS_MARGIN, BIAS_MARGIN))
    shape = Shape(boundaries.contiguous(), key_boundaries.contiguous(), left, right, scale, dropout, seed, bias)
    output: torch.Tensor = _Attention.apply(q, k, v, bias, replace(shape, bias=None if bias is None else bias.detach()))  # type: ignore[no-untyped-call]
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, shape: Shape) -> torch.Tensor:
        own = tuple(shape.boundaries.tolist())
        other = own if shape.key_boundaries is shape.boundaries else tuple(shape.key_boundaries.tolist())
        plan = _plan(own, other, q.shape[2], q.dtype, library() is not None, shape.dropout > 0 or shape.bias is not None)
        out, row_sums = torch.empty(q.shape, dtype=q.dtype), torch.empty(*q.shape[:2], 2)
        if len(plan.native):
            native.forward(q, k, v, out, row_sums, shape, plan.native)
        if plan.padded:
            with torch.autocast("cpu", enabled=False):
                for group in _groups(plan, q, k, shape):
                    group.forward(q, k, v, out)
        ctx.save_for_backward(q, k, v, out, row_sums)
        ctx.plan, ctx.shape = plan, shape
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (*inputs, row_sums), plan, shape = ctx.saved_tensors, ctx.plan, ctx.shape
        q, k, v, _ = inputs
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        within = shape.boundaries is shape.key_boundaries
        grads = _side_by_side(q, k, v) if within else [torch.empty_like(q), *_side_by_side(k, v)]
        grad_bias = None if shape.bias is None else torch.zeros_like(shape.bias)
        if len(plan.native):
            found = native.backward(inputs, grad, row_sums, shape, plan.native, grads)
            if grad_bias is not None and found is not None:
                grad_bias += found
        if plan.padded:
            with torch.autocast("cpu", enabled=False):
                for group in _groups(plan, q, k, shape, grad_bias):
                    group.backward(inputs, grad, grads)
        return *grads, grad_bias, None


def _side_by_side(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Empty ones of their shapes, columns of one matrix, as the product that they may have come from wants them."""
    widths = [tensor.shape[1] * tensor.shape[2] for tensor in tensors]
    parts = torch.empty(len(tensors[0]), sum(widths), dtype=tensors[0].dtype).split_with_sizes(widths, 1)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


# ---- which sequences are computed by what ----


@dataclass(frozen=True)
class Plan:
    """Which sequences are computed by what."""

    native: torch.Tensor
    """int32: the sequences that the kernel computes, longest first so that threads finish together."""
    padded: list[tuple[str, list[tuple[slice, slice]]]]
    """(`products` or `sdpa`, the tokens and the keys of each sequence), together those that are as long when padded."""


@functools.lru_cache(maxsize=64)
def _plan(boundaries: tuple[int, ...], key_boundaries: tuple[int, ...], d: int, dtype: torch.dtype, compiled: bool, plain: bool) -> Plan:
    """`plain` is for what sdpa does not do: dropout that a seed decides, and the gradient of a bias."""
    by_kernel: list[int] = []
    padded: dict[tuple[str, int, int], list[tuple[slice, slice]]] = {}
    for sequence in sorted(range(len(boundaries) - 1), key=lambda index: boundaries[index] - boundaries[index + 1]):
        tokens, keys = slice(*boundaries[sequence : sequence + 2]), slice(*key_boundaries[sequence : sequence + 2])
        assert bool(_length(tokens)) == bool(_length(keys)), (tokens, keys)
        if not _length(tokens):
            continue
        length = max(_length(tokens), _length(keys))
        seconds = _seconds(d, dtype, next((limit for limit in MEASURED_LENGTHS if length <= limit), MEASURED_LENGTHS[-1]), compiled)
        way = min((way for way in seconds if not (plain and way == "sdpa")), key=seconds.__getitem__)
        if way == "native":
            by_kernel.append(sequence)
        else:
            padded.setdefault((way, _padded_length(tokens), _padded_length(keys)), []).append((tokens, keys))
    return Plan(torch.tensor(by_kernel, dtype=torch.int32), [(key[0], sequences) for key, sequences in padded.items()])


def is_native_throughout(d: int, dtype: torch.dtype) -> bool:
    """Whether the compiled kernel computes sequences of any length, and so each by itself."""
    if library() is None:
        return False
    return all(
        min(seconds, key=seconds.__getitem__) == "native" for seconds in (_seconds(d, dtype, length, True) for length in MEASURED_LENGTHS)
    )


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _padded_length(part: slice) -> int:
    return -(-_length(part) // 32) * 32


def _seconds(d: int, dtype: torch.dtype, length: int, compiled: bool) -> dict[str, float]:
    """How long each way takes, forward and backward, for sequences of about this length."""

    def measure() -> dict[str, float]:
        with torch.inference_mode(False):
            return _measure(d, dtype, length, compiled)

    seconds: dict[str, float] = measured("attention", d, str(dtype), length, compiled, measure=measure)
    return seconds


def _measure(
    d: int, dtype: torch.dtype, length: int, compiled: bool, heads: int = 4, tokens: int = 1024, repeats: int = 3
) -> dict[str, float]:
    starts = range(0, tokens, length)
    boundaries = torch.tensor([*starts, tokens], dtype=torch.int32)
    shape = Shape(boundaries, boundaries, UNBOUNDED, UNBOUNDED, d**-0.5, 0.0, 0)
    q, k, v, out, *grads = torch.zeros(7, tokens, heads, d, dtype=dtype)
    row_sums = torch.empty(tokens, heads, 2)
    sequences = torch.arange(len(starts), dtype=torch.int32)

    def native_way() -> None:
        native.forward(q, k, v, out, row_sums, shape, sequences)
        native.backward([q, k, v, out], q, row_sums, shape, sequences, grads)

    def padded_way(way: str) -> None:
        plan = Plan(sequences[:0], [(way, [(slice(start, start + length),) * 2 for start in starts])])
        for group in _groups(plan, q, k, shape):
            group.forward(q, k, v, out)
            group.backward([q, k, v, out], q, grads)

    ways: dict[str, Callable[[], None]] = {
        "products": functools.partial(padded_way, "products"),
        "sdpa": functools.partial(padded_way, "sdpa"),
    }
    ways |= {"native": native_way} if compiled else {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in [*ways] * (1 + repeats):
        start = time.perf_counter()
        ways[way]()
        seconds[way].append(time.perf_counter() - start)
    return {way: min(values[1:]) for way, values in seconds.items()}


# ---- groups of padded sequences, by torch ----


def _groups(plan: Plan, q: torch.Tensor, k: torch.Tensor, shape: Shape, grad_bias: torch.Tensor | None = None) -> Iterator[_Group]:
    """The padded groups of a plan, in parts whose fp32 scores fit in MAX_SCORE_BYTES (or are those of one sequence)."""
    generator = torch.Generator().manual_seed(shape.seed)
    for way, sequences in plan.padded:
        size = max(1, MAX_SCORE_BYTES // (4 * q.shape[1] * _padded_length(sequences[0][0]) * _padded_length(sequences[0][1])))
        for first in range(0, len(sequences), size):
            yield GROUPS[way](sequences[first : first + size], k.shape[1], shape, generator, grad_bias)


class _Side:
    """Sequences of queries or of keys, padded to one length."""

    def __init__(self, sequences: Sequence[slice], kv_heads: int) -> None:
        self.padded_length, self.num_sequences, self.kv_heads = _padded_length(sequences[0]), len(sequences), kv_heads
        self.place = torch.arange(self.padded_length)
        starts, lengths = (
            torch.tensor(column)[:, None] for column in zip(*((part.start, _length(part)) for part in sequences), strict=True)
        )
        self.is_token = self.place < lengths
        self.tokens = torch.where(self.is_token, starts + self.place, starts).view(-1)

    def by_head(self, padded: torch.Tensor) -> torch.Tensor:
        """[kv_heads, n, heads that share keys, tokens, columns]."""
        return padded.view(self.kv_heads, self.num_sequences, -1, self.padded_length, padded.shape[2])

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """[tokens, heads or kv_heads, d] as [kv_heads * n, rows, d], rows of padding filled with some token."""
        d = rows.shape[2]
        gathered = rows.transpose(0, 1).index_select(1, self.tokens).view(self.kv_heads, -1, self.num_sequences, self.padded_length, d)
        return gathered.transpose(1, 2).reshape(self.kv_heads * self.num_sequences, -1, d)

    def write(self, padded: torch.Tensor, rows: torch.Tensor) -> None:
        """The inverse of `padded`, without the padding."""
        by_token = self.by_head(padded).permute(1, 3, 0, 2, 4)
        rows.index_copy_(0, self.tokens[self.is_token.view(-1)], by_token[self.is_token].reshape(-1, *rows.shape[1:]))


class _Group(ABC):
    """Sequences padded to one length. Matrices are [kv_heads * n, rows, columns]; the heads that share keys are more rows."""

    def __init__(
        self,
        sequences: list[tuple[slice, slice]],
        kv_heads: int,
        shape: Shape,
        generator: torch.Generator,
        grad_bias: torch.Tensor | None,
    ) -> None:
        self.queries, self.keys = (_Side(side, kv_heads) for side in zip(*sequences, strict=True))
        distance = self.queries.place[:, None] - self.keys.place
        visible = self.keys.is_token[:, None] & (distance <= shape.left) & (-distance <= shape.right)
        self.hidden = ~visible & self.queries.is_token[:, :, None]
        self.shape, self.generator, self.grad_bias = shape, generator, grad_bias
        self.bias_index = (shape.bias_center - distance).view(-1)
        """Of the bias of each query and key."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """Writes `out`."""
        self.queries.write(self._attend(self.queries.padded(q), self.keys.padded(k), self.keys.padded(v)), out)

    def backward(self, inputs: list[torch.Tensor], grad: torch.Tensor, grads: list[torch.Tensor]) -> None:
        """Writes the gradients of q, k, v from `inputs` (q, k, v, out) and the gradient of out."""
        queries, keys = self.queries, self.keys
        padded_grad = queries.padded(grad)
        queries.by_head(padded_grad).masked_fill_(~queries.is_token[:, None, :, None], 0)
        sides = (queries, keys, keys, queries)
        q, k, v, out = (side.padded(rows) for side, rows in zip(sides, inputs, strict=True))
        for side, padded, rows in zip(sides, self._differentiate(q, k, v, out, padded_grad), grads, strict=False):
            side.write(padded, rows)

    @abstractmethod
    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of padded q, k, v."""

    @abstractmethod
    def _differentiate(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of padded q, k, v."""


class _Sdpa(_Group):
    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        by_sequence = (self.keys.kv_heads, self.keys.num_sequences, -1, q.shape[2])
        visible = ~self.hidden.repeat(1, q.shape[1] // self.queries.padded_length, 1)[None]
        return torch.nn.functional.scaled_dot_product_attention(
            q.view(by_sequence), k.view(by_sequence), v.view(by_sequence), attn_mask=visible, scale=self.shape.scale
        ).flatten(0, 1)

    def _differentiate(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
        with torch.enable_grad():
            return torch.autograd.grad(self._attend(*leaves), leaves, grad)


class _Products(_Group):
    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        probabilities = self._softmax(q, k)
        kept = self._kept(probabilities)
        if kept is not None:
            probabilities *= kept
        return torch.bmm(probabilities.to(v.dtype), v)

    def _differentiate(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        probabilities = self._softmax(q, k)
        kept = self._kept(probabilities)
        grad_scores = torch.bmm(grad.float(), v.float().mT)
        if kept is not None:
            grad_scores *= kept
        grad_scores -= (out.float() * grad).sum(-1, keepdim=True)
        grad_scores *= probabilities
        if self.grad_bias is not None:
            by_head = self.queries.by_head(grad_scores).sum(1).reshape(len(self.grad_bias), -1)
            self.grad_bias.index_add_(1, self.bias_index, by_head)
        grad_scores *= self.shape.scale
        if kept is not None:
            probabilities *= kept
        grad_scores = grad_scores.to(q.dtype)
        return torch.bmm(grad_scores, k), torch.bmm(grad_scores.mT, q), torch.bmm(probabilities.to(q.dtype).mT, grad)

    def _softmax(self, padded_q: torch.Tensor, padded_k: torch.Tensor) -> torch.Tensor:
        """Probabilities, from fp32 products: in bf16, scores from 8 on come in steps of 1/16."""
        scores = torch.bmm(padded_q.float(), padded_k.float().mT).mul_(self.shape.scale)
        if self.shape.bias is not None:
            by_head = self.queries.by_head(scores)
            by_head += self.shape.bias[:, self.bias_index].view(by_head.shape[0], 1, *by_head.shape[2:])
        self.queries.by_head(scores).masked_fill_(self.hidden[:, None], torch.finfo(torch.float32).min)
        return torch.softmax(scores, -1)

    def _kept(self, probabilities: torch.Tensor) -> torch.Tensor | None:
        """What dropout multiplies with; drawn again in the gradient, where groups come in the same order."""
        threshold = round(self.shape.dropout * 2**16)
        if not threshold:
            return None
        words = torch.randint(-(2**63), 2**63 - 1, ((probabilities.numel() + 3) // 4,), generator=self.generator).view(torch.int16)
        kept = words[: probabilities.numel()].view(probabilities.shape) >= threshold - 2**15
        return kept.float().mul_(1 / (1 - self.shape.dropout))


GROUPS: dict[str, type[_Group]] = {"products": _Products, "sdpa": _Sdpa}
