"""Metrics of tags equal seqeval's and scikit-learn's, whatever windows and batches they come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import torch

from tunesmith.data.encode import Encoded, Examples
from tunesmith.metrics.tagging import TagMeter, first_tokens

TAGS = ["O", "B-x", "I-x", "B-y", "I-y"]


class _Fixed:
    """Encoded rows that hold the column `word` only."""

    def __init__(self, words: list[list[int]]) -> None:
        self.words = words

    def __getitem__(self, indices: list[int]) -> dict[str, Any]:
        return {"word": [self.words[index] for index in indices]}


def measure(tags: list[str], rows: list[tuple[list[int], list[int]]], marks: bool, window: int, seed: int = 0) -> dict[str, Any]:
    """What a meter makes of (true, guessed) ids of rows, cut into windows of so many words of two tokens, in drawn order."""
    words, labels, guesses, row = [], [], [], []
    for number, (true, guessed) in enumerate(rows):
        for start in range(0, len(true), window):
            own = range(start, min(start + window, len(true)))
            words.append([-1, *(word for word in own for _ in range(2)), -1])
            labels.append([-100, *(label for word in own for label in (true[word], -100)), -100])
            guesses.append([0, *(guess for word in own for guess in (guessed[word], 1)), 0])
            row.append(number)
    encoded: Any = object.__new__(Encoded)
    encoded.dataset, encoded.row = _Fixed(words), np.asarray(row)
    meter = TagMeter(tags, marks)
    order = np.random.default_rng(seed).permutation(len(row))
    for part in np.array_split(order, 5):
        longest = max((len(words[index]) for index in part), default=0)
        logits = torch.zeros(len(part), longest, len(tags))
        padded = torch.full((len(part), longest), -100)
        for place, index in enumerate(part):
            logits[place, torch.arange(len(guesses[index])), torch.tensor(guesses[index])] = 1
            padded[place, : len(labels[index])] = torch.tensor(labels[index])
        meter.update(logits, padded, Examples(encoded, part))
    return meter.compute()


def drawn_rows(num_tags: int, num_rows: int = 60, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        true = draw.integers(num_tags, size=draw.integers(1, 15))
        guessed = np.where(draw.random(len(true)) < 0.6, true, draw.integers(num_tags, size=len(true)))
        rows.append((true.tolist(), guessed.tolist()))
    return rows


@pytest.mark.parametrize("window", [100, 3])
def test_entities_are_counted_as_seqeval_counts_them(window: int) -> None:
    rows = drawn_rows(len(TAGS))
    found = measure(TAGS, rows, True, window)
    true, guessed = ([[TAGS[index] for index in row[side]] for row in rows] for side in (0, 1))
    assert found["metrics"] == pytest.approx(
        {
            "f1": seqeval.metrics.f1_score(true, guessed),
            "precision": seqeval.metrics.precision_score(true, guessed),
            "recall": seqeval.metrics.recall_score(true, guessed),
            "accuracy": seqeval.metrics.accuracy_score(true, guessed),
        }
    )
    report = seqeval.metrics.classification_report(true, guessed, output_dict=True)
    for name in ("x", "y"):
        theirs = {key.removesuffix("-score"): value for key, value in report[name].items()}
        assert found["per_class"][name] == pytest.approx(theirs)
    kinds = {"O": 2, "x": 0, "y": 1}
    flat = [[kinds[tag.split("-")[-1]] for row in side for tag in row] for side in (true, guessed)]
    assert found["confusion_matrix"] == {
        "labels": ["x", "y", "O"],
        "rows_true_columns_predicted": sklearn.metrics.confusion_matrix(*flat).tolist(),
    }
    assert found["num_words"] == len(flat[0])


def test_plain_tags_are_counted_as_scikit_learn_counts_them() -> None:
    rows = drawn_rows(4)
    found = measure(["a", "b", "c", "d", "never"], rows, False, 4)
    true, guessed = ([label for row in rows for label in row[side]] for side in (0, 1))
    assert found["metrics"] == pytest.approx(
        {"accuracy": sklearn.metrics.accuracy_score(true, guessed), "macro_f1": sklearn.metrics.f1_score(true, guessed, average="macro")}
    )
    assert found["per_class"]["never"]["support"] == 0


def test_intervals_draw_rows() -> None:
    found = measure(TAGS, drawn_rows(len(TAGS), 200), True, 100)
    for name, (low, high) in found["intervals"].items():
        assert low < found["metrics"][name] < high
        assert high - low < 0.2
    assert found["intervals"].keys() == found["metrics"].keys()


def test_nothing_found_and_nothing_there_is_zero() -> None:
    assert measure(TAGS, [([0, 0], [0, 0])], True, 9)["metrics"] == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


def test_the_first_token_of_each_word() -> None:
    assert first_tokens([-1, 0, 0, 1, 3, 3, -1, -1]).tolist() == [1, 3, 4]
    assert first_tokens([4, 4, 5]).tolist() == [0, 2]
    assert first_tokens([-1, -1]).tolist() == []
