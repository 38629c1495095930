from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_rows import rows_of
from tunesmith.data.findings import Findings
from tunesmith.data.lint import text_hashes
from tunesmith.data.rows import Rows
from tunesmith.data.split import share_of, split_rows


def split(
    texts: list[str], labels: list[str], share: float = 0.1, seed: int = 0, every: bool = True, skip: bool = False
) -> tuple[Rows, Rows, Findings]:
    rows = rows_of(texts, labels)
    names = sorted(set(labels))
    findings = Findings(skip)
    strata = np.asarray([names.index(label) for label in labels])
    return *split_rows(rows, text_hashes(rows), strata, names, share, seed, every, findings), findings


def label_counts(rows: Rows) -> Counter:
    return Counter(cell[0] for cell in rows.dataset["label"])


@pytest.mark.parametrize(
    ("given_share", "share"), [("10%", 0.1), ("0.5%", 0.005), (0.25, 0.25), ("none", None), ("dev.csv", None), (["a"], None)]
)
def test_a_share_is_a_number_or_a_percentage(given_share: object, share: float | None) -> None:
    assert share_of(given_share) == share


def test_the_share_holds_over_all_and_in_each_class() -> None:
    labels = ["a"] * 700 + ["b"] * 250 + ["c"] * 50
    train, validation, findings = split([f"text {index}" for index in range(1000)], labels)
    assert len(validation) == 100
    assert label_counts(validation) == {"a": 70, "b": 25, "c": 5}
    assert len(train) == 900
    assert validation.split == "validation"
    assert findings.counts == {}


def test_rounding_evens_out_over_many_small_classes() -> None:
    """Each of 40 classes of 14 rows owes 1.4: rounding each down alone would give 40 rows, not 56."""
    labels = [f"class {index % 40:02}" for index in range(560)]
    _, validation, _ = split([f"text {index}" for index in range(560)], labels)
    assert abs(len(validation) - 56) <= 1
    assert set(label_counts(validation).values()) <= {1, 2}


def test_the_seed_decides_and_order_is_kept() -> None:
    texts, labels = [f"text {index}" for index in range(200)], ["a", "b"] * 100
    drawn = [split(texts, labels, seed=seed)[1].dataset["text"][:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    train, _, _ = split(texts, labels)
    assert train.dataset["line"][:] == sorted(train.dataset["line"][:])


@given(
    st.lists(st.tuples(st.integers(0, 25), st.sampled_from("abc")), min_size=12, max_size=150),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_both_sides_partition_the_rows_and_share_no_text(rows: list[tuple[int, str]], share: float, seed: int) -> None:
    texts = [f"text {number} {label}" for number, label in rows]
    labels = [label for _, label in rows]
    train, validation, findings = split(texts, labels, share, seed, skip=True)
    assert not set(train.dataset["text"]) & set(validation.dataset["text"])
    lines = [*train.dataset["line"], *validation.dataset["line"]]
    assert len(lines) == len(set(lines)) == len(rows) - findings.num_rejected
    single = {label for label in set(labels) if len({text for text, its in zip(texts, labels, strict=True) if its == label}) == 1}
    assert set(label_counts(train)) == set(label_counts(validation)) == set(labels) - single
    assert findings.num_rejected == sum(label in single for label in labels)


def test_a_text_that_stands_in_two_classes_stays_on_one_side() -> None:
    texts = [f"text {index // 2}" for index in range(100)] + [f"own {index}" for index in range(100)]
    train, validation, _ = split(texts, ["a", "b"] * 100)
    assert not set(train.dataset["text"]) & set(validation.dataset["text"])
    assert len(train) + len(validation) == 200
    assert set(label_counts(validation)) == {"a", "b"}


def test_a_class_whose_texts_all_stand_in_another_cannot_be_split() -> None:
    _, _, findings = split(["one", "one", "two", "two", "three"], ["a", "b", "a", "b", "a"])
    [problem] = findings.problems
    assert problem.found == "class b: 2 rows, its texts stand in other classes"


def test_a_class_with_one_text_is_a_problem_at_its_line() -> None:
    labels = ["a"] * 20 + ["rare"]
    _, _, findings = split([f"text {index}" for index in range(21)], labels)
    [problem] = findings.problems
    assert (problem.code, problem.where) == ("data.small_class", "rows.csv:22")
    assert "rare" in problem.found


def test_a_class_with_one_text_is_left_out_whole_when_bad_rows_are_skipped() -> None:
    texts = [*(f"text {index}" for index in range(20)), "same", "same"]
    train, validation, findings = split(texts, ["a"] * 20 + ["rare"] * 2, skip=True)
    assert findings.num_rejected == 2
    assert "rare" not in label_counts(train) + label_counts(validation)
    assert len(train) + len(validation) == 20


def test_bins_need_not_be_on_both_sides() -> None:
    labels = ["low"] * 40 + ["high"]
    train, validation, findings = split([f"text {index}" for index in range(41)], labels, every=False)
    assert findings.counts == {}
    assert len(train) + len(validation) == 41
    assert "high" in label_counts(train)


def test_two_texts_of_a_class_go_to_the_two_sides() -> None:
    train, validation, _ = split(["one", "two", *(f"text {index}" for index in range(50))], ["rare"] * 2 + ["a"] * 50)
    assert label_counts(train)["rare"] == label_counts(validation)["rare"] == 1
