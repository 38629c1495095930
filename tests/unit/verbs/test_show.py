from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tunesmith.data.findings import Findings
from tunesmith.errors import Problem
from tunesmith.registry import Decision
from tunesmith.verbs.show import confusion_lines, decision_lines, metric_lines, prediction_lines, quantile_line, row_lines

RESULT: dict[str, Any] = {
    "num_rows": 1234,
    "metrics": {"accuracy": 0.5, "loss": 1.25},
    "intervals": {"accuracy": [0.25, 0.75]},
    "per_class": {"good": {"precision": 0.5, "recall": 1.0, "f1": 0.667, "support": 1200}},
    "confusion_matrix": {"labels": ["bad", "good"], "rows_true_columns_predicted": [[1000, 2], [3, 4]]},
}


def test_decisions_are_shown_with_their_reason_and_cut() -> None:
    lines = decision_lines([Decision("train.epochs", 3, "usual"), Decision("task.labels", ["x" * 100], "seen")])
    assert lines[:2] == ["decided:", "  train.epochs = 3   (usual)"]
    assert lines[2].endswith("...   (seen)")
    assert len(lines[2]) < 100


def test_metrics_are_shown_with_intervals_and_classes() -> None:
    lines = metric_lines("test", RESULT)
    assert lines[0] == "test, 1,234 rows:"
    assert lines[1].split() == ["accuracy", "0.5000", "[0.2500,", "0.7500]"]
    assert lines[2].split() == ["loss", "1.2500"]
    assert lines[3].split() == ["precision", "recall", "f1", "support"]
    assert lines[4].split() == ["good", "0.500", "1.000", "0.667", "1,200"]
    assert len(metric_lines("test", {**RESULT, "per_class": {}})) == 3


def test_columns_of_classes_are_aligned() -> None:
    scores = RESULT["per_class"]["good"]
    lines = metric_lines("test", {**RESULT, "per_class": {"a": scores, "a very long name of a class, longer than thirty letters": scores}})
    assert len({len(line) for line in lines[-3:]}) == 1


def test_the_confusion_matrix_is_aligned_and_only_for_few_classes() -> None:
    lines = confusion_lines(RESULT)
    assert [line.split() for line in lines[1:]] == [["bad", "good"], ["bad", "1,000", "2"], ["good", "3", "4"]]
    assert len({len(line) for line in lines[1:]}) == 1
    many = {"labels": [str(index) for index in range(13)], "rows_true_columns_predicted": [[0] * 13] * 13}
    assert confusion_lines({"confusion_matrix": many}) == []
    assert confusion_lines({}) == []


def test_what_was_left_out_is_said() -> None:
    findings = Findings(skip=True)
    assert row_lines(SimpleNamespace(findings=findings, num_duplicates=0)) == []
    for code in ("data.empty_text", "data.empty_text", "data.leak"):
        findings.add(Problem(code, "a row that is left out"))
    assert row_lines(SimpleNamespace(findings=findings, num_duplicates=0)) == [
        "rows left out, listed in rejected.jsonl: 2 data.empty_text, 1 data.leak"
    ]
    assert row_lines(SimpleNamespace(findings=Findings(), num_duplicates=7)) == ["7 training rows repeat an earlier one"]


def test_quantiles_of_lengths() -> None:
    assert quantile_line(list(range(101))) == "shortest 0, 5% 5, 25% 25, median 50, 75% 75, 95% 95, 99% 99, longest 100"


def test_predictions_are_one_line_each() -> None:
    rows = [
        {"text": "fine", "label": "good", "score": 0.98765, "scores": {"good": 0.98765}},
        {"text": "fine", "pair": "day", "labels": ["a", "b"], "scores": {"a": 0.9, "b": 0.61, "c": 0.1}},
        {"text": "fine", "labels": [], "scores": {"a": 0.1}},
        {"text": "fine", "value": 2.0},
    ]
    assert prediction_lines(rows) == ["good\t0.9877\tfine", "a 0.90, b 0.61\tfine | day", "no label\tfine", "2.0000\tfine"]


def test_a_text_of_several_lines_stays_one_line() -> None:
    [line] = prediction_lines([{"text": "one\ntwo\tthree", "value": 1.0}])
    assert "\n" not in line
