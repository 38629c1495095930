from __future__ import annotations

import json

import pytest

from tunesmith.errors import CODES, InputError, Problem, RunError, TunesmithError, did_you_mean, nearest


def test_an_error_says_code_place_finding_and_fix() -> None:
    error = InputError("data.empty_text", "the row has no text", where="a.csv:3", found="''", fix="correct the row")
    assert str(error).splitlines() == [
        "data.empty_text: the row has no text",
        "  at     a.csv:3",
        "  found  ''",
        "  fix    correct the row",
    ]
    assert error.code == "data.empty_text"


def test_what_is_not_known_is_not_said() -> None:
    assert str(RunError("run.failed", "it failed")) == "run.failed: it failed"


def test_many_problems_are_one_error_with_a_tally() -> None:
    problems = [Problem("data.empty_text", "no text", f"a.csv:{line}") for line in (1, 2)] + [Problem("data.empty_label", "no label")]
    error = InputError.from_problems(problems)
    assert isinstance(error, InputError)
    assert error.counts == {"data.empty_text": 2, "data.empty_label": 1}
    assert str(error).endswith("3 problems: 2 data.empty_text, 1 data.empty_label")


def test_a_tally_says_what_is_not_shown() -> None:
    error = TunesmithError.from_problems([Problem("data.empty_text", "no text")], {"data.empty_text": 1000})
    assert str(error).endswith("1000 problems: 1000 data.empty_text (the first 1 shown)")


def test_one_problem_has_no_tally() -> None:
    assert "problems" not in str(InputError.from_problems([Problem("data.empty_text", "no text")]))


def test_an_error_is_json() -> None:
    found = json.loads(json.dumps(InputError("spec.value", "wrong", where="a.yaml:2", found="3", fix="say 4").as_json()))
    assert found == {
        "problems": [{"code": "spec.value", "problem": "wrong", "where": "a.yaml:2", "found": "3", "fix": "say 4"}],
        "counts": {"spec.value": 1},
    }


def test_exit_codes_tell_wrong_input_from_a_failed_run() -> None:
    assert (TunesmithError.exit_code, InputError.exit_code, RunError.exit_code) == (1, 2, 1)
    assert issubclass(InputError, TunesmithError)
    assert issubclass(RunError, TunesmithError)


def test_a_code_must_be_documented() -> None:
    with pytest.raises(AssertionError, match=r"undocumented error code no\.such"):
        Problem("no.such", "wrong")


def test_codes_have_a_group_and_a_sentence() -> None:
    for code, meaning in CODES.items():
        group, _, name = code.partition(".")
        assert group in ("usage", "spec", "data", "model", "method", "run")
        assert name
        assert meaning.endswith(".")


@pytest.mark.parametrize(
    ("name", "known", "match"),
    [
        ("learning_rat", ["learning_rate", "epochs"], "learning_rate"),
        ("EPOCHS", ["learning_rate", "epochs"], "epochs"),
        ("epochs", ["Epochs"], "Epochs"),
        ("zzz", ["learning_rate", "epochs"], None),
        ("", ["a"], None),
        ("a", [], None),
    ],
)
def test_nearest(name: str, known: list[str], match: str | None) -> None:
    assert nearest(name, known) == match


def test_did_you_mean() -> None:
    assert did_you_mean("batchsize", ["batch_size", "epochs"]) == "did you mean batch_size?"
    assert did_you_mean("zzz", (name for name in ("a", "b"))) == "one of: a, b"
    assert did_you_mean("zzz", [f"name{index}" for index in range(50)]).endswith("name29, ...")
