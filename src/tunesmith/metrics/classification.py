"""Metrics of classification and regression, computed as batches stream.

One label a row needs the confusion matrix only, and its bootstrap draws whole matrices. Several labels keep one score a label,
since thresholds are chosen from them; numbers keep the numbers, since ranks need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.metrics.bootstrap import counts_intervals, row_draw_intervals, row_weight_intervals

if TYPE_CHECKING:
    import torch

MIN_POSITIVES = 10
"""Rows with a label below which its threshold is the common one."""
GRID = np.round(np.arange(0.05, 0.951, 0.05), 2)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is."""
    ratio: np.ndarray = np.divide(numerator, denominator, out=np.zeros(np.broadcast(numerator, denominator).shape), where=denominator != 0)
    return ratio


class ClassMeter:
    """Accuracy, F1, MCC, per-class scores and confusion matrix for one label a row."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        """Rows of true class i that were predicted as class j."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor, examples: Any = None) -> None:
        """Adds logits [batch, classes] and labels [batch]."""
        cells = labels.cpu().numpy() * len(self.labels) + logits.argmax(-1).cpu().numpy()
        self.confusion += np.bincount(cells, minlength=self.confusion.size).reshape(self.confusion.shape)

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics, their intervals, per-class scores and the confusion matrix (rows true, columns predicted)."""
        true, predicted = np.nonzero(self.confusion)
        counts = self.confusion[true, predicted]

        def score(draws: np.ndarray) -> dict[str, np.ndarray]:
            return self._score(draws, true, predicted)

        values = {name: float(value[0]) for name, value in score(counts[None]).items()}
        support, guessed, right = self.confusion.sum(1), self.confusion.sum(0), np.diag(self.confusion)
        per_class = {
            label: {
                "precision": float(ratio(right, guessed)[index]),
                "recall": float(ratio(right, support)[index]),
                "f1": float(ratio(2 * right, support + guessed)[index]),
                "support": int(support[index]),
            }
            for index, label in enumerate(self.labels)
        }
        return {
            "metrics": values,
            "intervals": counts_intervals(counts, score) if intervals else {},
            "per_class": per_class,
            "confusion_matrix": {"labels": self.labels, "rows_true_columns_predicted": self.confusion.tolist()},
        }

    def _score(self, draws: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of counts [resamples, cells], where cell k is (true[k], predicted[k])."""
        classes = np.arange(len(self.labels))
        support = draws @ (true[:, None] == classes)
        guessed = draws @ (predicted[:, None] == classes)
        right = draws @ ((true == predicted)[:, None] & (true[:, None] == classes))
        num_rows = draws.sum(1).astype(float)
        f1 = ratio(2.0 * right, support + guessed)
        seen = (support + guessed) > 0
        accuracy = ratio(right.sum(1), num_rows)
        # Multi-class Matthews correlation: Gorodkin 2004, as in scikit-learn.
        covariance = right.sum(1) * num_rows - (support * guessed).sum(1)
        spread = np.sqrt((num_rows**2 - (guessed**2).sum(1)) * (num_rows**2 - (support**2).sum(1)))
        return {
            "accuracy": accuracy,
            "macro_f1": ratio((f1 * seen).sum(1), seen.sum(1)),
            "micro_f1": accuracy,
            "weighted_f1": ratio((f1 * support).sum(1), num_rows),
            "mcc": ratio(covariance, spread),
        }


