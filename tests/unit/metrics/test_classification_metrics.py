"""Metrics are those of scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as reference
import torch

from tunesmith.metrics.classification import ClassMeter, MultiLabelMeter, RegressionMeter, choose_thresholds, ranking_precision

NAMES = [f"class {index}" for index in range(5)]


def one_label(num_rows: int, seed: int = 0, num_classes: int = 5, skill: float = 1.0) -> tuple[np.ndarray, torch.Tensor]:
    """True classes of very different frequency, and logits that know something of them."""
    draw = np.random.default_rng(seed)
    true = draw.choice(num_classes, size=num_rows, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1)))
    logits = draw.normal(size=(num_rows, num_classes)) + skill * np.eye(num_classes)[true]
    return true, torch.tensor(logits, dtype=torch.float32)


def measured(meter: Any, logits: torch.Tensor, labels: Any, size: int = 37) -> dict[str, Any]:
    labels = torch.as_tensor(labels)
    for start in range(0, len(labels), size):
        meter.update(logits[start : start + size], labels[start : start + size])
    return meter.compute()


@pytest.mark.parametrize("seed", range(4))
def test_one_label(seed: int) -> None:
    true, logits = one_label(300, seed)
    guessed = logits.argmax(-1).numpy()
    found = measured(ClassMeter(NAMES), logits, true)
    expected = {
        "accuracy": reference.accuracy_score(true, guessed),
        "macro_f1": reference.f1_score(true, guessed, average="macro"),
        "micro_f1": reference.f1_score(true, guessed, average="micro"),
        "weighted_f1": reference.f1_score(true, guessed, average="weighted"),
        "mcc": reference.matthews_corrcoef(true, guessed),
    }
    assert found["metrics"] == pytest.approx(expected, abs=1e-12)
    assert found["confusion_matrix"]["rows_true_columns_predicted"] == reference.confusion_matrix(true, guessed).tolist()
    assert found["confusion_matrix"]["labels"] == NAMES
    precision, recall, f1, support = reference.precision_recall_fscore_support(true, guessed, labels=range(5), zero_division=0)
    for index, name in enumerate(NAMES):
        scores = {"precision": precision[index], "recall": recall[index], "f1": f1[index], "support": support[index]}
        assert found["per_class"][name] == pytest.approx(scores)


def test_classes_that_are_never_seen_nor_guessed_do_not_lower_the_mean() -> None:
    true = np.asarray([0, 0, 1, 1])
    logits = torch.eye(5)[[0, 0, 1, 0]]
    found = measured(ClassMeter(NAMES), logits, true)
    assert found["metrics"]["macro_f1"] == pytest.approx(reference.f1_score(true, [0, 0, 1, 0], average="macro"))
    assert found["per_class"]["class 4"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


@pytest.mark.parametrize("guess", [0, 2])
def test_one_guess_for_all_has_no_correlation(guess: int) -> None:
    true, _ = one_label(100)
    found = measured(ClassMeter(NAMES), torch.eye(5)[[guess] * 100], true)
    assert found["metrics"]["mcc"] == 0.0
    assert found["metrics"]["accuracy"] == pytest.approx((true == guess).mean())


def test_no_rows_give_zeros_and_no_intervals() -> None:
    found = ClassMeter(NAMES).compute()
    assert set(found["metrics"].values()) == {0.0}
    assert found["intervals"] == {}


def several_labels(num_rows: int, seed: int = 0, num_labels: int = 4) -> tuple[np.ndarray, torch.Tensor]:
    draw = np.random.default_rng(seed)
    true = draw.random((num_rows, num_labels)) < np.asarray([0.5, 0.3, 0.15, 0.02])[:num_labels]
    logits = draw.normal(size=true.shape) + 2.0 * true - 1.0
    return true, torch.tensor(logits, dtype=torch.float32)


@pytest.mark.parametrize("seed", range(4))
def test_several_labels(seed: int) -> None:
    true, logits = several_labels(250, seed)
    thresholds = [0.5, 0.4, 0.6, 0.5]
    scores = logits.sigmoid().numpy()
    guessed = scores >= np.asarray(thresholds)
    found = measured(MultiLabelMeter(NAMES[:4], thresholds), logits, true.astype(np.float32))
    expected = {
        "subset_accuracy": reference.accuracy_score(true, guessed),
        "micro_f1": reference.f1_score(true, guessed, average="micro"),
        "macro_f1": reference.f1_score(true, guessed, average="macro", zero_division=0),
        "weighted_f1": reference.f1_score(true, guessed, average="weighted", zero_division=0),
        "lrap": reference.label_ranking_average_precision_score(true, scores),
        "micro_f1_at_0.5": reference.f1_score(true, scores >= 0.5, average="micro"),
    }
    assert found["metrics"] == pytest.approx(expected, abs=1e-9)
    precision, recall, f1, support = reference.precision_recall_fscore_support(true, guessed, zero_division=0)
    for index, name in enumerate(NAMES[:4]):
        scores_of_label = {"precision": precision[index], "recall": recall[index], "f1": f1[index], "support": support[index]}
        assert found["per_class"][name] == pytest.approx({**scores_of_label, "threshold": thresholds[index]})
    assert found["thresholds"] == thresholds


def test_ranking_precision_with_ties_and_rows_of_no_or_all_labels() -> None:
    scores = np.asarray([[0.5, 0.5, 0.1], [0.9, 0.2, 0.2], [0.3, 0.2, 0.1], [0.3, 0.2, 0.1]])
    truths = np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool)
    found = ranking_precision(scores, truths)
    for row in range(4):
        assert found[row] == pytest.approx(reference.label_ranking_average_precision_score(truths[[row]], scores[[row]]))


def test_ranking_precision_of_many_rows_is_computed_in_parts() -> None:
    true, logits = several_labels(2500)
    scores = logits.numpy()
    assert ranking_precision(scores, true).mean() == pytest.approx(reference.label_ranking_average_precision_score(true, scores))


def test_thresholds_are_those_with_the_best_f1() -> None:
    true, logits = several_labels(600, 1)
    scores = logits.sigmoid().numpy()
    chosen = choose_thresholds(scores, true)
    grid = np.round(np.arange(0.05, 0.951, 0.05), 2)
    for label in range(3):
        best = max(reference.f1_score(true[:, label], scores[:, label] >= threshold, zero_division=0) for threshold in grid)
        assert reference.f1_score(true[:, label], scores[:, label] >= chosen[label]) == pytest.approx(best)


def test_labels_with_few_rows_share_a_threshold() -> None:
    true, logits = several_labels(200, 2)
    true[:, 2:] = False
    true[:5, 2:] = True
    scores = logits.sigmoid().numpy()
    chosen = choose_thresholds(scores, true)
    grid = np.round(np.arange(0.05, 0.951, 0.05), 2)
    common = max(grid, key=lambda threshold: reference.f1_score(true, scores >= threshold, average="micro"))
    assert chosen[2] == chosen[3] == common


def test_thresholds_are_tuned_only_when_none_are_given() -> None:
    true, logits = several_labels(200)
    tuned = measured(MultiLabelMeter(NAMES[:4]), logits, true.astype(np.float32))
    assert tuned["thresholds"] != [0.5] * 4
    fixed = measured(MultiLabelMeter(NAMES[:4], [0.5] * 4), logits, true.astype(np.float32))
    assert fixed["metrics"]["micro_f1"] == fixed["metrics"]["micro_f1_at_0.5"]
    assert tuned["metrics"]["macro_f1"] >= fixed["metrics"]["macro_f1"]


@pytest.mark.parametrize("seed", range(3))
def test_numbers(seed: int) -> None:
    draw = np.random.default_rng(seed)
    true = np.round(draw.normal(size=200), 1).astype(np.float32)
    guessed = (0.5 * true + draw.normal(size=200)).astype(np.float32)
    found = measured(RegressionMeter(), torch.tensor(guessed)[:, None], true)
    expected = {
        "pearson": scipy.stats.pearsonr(true, guessed).statistic,
        "spearman": scipy.stats.spearmanr(true, guessed).statistic,
        "mae": reference.mean_absolute_error(true, guessed),
        "rmse": reference.root_mean_squared_error(true, guessed),
    }
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)


def test_a_correlation_with_a_constant_is_zero() -> None:
    found = measured(RegressionMeter(), torch.ones(20, 1), np.arange(20, dtype=np.float32))
    assert found["metrics"]["pearson"] == found["metrics"]["spearman"] == 0.0


def result_of(kind: str, num_rows: int) -> dict[str, Any]:
    if kind == "one":
        true, logits = one_label(num_rows, 5)
        return measured(ClassMeter(NAMES), logits, true)
    if kind == "several":
        labels, logits = several_labels(num_rows, 5)
        return measured(MultiLabelMeter(NAMES[:4], [0.5] * 4), logits, labels.astype(np.float32))
    draw = np.random.default_rng(5)
    values = draw.normal(size=num_rows).astype(np.float32)
    return measured(RegressionMeter(), torch.tensor(values + draw.normal(size=num_rows).astype(np.float32))[:, None], values)


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_intervals_hold_the_value_and_shrink_with_the_rows(kind: str) -> None:
    few, many = result_of(kind, 60), result_of(kind, 1500)
    assert set(few["intervals"]) == set(few["metrics"]) - {"micro_f1_at_0.5"}
    for result in (few, many):
        for name, (low, high) in result["intervals"].items():
            assert low <= result["metrics"][name] <= high, name
    for name, (low, high) in many["intervals"].items():
        width = few["intervals"][name][1] - few["intervals"][name][0]
        assert high - low < 0.6 * width, name


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_intervals_are_the_same_each_time(kind: str) -> None:
    assert result_of(kind, 80)["intervals"] == result_of(kind, 80)["intervals"]


def test_intervals_are_left_out_when_not_wanted() -> None:
    true, logits = one_label(50)
    meter = ClassMeter(NAMES)
    meter.update(logits, torch.as_tensor(true))
    assert meter.compute(intervals=False)["intervals"] == {}
