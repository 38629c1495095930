"""The order of training: which rows make each step, and how a step is cut into micro-batches with little padding.

A pure function of lengths, sizes and seed. Nothing is communicated and nothing remembered, so a resumed run sees the same
batches, and two processes see the halves of the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Step = list[np.ndarray]
"""Row indices of each micro-batch of one optimizer step."""


@dataclass(frozen=True)
class BatchPlan:
    """Steps of `rows_per_step` rows in the order of `seed` and epoch, each cut by length."""

    lengths: np.ndarray
    """Tokens of each row, [rows]."""
    rows_per_step: int
    tokens_per_micro_batch: int
    """Upper bound on rows x longest row of a micro-batch (a single longer row stands alone)."""
    seed: int
    world_size: int = 1
    pack: bool = False
    """Whether the rows of a micro-batch lie end to end, so that nothing is padded."""
    end_to_end: bool = False
    """Whether the model lays the tokens of a padded micro-batch end to end, so that padding costs next to nothing."""
    apart: np.ndarray | None = None
    """Keys of each row, [rows, keys]: rows that share one are drawn into different steps, as far as that can be; None: as they come."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-len(self.lengths) // self.rows_per_step)

    def order(self, epoch: int) -> np.ndarray:
        """All row indices, shuffled for this epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))

    def drawn(self, epoch: int) -> list[np.ndarray]:
        """The rows of each step of an epoch, over all processes."""
        order = self.order(epoch)
        if self.apart is not None:
            return draw_apart(order, self.apart, self.rows_per_step)
        return [order[start : start + self.rows_per_step] for start in range(0, len(order), self.rows_per_step)]

    def batches(self, epoch: int, rank: int = 0) -> list[Step]:
        """Every step of an epoch, as one process computes it."""
        return [self.cut(rows[rank :: self.world_size]) for rows in self.drawn(epoch)]

    def cut(self, rows: np.ndarray, tokens: int | None = None) -> Step:
        """Rows sorted by length and cut where the micro-batch would exceed its tokens (or `tokens`, where the plan's are too many), or
        where padding would cost more than a pass."""
        cut = fill if self.pack else cut_evenly if self.end_to_end else cut_by_length
        return [rows[part] for part in cut(self.lengths[rows], tokens or self.tokens_per_micro_batch)]

    def num_computed(self, part: np.ndarray) -> int:
        """Tokens that the model computes for a micro-batch, padding among them."""
        lengths = self.lengths[part]
        return int(lengths.sum()) if self.pack or self.end_to_end else len(part) * int(lengths.max())


def draw_apart(order: np.ndarray, keys: np.ndarray, rows_per_step: int) -> list[np.ndarray]:
    """Rows in this order, so many a step; one that shares a key with a row of the step waits for a later step, and for the last ones there
    may be no step left without.

    keys is [rows, keys].
    """
    waiting = order.tolist()
    steps = []
    while waiting:
        step: list[int] = []
        seen: set[int] = set()
        left: list[int] = []
        for place, row in enumerate(waiting):
            if len(step) == rows_per_step:
                left += waiting[place:]
                break
            own = keys[row].tolist()
            if seen.isdisjoint(own):
                step.append(row)
                seen.update(own)
            else:
                left.append(row)
        room = min(rows_per_step - len(step), len(left))
        steps.append(np.asarray(step + left[:room], dtype=order.dtype))
        waiting = left[room:]
    return steps


def num_sharing(steps: Sequence[np.ndarray], keys: np.ndarray) -> int:
    """Rows that share a key with an earlier row of their step."""
    count = 0
    for step in steps:
        seen: set[int] = set()
        for row in step:
            own = keys[row].tolist()
            count += not seen.isdisjoint(own)
            seen.update(own)
    return count


def cut_by_length(
    lengths: np.ndarray | Sequence[int], tokens_per_batch: int, rows_per_batch: int | None = None, pass_cost_tokens: int = 128
) -> list[np.ndarray]:
    """Indices into lengths, in batches of similar length, longest first.

    Chooses the cuts that minimise padded tokens plus `pass_cost_tokens` for each batch (the fixed cost of a pass through the
    model, in tokens), under the bound rows x longest <= tokens_per_batch.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    if rows_per_batch is not None or len(order) > 4096:
        return _cut_greedily(lengths, order, tokens_per_batch, rows_per_batch or len(order))
    num = len(order)
    ordered = lengths[order].astype(np.int64)
    best = np.zeros(num + 1, dtype=np.int64)
    cut_at = np.zeros(num + 1, dtype=np.int64)
    for end in range(1, num + 1):
        starts = np.arange(end)
        sizes = (end - starts) * ordered[:end]
        cost = best[:end] + sizes + pass_cost_tokens
        cost[(sizes > tokens_per_batch) & (end - starts > 1)] = np.iinfo(np.int64).max
        cut_at[end] = int(np.argmin(cost))
        best[end] = cost[cut_at[end]]
    parts = []
    end = num
    while end > 0:
        parts.append(order[cut_at[end] : end])
        end = int(cut_at[end])
    return parts[::-1]


def cut_evenly(lengths: np.ndarray | Sequence[int], tokens_per_batch: int) -> list[np.ndarray]:
    """Indices into lengths, longest first, in few batches of at most so many tokens (a single longer row stands alone), all of about
    as many."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    left = int(lengths.sum())
    parts: list[list[int]] = []
    room = 0
    for index in order:
        length = int(lengths[index])
        if not parts or room < length:
            num_parts = max(-(-left // tokens_per_batch), 1)
            parts.append([])
            room = min(max(-(-left // num_parts) + length, length), max(tokens_per_batch, length))
        parts[-1].append(int(index))
        room -= length
        left -= length
    return [np.asarray(part) for part in parts]


def fill(lengths: np.ndarray | Sequence[int], tokens_per_batch: int) -> list[np.ndarray]:
    """Indices into lengths, in batches of at most so many tokens (a single longer row stands alone): first fit, longest first."""
    lengths = np.asarray(lengths)
    parts: list[list[int]] = []
    left: list[int] = []
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        place = next((number for number, room in enumerate(left) if room >= length), None)
        if place is None:
            parts.append([])
            left.append(tokens_per_batch)
            place = len(parts) - 1
        parts[place].append(int(index))
        left[place] -= length
    return [np.asarray(part) for part in parts]


def _cut_greedily(lengths: np.ndarray, order: np.ndarray, tokens_per_batch: int, rows_per_batch: int) -> list[np.ndarray]:
    parts, start = [], 0
    while start < len(order):
        rows = min(rows_per_batch, max(int(tokens_per_batch // max(int(lengths[order[start]]), 1)), 1))
        parts.append(order[start : start + rows])
        start += rows
    return parts