class MultiLabelMeter:
    """Subset accuracy, micro and macro F1 and LRAP for several labels a row.

    Without thresholds they are chosen on the rows measured: one for each label with enough positive rows, a common one for the rest.
    """

    def __init__(self, labels: Sequence[str], thresholds: Sequence[float] | None = None) -> None:
        self.labels = list(labels)
        self.thresholds = None if thresholds is None else np.asarray(thresholds)
        self._scores: list[np.ndarray] = []
        self._truths: list[np.ndarray] = []

    def update(self, logits: torch.Tensor, labels: torch.Tensor, examples: Any = None) -> None:
        """Adds logits [batch, labels] and labels [batch, labels] of 0 and 1."""
        self._scores.append(logits.float().sigmoid().cpu().numpy())
        self._truths.append(labels.cpu().numpy() > 0.5)

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics, their intervals, per-label scores, and the thresholds used."""
        scores, truths = np.concatenate(self._scores), np.concatenate(self._truths)
        thresholds = choose_thresholds(scores, truths) if self.thresholds is None else self.thresholds
        guesses = scores >= thresholds
        rows = {
            "right": (guesses & truths).astype(float),
            "guessed": guesses.astype(float),
            "support": truths.astype(float),
            "exact": (guesses == truths).all(1).astype(float),
            "lrap": ranking_precision(scores, truths),
        }

        def score(weights: np.ndarray) -> dict[str, np.ndarray]:
            return self._score(weights, rows)

        values = {name: float(value[0]) for name, value in score(np.ones((1, len(scores)))).items()}
        at_half = scores >= 0.5
        values["micro_f1_at_0.5"] = float(ratio(np.asarray(2.0 * (at_half & truths).sum()), np.asarray(at_half.sum() + truths.sum())))
        right, guessed, support = (rows[name].sum(0) for name in ("right", "guessed", "support"))
        per_class = {
            label: {
                "precision": float(ratio(right, guessed)[index]),
                "recall": float(ratio(right, support)[index]),
                "f1": float(ratio(2 * right, guessed + support)[index]),
                "support": int(support[index]),
                "threshold": float(thresholds[index]),
            }
            for index, label in enumerate(self.labels)
        }
        found = row_weight_intervals(len(scores), score) if intervals else {}
        return {"metrics": values, "intervals": found, "per_class": per_class, "thresholds": [float(value) for value in thresholds]}

    @staticmethod
    def _score(weights: np.ndarray, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        right, guessed, support = (weights @ rows[name] for name in ("right", "guessed", "support"))
        f1 = ratio(2 * right, guessed + support)
        seen = (guessed + support) > 0
        num_rows = weights.sum(1)
        return {
            "subset_accuracy": ratio(weights @ rows["exact"], num_rows),
            "micro_f1": ratio(2 * right.sum(1), (guessed + support).sum(1)),
            "macro_f1": ratio((f1 * seen).sum(1), seen.sum(1)),
            "weighted_f1": ratio((f1 * support).sum(1), support.sum(1)),
            "lrap": ratio(weights @ rows["lrap"], num_rows),
        }


def choose_thresholds(scores: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """The threshold [labels] that gives each label its best F1 on these rows; scores and truths are [rows, labels]."""
    support = truths.sum(0)
    guesses = [scores >= threshold for threshold in GRID]
    right = np.stack([(guess & truths).sum(0) for guess in guesses]).astype(float)
    guessed = np.stack([guess.sum(0) for guess in guesses])
    common = GRID[int(np.argmax(ratio(2 * right.sum(1), guessed.sum(1) + support.sum())))]
    own = GRID[np.argmax(ratio(2 * right, guessed + support), axis=0)]
    thresholds: np.ndarray = np.where(support >= MIN_POSITIVES, own, common)
    return thresholds


def ranking_precision(scores: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Label ranking average precision of each row, [rows]; 1 for rows with all labels or none (as in scikit-learn)."""
    result = np.ones(len(scores))
    for start in range(0, len(scores), 1000):
        score, truth = scores[start : start + 1000], truths[start : start + 1000]
        above = score[:, None, :] >= score[:, :, None]
        rank = above.sum(2)
        rank_among_true = (above & truth[:, None, :]).sum(2)
        num_true = truth.sum(1)
        mean = ratio(np.where(truth, rank_among_true / rank, 0).sum(1), num_true)
        result[start : start + 1000] = np.where((num_true == 0) | (num_true == truth.shape[1]), 1.0, mean)
    return result


class RegressionMeter:
    """Pearson, Spearman, MAE and RMSE for one number a row."""

    def __init__(self) -> None:
        self._predicted: list[np.ndarray] = []
        self._true: list[np.ndarray] = []

    def update(self, logits: torch.Tensor, labels: torch.Tensor, examples: Any = None) -> None:
        """Adds logits [batch, 1] and labels [batch]."""
        self._predicted.append(logits.float().flatten().cpu().numpy().astype(np.float64))
        self._true.append(labels.float().cpu().numpy().astype(np.float64))

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics and their intervals; a correlation with a constant is 0."""
        predicted, true = np.concatenate(self._predicted), np.concatenate(self._true)

        def score(rows: np.ndarray) -> dict[str, float]:
            return _regression_scores(predicted[rows], true[rows])

        found = row_draw_intervals(len(true), score) if intervals else {}
        return {"metrics": score(np.arange(len(true))), "intervals": found}


def _regression_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    from scipy.stats import rankdata

    error = predicted - true
    return {
        "pearson": correlation(predicted, true),
        "spearman": correlation(rankdata(predicted), rankdata(true)),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
    }


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 with a constant."""
    first, second = first - first.mean(), second - second.mean()
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / spread) if spread > 0 else 0.0
