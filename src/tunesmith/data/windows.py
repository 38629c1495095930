"""Windows over units of several tokens each, such as words, where all do not fit into the model at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split_windows(lengths: Sequence[int], capacity: int, stride: int) -> list[tuple[int, int]]:
    """(first, end) of windows that cover units of these lengths in tokens, none longer than `capacity`.

    Neighbours share up to `stride` tokens, at most half of the capacity. No length may exceed the capacity.
    """
    at = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    stride = min(stride, capacity // 2)
    windows: list[tuple[int, int]] = []
    start = 0
    while True:
        end = int(np.searchsorted(at, at[start] + capacity, "right")) - 1
        windows.append((start, end))
        if end == len(lengths):
            return windows
        shared = int(np.searchsorted(at, at[end] - stride))
        start = max(shared, int(np.searchsorted(at, at[end + 1] - capacity)))


def owners(lengths: Sequence[int], windows: Sequence[tuple[int, int]]) -> np.ndarray:
    """The window [units] in which each unit has the most context, in tokens, on the side where it has less; the first of equals."""
    at = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    most = np.full(len(lengths), -1, dtype=np.int64)
    owner = np.zeros(len(lengths), dtype=np.int64)
    unlimited = at[-1] + 1
    for number, (start, end) in enumerate(windows):
        left = at[start:end] - at[start] if start else np.full(end, unlimited)
        right = at[end] - at[start + 1 : end + 1] if end < len(lengths) else np.full(end - start, unlimited)
        context = np.minimum(left, right)
        better = np.flatnonzero(context > most[start:end]) + start
        most[better], owner[better] = context[better - start], number
    return owner
