"""Metrics of vectors of texts: cosines against scores or labels, and ranks of positives among all candidates.

For ranks the vectors of a split are kept, fp32 [rows, texts, dimensions]; for pairs with a score only their cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.metrics.bootstrap import row_draw_intervals, row_weight_intervals
from tunesmith.metrics.classification import correlation

if TYPE_CHECKING:
    import torch

ANCHORS_AT_ONCE = 256
RANKS = (1, 5, 10)


class PairMeter:
    """Spearman's and Pearson's correlation of cosines and scores; of labels 0 and 1, average precision as well."""

    def __init__(self, has_labels: bool) -> None:
        self.has_labels = has_labels
        self._cosines: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def update(self, outputs: torch.Tensor, labels: torch.Tensor, examples: Any = None) -> None:
        """Adds vectors [batch, 2, dimensions] and scores [batch]."""
        import torch.nn.functional as F  # noqa: N812

        cosines = F.cosine_similarity(outputs[:, 0].float(), outputs[:, 1].float())
        self._cosines.append(cosines.cpu().numpy().astype(np.float64))
        self._scores.append(labels.cpu().numpy().astype(np.float64))

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics and their intervals; a correlation with a constant is 0."""
        from scipy.stats import rankdata

        cosines, scores = np.concatenate(self._cosines), np.concatenate(self._scores)

        def score(rows: np.ndarray) -> dict[str, float]:
            found, true = cosines[rows], scores[rows]
            precision = {"average_precision": average_precision(found, true)} if self.has_labels else {}
            return {**precision, "spearman": correlation(rankdata(found), rankdata(true)), "pearson": correlation(found, true)}

        return {"metrics": score(np.arange(len(scores))), "intervals": row_draw_intervals(len(scores), score) if intervals else {}}


def average_precision(found: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the precision at each row of label 1, rows ordered by what was found for them, equals together (as in scikit-learn)."""
    order = np.argsort(-found, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(found[order]) != 0, True])
    positives = labels[order].cumsum()[ends]
    if not positives[-1]:
        return 0.0
    return float((np.diff(positives, prepend=0) * positives / (ends + 1)).sum() / positives[-1])


class RankingMeter:
    """Ranks of each anchor's positive among all different positives and negatives of the split, other positives of the same anchor
    left out: reciprocal rank, and whether it is among the first 1, 5 and 10.

    A candidate that is as near as the positive ranks before it. With negatives, how often the positive is the nearer one.
    """

    def __init__(self) -> None:
        self._vectors: list[np.ndarray] = []
        self._texts: list[tuple[str, ...]] = []

    def update(self, outputs: torch.Tensor, labels: torch.Tensor, examples: Any) -> None:
        """Adds vectors [batch, texts, dimensions]; the texts are those of the rows."""
        import torch.nn.functional as F  # noqa: N812

        columns = examples.sources()
        self._vectors.append(F.normalize(outputs.float(), dim=-1).cpu().numpy())
        self._texts += zip(*(columns[name] for name in ("text", "pair", "negative") if name in columns), strict=True)

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics and their intervals."""
        vectors = np.concatenate(self._vectors)
        ranks = self._ranks(vectors)
        rows = {"mrr": 1.0 / ranks, **{f"recall_at_{most}": (ranks <= most).astype(float) for most in RANKS}}
        if vectors.shape[1] > 2:
            near = np.einsum("rd,rtd->rt", vectors[:, 0], vectors[:, 1:])
            rows["triplet_accuracy"] = (near[:, :1] > near[:, 1:]).all(1).astype(float)

        def score(weights: np.ndarray) -> dict[str, np.ndarray]:
            return {name: weights @ values / weights.sum(1) for name, values in rows.items()}

        values = {name: float(column.mean()) for name, column in rows.items()}
        candidates = len({text for texts in self._texts for text in texts[1:]})
        return {"metrics": values, "intervals": row_weight_intervals(len(ranks), score) if intervals else {}, "num_candidates": candidates}

    def _ranks(self, vectors: np.ndarray) -> np.ndarray:
        """The rank of each row's positive, from 1, [rows]."""
        first: dict[str, tuple[int, int]] = {}
        positives: dict[str, list[str]] = {}
        for row, (anchor, *others) in enumerate(self._texts):
            positives.setdefault(anchor, []).append(others[0])
            for place, text in enumerate(others, 1):
                first.setdefault(text, (row, place))
        numbers = {text: number for number, text in enumerate(first)}
        rows, places = np.asarray(list(first.values())).T
        candidates = vectors[rows, places]
        ranks = np.empty(len(vectors), dtype=np.int64)
        for start in range(0, len(vectors), ANCHORS_AT_ONCE):
            near = vectors[start : start + ANCHORS_AT_ONCE, 0] @ candidates.T
            for offset, similarities in enumerate(near):
                anchor, positive = self._texts[start + offset][:2]
                own = similarities[numbers[positive]]
                also = {numbers[text] for text in positives[anchor]}
                ranks[start + offset] = 1 + int((similarities >= own).sum()) - sum(similarities[number] >= own for number in also)
        return ranks
