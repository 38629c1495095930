"""Perplexity and accuracy of predicted tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.metrics.bootstrap import row_weight_intervals

if TYPE_CHECKING:
    import torch


class TokenMeter:
    """Sums of losses, hits and trained tokens of each row."""

    def __init__(self, first: int = 1) -> None:
        """`first` is the first position that is predicted: 1 where each token is predicted from those before it."""
        self._first = first
        self._rows: list[np.ndarray] = []

    def update(self, outputs: Any, labels: torch.Tensor, examples: Any = None) -> None:
        """Adds a batch: TokenScores, and labels [rows, tokens] with -100 where a token is not trained."""
        import torch

        counts = (labels[:, self._first :] >= 0).sum(-1)
        row = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), counts)
        sums = torch.zeros(3, len(labels), dtype=torch.float64, device=labels.device)
        sums[0].index_add_(0, row, outputs.losses.double())
        sums[1].index_add_(0, row, outputs.correct.double())
        sums[2] = counts
        self._rows.append(sums.cpu().numpy())

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Perplexity and token_accuracy over all trained tokens; intervals draw rows."""
        rows = np.concatenate(self._rows, axis=1)

        def score(weights: np.ndarray) -> dict[str, np.ndarray]:
            losses, hits, tokens = weights @ rows.T[:, 0], weights @ rows.T[:, 1], weights @ rows.T[:, 2]
            return {"perplexity": np.exp(losses / tokens), "token_accuracy": hits / tokens}

        metrics = {name: float(value) for name, value in score(np.ones(rows.shape[1])).items()}
        return {
            "metrics": metrics,
            "intervals": row_weight_intervals(rows.shape[1], score) if intervals else {},
            "num_tokens": int(rows[2].sum()),
        }


METRICS = {"perplexity": False, "token_accuracy": True}
"""What the meter reports, and whether greater is better."""
