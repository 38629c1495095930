from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.columns import assign_columns, describe_column, find_pair
from tunesmith.errors import InputError
from tunesmith.registry import Role
from tunesmith.spec import DataSpec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION

SENTENCES = [f"this is sentence number {index} of the long list" for index in range(40)]
ROLES = TEXT_CLASSIFICATION.roles


def assign(columns: dict[str, list[Any]], given: Any = "auto", roles: tuple[Role, ...] = ROLES) -> tuple[dict[str, str], dict[str, str]]:
    """(column of each role, reason by field)."""
    sample = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    chosen, decisions = assign_columns(list(columns), sample, DataSpec(train="a.csv", columns=given), roles)
    return chosen, {decision.field: decision.because for decision in decisions}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (SENTENCES, "text"),
        (["good", "bad"] * 20, "label"),
        ([0, 1] * 20, "label"),
        (["1", "2", "3", "4", "5"] * 8, "label"),
        ([0.25, 1.5, 3.75] * 10, "number"),
        (list(range(40)), "index"),
        ([str(index) for index in range(1, 41)], "index"),
        ([7919 * index % 100003 for index in range(40)], "id"),
        ([f"a1b2-{index}" for index in range(40)], "id"),
        (["en"] * 40, "constant"),
        ([None, "", None], "empty"),
        ([["a", "b"], ["a"]], "list"),
    ],
)
def test_kinds_of_columns(values: list[Any], kind: str) -> None:
    assert describe_column("x", values).kind == kind


def test_facts_of_a_column() -> None:
    facts = describe_column("x", ["one two", None, "three four five six", ""])
    assert (facts.num_values, facts.num_distinct, facts.words, facts.example) == (4, 2, 3.0, "one two")


def test_names_are_known_in_any_case() -> None:
    chosen, reasons = assign({"Label": ["a", "b"] * 20, " Text ": SENTENCES})
    assert chosen == {"text": " Text ", "label": "Label"}
    assert reasons["data.columns.text"] == "known by its name"


def test_the_only_column_that_can_be_is_taken() -> None:
    chosen, reasons = assign({"row": list(range(40)), "words": SENTENCES, "kind": ["spam", "ham"] * 20, "lang": ["en"] * 40})
    assert chosen == {"text": "words", "label": "kind"}
    assert "the only column of texts" in reasons["data.columns.text"]
    assert "2 in 40 rows" in reasons["data.columns.label"]
    assert reasons["data.columns"] == "not used: row, lang"


def test_the_spec_has_the_last_word() -> None:
    columns = {"text": SENTENCES, "body": SENTENCES, "label": ["a", "b"] * 20, "mood": ["x", "y"] * 20}
    chosen, reasons = assign(columns, {"text": "body", "label": "mood"})
    assert chosen == {"text": "body", "label": "mood"}
    assert reasons == {}


def test_a_well_known_name_on_an_index_is_not_believed() -> None:
    chosen, _ = assign({"label": list(range(40)), "text": SENTENCES, "kind": ["spam", "ham"] * 20})
    assert chosen["label"] == "kind"


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("premise", "hypothesis"), ("premise", "hypothesis")),
        (("Question", "Sentence"), ("Question", "Sentence")),
        (("sentence1", "sentence2"), ("sentence1", "sentence2")),
        (("text_a", "text_b"), ("text_a", "text_b")),
        (("s1_text", "s2_text"), None),
        (("q 1", "q 2"), ("q 1", "q 2")),
        (("title", "body"), None),
    ],
)
def test_pairs_by_their_names(names: tuple[str, str], pair: tuple[str, str] | None) -> None:
    facts = {name: describe_column(name, SENTENCES) for name in names}
    assert find_pair(list(names), facts) == pair


def test_a_pair_is_taken_before_a_single_text() -> None:
    chosen, _ = assign({"question1": SENTENCES, "question2": SENTENCES[::-1], "label": [0, 1] * 20})
    assert chosen == {"text": "question1", "pair": "question2", "label": "label"}


def test_naming_the_text_alone_means_one_text() -> None:
    chosen, _ = assign({"a": SENTENCES, "b": SENTENCES[::-1], "label": [0, 1] * 20}, {"text": "a", "label": "label"})
    assert "pair" not in chosen


@pytest.mark.parametrize(
    ("columns", "role", "found"),
    [
        ({"first": SENTENCES, "other": SENTENCES, "label": ["a", "b"] * 20}, "text", "first (text, 40 different in 40 rows"),
        ({"text": SENTENCES, "mood": ["x", "y"] * 20, "tone": ["u", "v"] * 20}, "label", "mood (label, 2 different"),
        ({"text": SENTENCES}, "label", "no column is left"),
    ],
)
def test_what_cannot_be_seen_is_asked_with_what_there_is(columns: dict[str, list[Any]], role: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        assign(columns)
    [problem] = caught.value.problems
    assert problem.code == "data.ambiguous_columns"
    assert f"the {role} cannot be seen" in problem.problem
    assert found in problem.found
    assert "data.columns={text: ..., pair: ..., label: ...}" in problem.fix


@pytest.mark.parametrize(
    ("given", "code", "fix"),
    [
        ({"txet": "text"}, "spec.unknown_key", "did you mean text?"),
        ({"text": "txt", "label": "label"}, "data.missing_column", "did you mean text?"),
        ({"text": "text", "label": "text"}, "spec.conflict", "name another column for one of them"),
    ],
)
def test_wrong_names_in_the_spec(given: dict[str, str], code: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        assign({"text": SENTENCES, "label": ["a", "b"] * 20}, given)
    assert caught.value.code == code
    assert caught.value.problems[0].fix == fix


def test_an_optional_role_is_taken_by_name_only() -> None:
    roles = (Role("text", "text", known_names=("text",)), Role("pair", "text", required=False, known_names=("context",)))
    assert assign({"text": SENTENCES, "context": SENTENCES[::-1]}, roles=roles)[0] == {"text": "text", "pair": "context"}
    assert assign({"text": SENTENCES, "notes": SENTENCES[::-1]}, roles=roles)[0] == {"text": "text"}
