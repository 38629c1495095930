from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import tiny_models
from tunesmith.data.label_names import misspelt
from tunesmith.data.rows import RowFacts
from tunesmith.errors import InputError
from tunesmith.metrics.classification import ClassMeter, MultiLabelMeter, RegressionMeter
from tunesmith.strict import load_spec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION
from tunesmith.tasks.text_classification.cells import cell_labels
from tunesmith.tasks.text_classification.section import MULTI, REGRESSION, SINGLE, TextClassificationSpec

TASK = TEXT_CLASSIFICATION


def facts(cells: dict[Any, int], kinds: tuple[str, ...] = ("str",), root: Path = Path(), pretrained: tuple[str, ...] = ()) -> RowFacts:
    counts = Counter({(cell,) if isinstance(cell, str) else cell: count for cell, count in cells.items()})
    return RowFacts(sum(cells.values()), counts, frozenset(kinds), root, pretrained)


def decide(cells: dict[Any, int], section: TextClassificationSpec | None = None, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """(value, reason) by setting."""
    decisions = TASK.decide(section or TextClassificationSpec(), facts(cells, **more))
    return {item.field: item.value for item in decisions}, {item.field: item.because for item in decisions}


def refused(cells: dict[Any, int], **settings: Any) -> Any:
    spec = {"task": {"name": "text_classification", **settings}, "model": "minilm", "data": "a.csv", "method": "full"}
    with pytest.raises(InputError) as caught:
        TASK.decide(load_spec(spec).task, facts(cells))
    return caught.value.problems[0]


# what becomes of `auto`


def test_words_are_classes() -> None:
    values, reasons = decide({"good": 30, "bad": 20})
    assert values == {"task.label_separator": "none", "task.problem_type": SINGLE, "task.labels": ["bad", "good"]}
    assert reasons["task.problem_type"] == "2 different labels, one a row"


def test_few_whole_numbers_are_classes_in_their_order() -> None:
    values, _ = decide({"10": 9, "2": 9, "1": 9}, kinds=("int",))
    assert values["task.problem_type"] == SINGLE
    assert values["task.labels"] == ["1", "2", "10"]


def test_fractions_are_numbers() -> None:
    values, reasons = decide({"1.0": 10, "2.5": 10, "4.0": 3}, kinds=("float",))
    assert values["task.problem_type"] == REGRESSION
    assert values["task.labels"] == []
    assert "1 of 3 different ones with a fraction" in reasons["task.problem_type"]


def test_whole_numbers_written_as_floats_are_classes() -> None:
    assert decide({"0.0": 10, "1.0": 10}, kinds=("float",))[0]["task.problem_type"] == SINGLE


def test_many_different_numbers_are_numbers() -> None:
    values, reasons = decide({str(number): 2 for number in range(30)}, kinds=("int",))
    assert values["task.problem_type"] == REGRESSION
    assert reasons["task.problem_type"] == "labels are 30 different numbers"


def test_lists_are_several_labels() -> None:
    values, reasons = decide({("a", "b"): 5, ("a",): 5, (): 2}, kinds=("list",))
    assert values["task.label_separator"] == "none"
    assert values["task.problem_type"] == MULTI
    assert values["task.labels"] == ["a", "b"]
    assert reasons["task.label_separator"] == "labels are lists"


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_cells_that_join_labels_are_cut(separator: str) -> None:
    values, reasons = decide({"joy": 9, "fear": 9, f"joy{separator} fear": 4})
    assert values["task.label_separator"] == separator
    assert values["task.problem_type"] == MULTI
    assert values["task.labels"] == ["fear", "joy"]
    assert "also stand alone" in reasons["task.label_separator"]


def test_a_comma_in_a_name_is_no_separator() -> None:
    values, _ = decide({"Washington, D.C.": 9, "Paris": 9})
    assert values["task.label_separator"] == "none"
    assert values["task.labels"] == ["Paris", "Washington, D.C."]


def test_one_label_a_row_is_never_cut_when_the_spec_says_so() -> None:
    values, reasons = decide({"a": 5, "b": 5, "a,b": 5}, TextClassificationSpec(problem_type=SINGLE))
    assert values["task.labels"] == ["a", "a,b", "b"]
    assert reasons["task.label_separator"] == "one label a row"


def test_the_order_of_a_checkpoint_with_the_same_labels_is_kept() -> None:
    values, reasons = decide({"neg": 5, "pos": 5}, pretrained=("pos", "neg"))
    assert values["task.labels"] == ["pos", "neg"]
    assert "order of the checkpoint" in reasons["task.labels"]
    assert decide({"neg": 5, "pos": 5}, pretrained=("pos", "neg", "other"))[0]["task.labels"] == ["neg", "pos"]


def test_misspellings_are_not_classes() -> None:
    assert decide({"positive": 50, "negative": 50, "postive": 1, "Positive": 2})[0]["task.labels"] == ["negative", "positive"]


def test_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("anger\n\njoy \n")
    values, reasons = decide({"0": 5, "1": 5}, TextClassificationSpec(label_names="names.txt"), root=tmp_path, kinds=("int",))
    assert values["task.label_names"] == ["anger", "joy"]
    assert values["task.labels"] == ["anger", "joy"]
    assert values["task.problem_type"] == SINGLE
    assert reasons["task.label_names"] == "2 names in names.txt"


def test_a_file_of_names_that_is_not_there(tmp_path: Path) -> None:
    assert refused({"0": 5}, label_names="nowhere.txt").code == "data.no_such_file"


@pytest.mark.parametrize("names", [["no", "yes", "maybe"], {"0": "no", "1": "yes", "2": "maybe"}])
def test_all_names_are_classes_even_without_rows(names: Any) -> None:
    assert decide({"0": 5, "1": 5}, TextClassificationSpec(label_names=names))[0]["task.labels"] == ["no", "yes", "maybe"]


def test_labels_named_in_the_spec_keep_their_order_and_say_who_is_absent() -> None:
    values, reasons = decide({"a": 5, "b": 5}, TextClassificationSpec(labels=["b", "a", "c"]))
    assert values["task.labels"] == ["b", "a", "c"]
    assert reasons["task.labels"] == "no training row has c"
    assert "task.labels" not in decide({"a": 5, "b": 5}, TextClassificationSpec(labels=["b", "a"]))[0]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    values, _ = decide({"a": 70, "b": 20, "c": 10}, TextClassificationSpec(class_weights="auto"))
    rows = np.repeat(["a", "b", "c"], [70, 20, 10])
    expected = compute_class_weight("balanced", classes=np.unique(rows), y=rows)
    assert list(values["task.class_weights"].values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_weights_of_several_labels_are_rows_without_over_rows_with() -> None:
    values, _ = decide({("a",): 6, ("a", "b"): 2}, TextClassificationSpec(class_weights="auto"), kinds=("list",))
    assert values["task.class_weights"] == {"a": 0.0, "b": 3.0}


@pytest.mark.parametrize(
    ("cells", "settings", "code", "words"),
    [
        ({"same": 9}, {}, "data.one_class", "same"),
        ({"a": 5, "b": 5}, {"labels": ["a"]}, "spec.value", "['a']"),
        ({"a": 5, "b": 5}, {"labels": ["a", "a"]}, "spec.value", "['a', 'a']"),
        ({"a": 5, "b": 5}, {"class_weights": {"a": 1.0}}, "spec.conflict", "b"),
        ({"a": 5, "b": 5}, {"class_weights": {"a": 1.0, "b": 1.0, "c": 2.0}}, "spec.conflict", "c"),
        ({f"free text {index}": 1 for index in range(40)}, {}, "spec.undecided", "40 different labels in 40 rows"),
        ({"a": 5, "b": 5}, {"label_pattern": "(a"}, "spec.value", "(a"),
    ],
)
def test_what_cannot_be_is_refused(cells: dict[Any, int], settings: dict[str, Any], code: str, words: str) -> None:
    problem = refused(cells, **settings)
    assert problem.code == code
    assert words in problem.found


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"problem_type": REGRESSION, "labels": ["a", "b"]}, "labels"),
        ({"problem_type": REGRESSION, "label_names": ["a", "b"]}, "label_names"),
        ({"problem_type": REGRESSION, "class_weights": "auto"}, "class_weights"),
        ({"problem_type": SINGLE, "label_separator": ","}, "label_separator"),
        ({"problem_type": REGRESSION, "label_separator": ","}, "label_separator"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], field: str) -> None:
    problem = refused({"1": 5, "2": 5}, **settings)
    assert (problem.code, problem.where) == ("spec.no_effect", f"task.{field}")


