from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tiny_rows import rows_of
from tunesmith.data.findings import Findings
from tunesmith.data.lint import (
    describe_shared,
    label_hashes,
    lint_contradictions,
    lint_ids,
    lint_labels,
    lint_leaks,
    num_duplicates,
    text_hashes,
)
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

SECTION = TextClassificationSpec(problem_type="single_label_classification", labels=["x", "y"], label_separator="none")


def test_hashes_are_of_the_text_the_pair_and_the_label() -> None:
    rows = rows_of(["a", "a", "b", "a"], ["x", "y", "x", ["x", "y"]], ["p", "p", "p", "q"])
    texts, labels = text_hashes(rows), label_hashes(rows)
    assert texts[0] == texts[1]
    assert len({int(value) for value in texts}) == 3
    assert labels[0] == labels[2]
    assert len({int(value) for value in labels}) == 3


def test_a_text_and_its_pair_are_not_run_together() -> None:
    texts = text_hashes(rows_of(["ab", "a"], pairs=["c", "bc"]))
    assert texts[0] != texts[1]


def test_lone_surrogates_are_hashed_not_refused() -> None:
    assert len(text_hashes(rows_of(["fine", "also fine é ☃"]))) == 2


def test_labels_that_the_task_refuses_are_masked_and_placed() -> None:
    rows = rows_of(["a", "b", "c"], ["good", "baad", "bad"])
    section = TextClassificationSpec(problem_type="single_label_classification", labels=["good", "bad"], label_separator="none")
    findings = Findings()
    assert lint_labels(rows, TEXT_CLASSIFICATION, section, findings).tolist() == [True, False, True]
    [problem] = findings.problems
    assert (problem.code, problem.where, problem.found) == ("data.unknown_label", "rows.csv:3", "'baad'")
    assert "did you mean bad?" in problem.fix


def test_identical_texts_with_different_labels_contradict() -> None:
    rows = rows_of(["same", "other", "same", "twice", "twice"], ["x", "x", "y", "x", "x"])
    findings = Findings()
    good = lint_contradictions(rows, text_hashes(rows), TEXT_CLASSIFICATION, SECTION, findings)
    assert good.tolist() == [False, True, False, True, True]
    [problem] = findings.problems
    assert problem.code == "data.conflicting_labels"
    assert problem.where == "rows.csv:2"
    assert problem.found == "rows.csv:2 says x; rows.csv:4 says y"


def test_every_contradicting_row_is_rejected_when_rows_are_skipped(tmp_path: Path) -> None:
    rows = rows_of(["same", "same", "same", "other"], ["x", "y", "y", "x"])
    findings = Findings(skip=True, rejected=tmp_path / "rejected.jsonl")
    lint_contradictions(rows, text_hashes(rows), TEXT_CLASSIFICATION, SECTION, findings)
    findings.close()
    assert findings.num_rejected == 3
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rejected] == ["rows.csv:2", "rows.csv:3", "rows.csv:4"]
    assert [row["row"]["label"] for row in rejected] == [["x"], ["y"], ["y"]]


def test_rows_without_labels_cannot_contradict() -> None:
    rows = rows_of(["same", "same"])
    assert lint_contradictions(rows, text_hashes(rows), TEXT_CLASSIFICATION, SECTION, Findings()).all()
    empty = rows_of([], [])
    assert len(lint_contradictions(empty, np.empty(0, np.uint64), TEXT_CLASSIFICATION, SECTION, Findings())) == 0


def test_training_rows_that_stand_in_the_test_set_leak() -> None:
    train, test = rows_of(["a", "b", "c", "b"], ["x"] * 4), rows_of(["z", "b"], ["x"] * 2, split="test")
    findings = Findings()
    good = lint_leaks(train, text_hashes(train), test, text_hashes(test), findings)
    assert good.tolist() == [True, False, True, False]
    assert [problem.where for problem in findings.problems] == ["rows.csv:3", "rows.csv:5"]
    assert all("test.csv:3" in problem.found for problem in findings.problems)
    assert lint_leaks(train, text_hashes(train), rows_of(["z"], split="test"), text_hashes(rows_of(["z"])), Findings()).all()


def test_what_two_splits_share_is_told_of_rows_that_are_not_the_same() -> None:
    train = rows_of(["p", "q"], pairs=["a", "b"])
    rows = {
        "train": train,
        "validation": rows_of(["r", "p", "s"], pairs=["c", "c", "a"]),
        "test": rows_of(["t"], pairs=["z"], split="test"),
    }
    [found] = describe_shared(rows, ("text",))
    assert (found.field, found.value) == ("validation rows whose text is trained on", "1 of 3")
    assert found.because.endswith("rows.csv:3")
    assert [fact.value for fact in describe_shared(rows, ("pair",))] == ["1 of 3"]
    assert describe_shared(rows, ("text", "pair")) == []
    assert describe_shared(rows, ()) == []


def test_duplicates_are_rows_after_the_first() -> None:
    assert num_duplicates(text_hashes(rows_of(["a", "b", "a", "a"]))) == 2


def test_an_id_may_stand_once_and_makes_no_other_text() -> None:
    rows = rows_of(["a", "a", "b", "c"], ["x", "x", "y", "y"])
    named = rows.dataset.add_column("id", ["one", "two", "one", None])
    rows = type(rows)(rows.split, named, rows.origins)
    assert text_hashes(rows)[0] == text_hashes(rows)[1]
    findings = Findings()
    assert lint_ids(rows, findings).tolist() == [True, True, False, True]
    [problem] = findings.problems
    assert (problem.code, problem.where, problem.found) == ("data.repeated_id", "rows.csv:4, id one", "'one', as rows.csv:2, id one")
    assert rows.place(3) == "rows.csv:5"
