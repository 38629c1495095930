"""Metrics of extracted answers, as SQuAD 2's evaluator defines them (Rajpurkar et al. 2018), in percent."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.metrics.bootstrap import row_weight_intervals
from tunesmith.metrics.classification import ratio

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_words(answer: str) -> list[str]:
    """The words of an answer that are compared: in lower case, without ASCII punctuation and English articles."""
    return ARTICLES.sub(" ", answer.lower().translate(WITHOUT_PUNCTUATION)).split()


def answer_scores(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 of words), each of the reference that it is greatest for; of a question without an answer there are none.

    References of which nothing is compared do not count.
    """
    found = answer_words(answer)
    wanted = [words for words in map(answer_words, references) if words] or [[]]
    return max(float(found == words) for words in wanted), max(_f1(found, words) for words in wanted)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))


class AnswerMeter:
    """F1 and exact match of answers; with a threshold, also of questions with an answer and without.

    `threshold` is that on the margin of no answer over the best span: a number, `validation` to choose it on the rows measured, or
    `none` where every question is answered.
    """

    def __init__(self, threshold: float | str = "none") -> None:
        self.threshold = threshold
        self._rows: list[tuple[float, float, float, float, float]] = []
        """Of each question: margin, exact match and F1 of the best span, score of no answer, whether it has an answer."""

    def add(self, answer: str, margin: float, references: Sequence[str]) -> None:
        """Adds a question: its best span, the score of no answer less that of the span, and the answers it ought to have."""
        self._rows.append((margin, *answer_scores(answer, references), answer_scores("", references)[0], float(bool(references))))

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics, their intervals from draws of rows, how many questions have an answer, and the threshold that was chosen."""
        margins, exact, f1, none, has_answer = np.asarray(self._rows, dtype=np.float64).reshape(-1, 5).T
        result: dict[str, Any] = {"num_with_answer": int(has_answer.sum()), "num_without_answer": int((1 - has_answer).sum())}
        threshold = self.threshold
        if threshold == "validation":
            threshold = choose_threshold(margins, f1 - none)
            result["thresholds"] = [threshold]
        answered = np.ones(len(margins), dtype=bool) if threshold == "none" else margins <= float(threshold)
        scores = {"f1": np.where(answered, f1, none), "exact_match": np.where(answered, exact, none)}
        kinds = {} if threshold == "none" else {"HasAns": has_answer, "NoAns": 1 - has_answer}

        def score(weights: np.ndarray) -> dict[str, np.ndarray]:
            found = {name: ratio(100 * (weights @ values), weights.sum(1)) for name, values in scores.items()}
            for kind, mask in kinds.items():
                for name, values in scores.items():
                    found[f"{kind}_{name}"] = ratio(100 * (weights @ (values * mask)), weights @ mask)
            return found

        metrics = {name: float(value[0]) for name, value in score(np.ones((1, len(margins)))).items()}
        if threshold != "none":
            metrics["f1_at_0"] = 100 * float(np.where(margins <= 0, f1, none).mean())
            result["null_score_diff_threshold"] = float(threshold)
        return {"metrics": metrics, "intervals": row_weight_intervals(len(margins), score) if intervals else {}, **result}


def choose_threshold(margins: np.ndarray, gains: np.ndarray) -> float:
    """The threshold on margins [rows] up to which answering, for these gains [rows] over not answering, is best in sum.

    It lies half-way between two margins, so that rounding does not move a question over it; of equals the lowest.
    """
    order = np.argsort(margins, kind="stable")
    margins, totals = margins[order], np.concatenate([[0.0], np.cumsum(gains[order])])
    cuts = np.concatenate([[margins[0] - 1], (margins[:-1] + margins[1:]) / 2, [margins[-1] + 1]])
    totals[1:-1][margins[:-1] == margins[1:]] = -np.inf
    return float(cuts[int(np.argmax(totals))])