@pytest.mark.parametrize(
    ("label", "counts", "common"),
    [
        ("postive", {"positive": 100, "postive": 1}, "positive"),
        ("Positive", {"positive": 100, "Positive": 40}, "positive"),
        ("positive ", {"positive": 100, "positive ": 3}, "positive"),
        ("neutral", {"positive": 100, "neutral": 1}, None),
        ("good", {"gold": 100, "good": 50}, None),
        ("11", {"1": 100, "11": 1}, None),
        ("cat", {"car": 100, "cat": 1}, None),
        ("positive", {"positive": 100, "postive": 1}, None),
    ],
)
def test_rare_labels_near_a_common_one(label: str, counts: dict[str, int], common: str | None) -> None:
    assert misspelt(label, Counter(counts)) == common


# rows


def section(problem_type: str = SINGLE, **settings: Any) -> TextClassificationSpec:
    return TextClassificationSpec(**{"problem_type": problem_type, "labels": ["bad", "good"], "label_separator": "none", **settings})


@pytest.mark.parametrize(
    ("settings", "cell", "labels"),
    [
        ({}, ["a,b"], ["a,b"]),
        ({"label_separator": ","}, ["a, b ,c"], ["a", "b", "c"]),
        ({"label_pattern": r"(\w+):"}, ["topic:detail"], ["topic"]),
        ({"label_pattern": r"\w+"}, ["topic:detail"], ["topic"]),
        ({"label_pattern": r"(\w+):"}, ["plain"], None),
        ({"label_names": ["no", "yes"]}, ["1"], ["yes"]),
        ({"label_names": ["no", "yes"]}, ["yes"], ["yes"]),
        ({"label_names": ["no", "yes"]}, ["2"], None),
        ({"label_names": {"n": "no", "y": "yes"}}, ["y"], ["yes"]),
        ({"label_names": {"n": "no", "y": "yes"}, "label_separator": "|"}, ["y|n"], ["yes", "no"]),
    ],
)
def test_what_a_cell_means(settings: dict[str, Any], cell: list[str], labels: list[str] | None) -> None:
    assert cell_labels(section(**settings), cell) == labels


