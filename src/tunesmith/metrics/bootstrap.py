"""95% intervals by the bootstrap: the rows of an evaluation drawn again, with replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

NUM_RESAMPLES = 1000
CELLS_AT_ONCE = 20_000_000

Scores = Mapping[str, np.ndarray]
"""One array [resamples] a metric."""


def counts_intervals(counts: np.ndarray, score: Callable[[np.ndarray], Scores]) -> dict[str, list[float]]:
    """Intervals of metrics that depend on how often each kind of row stands in the data.

    counts [kinds] sums to the number of rows; `score` maps counts [resamples, kinds] to metrics.
    """
    num_rows = int(counts.sum())
    if num_rows == 0:
        return {}
    draws = np.random.default_rng(0).multinomial(num_rows, counts / num_rows, size=NUM_RESAMPLES)
    return _intervals([score(draws)])


def row_weight_intervals(num_rows: int, score: Callable[[np.ndarray], Scores]) -> dict[str, list[float]]:
    """Intervals of metrics of weighted rows; `score` maps weights [resamples, rows] to metrics."""
    if num_rows == 0:
        return {}
    generator = np.random.default_rng(0)
    num_resamples = int(np.clip(20 * CELLS_AT_ONCE // num_rows, 200, NUM_RESAMPLES))
    at_once = max(CELLS_AT_ONCE // num_rows, 1)
    chances = np.full(num_rows, 1 / num_rows)
    parts = [
        score(generator.multinomial(num_rows, chances, size=min(at_once, num_resamples - done)))
        for done in range(0, num_resamples, at_once)
    ]
    return _intervals(parts)


def row_draw_intervals(num_rows: int, score: Callable[[np.ndarray], Mapping[str, float]]) -> dict[str, list[float]]:
    """Intervals of metrics that need the rows themselves, such as ranks; `score` maps row indices [rows] to metrics."""
    if num_rows == 0:
        return {}
    generator = np.random.default_rng(0)
    num_resamples = int(np.clip(CELLS_AT_ONCE // num_rows, 100, NUM_RESAMPLES))
    drawn = [score(generator.integers(num_rows, size=num_rows)) for _ in range(num_resamples)]
    return _intervals([{name: np.asarray([scores[name] for scores in drawn]) for name in drawn[0]}])


def _intervals(parts: list[Scores]) -> dict[str, list[float]]:
    return {
        name: [float(bound) for bound in np.nanpercentile(np.concatenate([part[name] for part in parts]), (2.5, 97.5))] for name in parts[0]
    }
