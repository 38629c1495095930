"""Metrics of extracted answers, beside SQuAD's rules as its papers and evaluator state them, worked out another way."""

from __future__ import annotations

import random
import string
from typing import Any

import numpy as np
import pytest

from tunesmith.metrics.question_answering import AnswerMeter, answer_scores, answer_words, choose_threshold

WORDS = ["the", "norman", "king", "of", "An", "(king)", "1066.", "Paris!"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The  Normans'", ["normans"]),
        ("a cat, an hour, the end", ["cat", "hour", "end"]),
        ("theatre anthem", ["theatre", "anthem"]),
        ("U.S.A.", ["usa"]),
        ("well-known", ["wellknown"]),
        ("the", []),
        ("«Straße» 3½", ["«straße»", "3½"]),
        ("A\u00a0b\tc\n", ["b", "c"]),
    ],
)
def test_words_that_are_compared(answer: str, words: list[str]) -> None:
    assert answer_words(answer) == words


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("France", ["France"], 1.0, 1.0),
        ("the France.", ["france", "Spain"], 1.0, 1.0),
        ("10th century", ["in the 10th and 11th centuries", "10th"], 0.0, 2 / 3),
        ("b b a1", ["b a1 a1"], 0.0, 2 / 3),
        ("Spain", ["France"], 0.0, 0.0),
        ("", ["France"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("France", [], 0.0, 0.0),
        ("the", [], 1.0, 1.0),  # of `the` nothing is compared
        ("", ["the"], 1.0, 1.0),
        ("France", ["the", "France"], 1.0, 1.0),
    ],
)
def test_scores_of_an_answer(answer: str, references: list[str], exact: float, f1: float) -> None:
    assert answer_scores(answer, references) == pytest.approx((exact, f1))


def by_the_rules(questions: list[tuple[str, float, list[str]]]) -> dict[str, float]:
    """SQuAD 2's numbers: compared without case, punctuation and articles, the best of all answers that leave anything to compare; a
    question is left without an answer above the threshold, and the threshold is the first that gives the greatest sum of F1."""

    def compared(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    def overlap(one: list[str], other: list[str]) -> float:
        if not one or not other:
            return float(one == other)
        left, shared = list(other), 0
        for word in one:
            if word in left:
                left.remove(word)
                shared += 1
        if not shared:
            return 0.0
        precision, recall = shared / len(one), shared / len(other)
        return 2 * precision * recall / (precision + recall)

    def scores(answer: str, references: list[str]) -> tuple[float, float]:
        wanted = [compared(text) for text in references if compared(text)] or [[]]
        return max(float(compared(answer) == text) for text in wanted), max(overlap(compared(answer), text) for text in wanted)

    best = (-1.0, 0.0)
    for threshold in [-np.inf, *sorted({margin for _, margin, _ in questions})]:
        total = sum(scores(answer if margin <= threshold else "", references)[1] for answer, margin, references in questions)
        best = max(best, (total, -threshold))
    found: dict[str, list[float]] = {}
    for answer, margin, references in questions:
        for name, value in zip(("exact_match", "f1"), scores(answer if margin <= -best[1] else "", references), strict=True):
            for key in (name, f"{'HasAns' if references else 'NoAns'}_{name}"):
                found.setdefault(key, []).append(100 * value)
        found.setdefault("f1_at_0", []).append(100 * scores(answer if margin <= 0 else "", references)[1])
    return {name: sum(values) / len(values) for name, values in found.items()}


def drawn(num: int, seed: int) -> list[tuple[str, float, list[str]]]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))

    rows = []
    for _ in range(num):
        references = [text() for _ in range(draw.choice((0, 0, 1, 3)))]
        answer = draw.choice([*references, text()])
        rows.append((answer, round(draw.gauss(-1 if references else 1, 2), 1), references))
    return rows


def measured(questions: list[tuple[str, float, list[str]]], threshold: Any) -> dict[str, Any]:
    meter = AnswerMeter(threshold)
    for question in questions:
        meter.add(*question)
    return meter.compute()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_squads_at_the_threshold_that_is_best(seed: int) -> None:
    questions = drawn(80, seed)
    found = measured(questions, "validation")
    assert found["metrics"] == pytest.approx(by_the_rules(questions))
    [threshold] = found["thresholds"]
    again = measured(questions, threshold)
    assert again["metrics"] == found["metrics"]
    assert "thresholds" not in again
    assert found["num_with_answer"] + found["num_without_answer"] == 80


def test_no_threshold_does_better() -> None:
    questions = drawn(60, 9)
    best = measured(questions, "validation")["metrics"]["f1"]
    assert best == pytest.approx(max(measured(questions, float(t))["metrics"]["f1"] for t in np.arange(-8, 8, 0.05)))
    assert best > measured(questions, 0.0)["metrics"]["f1"]


@pytest.mark.parametrize(
    ("margins", "gains", "expected"),
    [
        ([-1.0, 1.0], [1.0, -1.0], 0.0),
        ([-1.0, 1.0], [-1.0, -1.0], -2.0),
        ([-1.0, 1.0], [1.0, 1.0], 2.0),
        ([1.0, 1.0, 2.0], [1.0, -0.5, -1.0], 1.5),  # questions of one margin are answered together
        ([3.0, -1.0, 1.0], [-1.0, 1.0, 0.0], 0.0),  # of equals the lowest
    ],
)
def test_the_threshold_lies_between_questions(margins: list[float], gains: list[float], expected: float) -> None:
    assert choose_threshold(np.asarray(margins), np.asarray(gains)) == expected


def test_without_a_threshold_every_question_is_answered() -> None:
    found = measured([("France", 5.0, ["France"]), ("Spain", -5.0, ["France"])], "none")
    assert found["metrics"] == {"f1": 50.0, "exact_match": 50.0}
    assert "thresholds" not in found


def test_intervals_hold_the_metrics() -> None:
    found = measured(drawn(300, 3), "validation")
    assert found["intervals"].keys() == found["metrics"].keys() - {"f1_at_0"}
    for name, (low, high) in found["intervals"].items():
        assert low < found["metrics"][name] < high
        assert high - low < 20