def test_rows_that_the_task_cannot_use() -> None:
    batch = {"label": [["good"], ["god"], ["good", "bad"], ["bad"], []]}
    found = dict(TASK.lint(section(), batch))
    assert {index: problem[0] for index, problem in found.items()} == dict.fromkeys((1, 2, 4), "data.unknown_label")
    assert "did you mean good?" in found[1][3]
    assert "2 labels: good, bad" in found[2][2]


def test_targets_that_are_no_numbers() -> None:
    batch = {"label": [["1.5"], ["nan"], ["inf"], ["high"], ["1", "2"], ["-3e2"]]}
    found = dict(TASK.lint(section(REGRESSION), batch))
    assert {index: problem[0] for index, problem in found.items()} == dict.fromkeys((1, 2, 3, 4), "data.not_a_number")


def test_several_labels_may_be_none() -> None:
    batch = {"label": [["good", "bad"], [], ["great"]]}
    assert [index for index, _ in TASK.lint(section(MULTI), batch)] == [2]


def test_strata_are_classes_rarest_labels_or_bins() -> None:
    assert TASK.stratify(section(), [["good"], ["bad"]]) == (["good", "bad"], True)
    assert TASK.stratify(section(MULTI), [["good"], ["good", "bad"], []]) == (["good", "bad", "no label"], False)
    bins, every = TASK.stratify(section(REGRESSION), [["0"], ["4.9"], ["5"], ["10"]])
    assert (len(set(bins)), every) == (4, False)
    same, _ = TASK.stratify(section(REGRESSION), [["4.1"], ["4.9"], ["0"], ["10"]])
    assert same[0] == same[1]
    assert len(set(TASK.stratify(section(REGRESSION), [["3"], ["3"]])[0])) == 1


@pytest.mark.parametrize(
    ("problem_type", "cell", "encoded"),
    [(SINGLE, ["good"], 1), (MULTI, ["good"], [0, 1]), (MULTI, [], [0, 0]), (MULTI, ["good", "bad"], [1, 1]), (REGRESSION, ["2.5"], 2.5)],
)
def test_encoded_labels(problem_type: str, cell: list[str], encoded: Any) -> None:
    columns = TASK.encode(section(problem_type), {"text": ["the film"], "label": [cell]}, tiny_models.wordpiece_tokenizer(), 64)
    assert columns["labels"] == [encoded]
    tensor = TASK.label_tensor(section(problem_type), columns["labels"], (1, 8))
    assert tensor.dtype == (torch.long if problem_type == SINGLE else torch.float32)
    assert tensor.tolist() == [encoded]


def test_a_cut_text_is_the_one_that_the_tokenizer_cuts() -> None:
    tokenizer = tiny_models.wordpiece_tokenizer()
    texts = ["the film " * 20, "the film"]
    columns = TASK.encode(section(), {"text": texts}, tokenizer, 10)
    assert columns["input_ids"] == tokenizer(texts, truncation=True, max_length=10)["input_ids"]
    assert columns["full_length"] == [42, 4]
    assert "labels" not in columns


# the model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("bert", tmp_path_factory.mktemp("task") / "bert")


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_the_loss_is_that_of_the_model(problem_type: str, checkpoint: Path) -> None:
    task_section = section(problem_type, labels=[] if problem_type == REGRESSION else ["a", "b", "c"])
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, **TASK.head(task_section)).eval()
    assert model.config.problem_type == problem_type
    encoded = {SINGLE: [2, 0, 1], MULTI: [[1, 0, 1], [0, 0, 0], [0, 1, 0]], REGRESSION: [0.5, -1.0, 3.0]}[problem_type]
    labels = TASK.label_tensor(task_section, encoded, (len(encoded), 8))
    result = model(input_ids=torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3]]), labels=labels)
    ours = TASK.loss(task_section, result.logits, labels, 0.0) / TASK.loss_weight(task_section, encoded)
    torch.testing.assert_close(ours, result.loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_and_smoothing_are_those_of_torch(smoothing: float, weighted: bool) -> None:
    weights = {"a": 0.5, "b": 2.0, "c": 3.0}
    task_section = section(labels=["a", "b", "c"], class_weights=weights if weighted else "none")
    logits, encoded = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 2, 1, 0]
    labels = TASK.label_tensor(task_section, encoded, (len(encoded), 8))
    tensor = torch.tensor(list(weights.values())) if weighted else None
    expected = torch.nn.CrossEntropyLoss(weight=tensor, label_smoothing=smoothing)(logits, labels)
    ours = TASK.loss(task_section, logits, labels, smoothing) / TASK.loss_weight(task_section, encoded)
    torch.testing.assert_close(ours, expected)
    # The same when the batch is cut in two, each half divided by the weight of the whole.
    halves = sum(TASK.loss(task_section, logits[part], labels[part], smoothing) for part in (slice(0, 2), slice(2, 6)))
    torch.testing.assert_close(halves / TASK.loss_weight(task_section, encoded), expected)


def test_weights_of_several_labels_weigh_positives() -> None:
    task_section = section(MULTI, class_weights={"bad": 4.0, "good": 1.0})
    logits, labels = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.eye(2)[[0, 1, 0, 0, 1]]
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([4.0, 1.0]))(logits, labels)
    torch.testing.assert_close(TASK.loss(task_section, logits, labels, 0.0) / TASK.loss_weight(task_section, labels.tolist()), expected)


def test_the_loss_is_computed_in_fp32() -> None:
    logits = torch.randn(4, 2, dtype=torch.bfloat16)
    assert TASK.loss(section(), logits, torch.tensor([0, 1, 1, 0]), 0.0).dtype == torch.float32


def test_the_head_names_the_labels() -> None:
    assert TASK.head(section()) == {
        "num_labels": 2, "problem_type": SINGLE, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}
    }  # fmt: skip
    assert TASK.head(section(REGRESSION)) == {"num_labels": 1, "problem_type": REGRESSION}


@pytest.mark.parametrize(("problem_type", "meter"), [(SINGLE, ClassMeter), (MULTI, MultiLabelMeter), (REGRESSION, RegressionMeter)])
def test_each_kind_has_its_meter_and_reports_what_it_promises(problem_type: str, meter: type) -> None:
    task_section = section(problem_type)
    made = TASK.meter(task_section)
    assert isinstance(made, meter)
    logits = torch.randn(12, 1 if problem_type == REGRESSION else 2, generator=torch.Generator().manual_seed(0))
    labels = {SINGLE: torch.tensor([0, 1] * 6), MULTI: torch.eye(2)[[0, 1] * 6], REGRESSION: torch.arange(12.0)}[problem_type]
    made.update(logits, labels)
    assert set(TASK.metrics(task_section)) <= set(made.compute()["metrics"])


def test_errors_are_better_when_small() -> None:
    assert TASK.metrics(section(REGRESSION)) == {"spearman": True, "pearson": True, "mae": False, "rmse": False}
    assert all(TASK.metrics(section()).values())


def test_predictions_of_one_label() -> None:
    [row] = TASK.outputs(section(), torch.tensor([[0.0, 2.0]]), {})
    assert row["label"] == "good"
    assert row["score"] == row["scores"]["good"] == pytest.approx(0.8808, abs=1e-4)
    assert sum(row["scores"].values()) == pytest.approx(1)


def test_predictions_of_several_labels_obey_the_tuned_thresholds() -> None:
    logits = torch.tensor([[0.5, -0.5], [-3.0, -3.0]])
    assert [row["labels"] for row in TASK.outputs(section(MULTI), logits, {})] == [["bad"], []]
    assert [row["labels"] for row in TASK.outputs(section(MULTI), logits, {"thresholds": [0.9, 0.3]})] == [["good"], []]


def test_predictions_of_numbers() -> None:
    assert TASK.outputs(section(REGRESSION), torch.tensor([[0.5], [-2.0]]), {}) == [{"value": 0.5}, {"value": -2.0}]
