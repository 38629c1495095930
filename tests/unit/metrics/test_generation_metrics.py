"""Metrics of written answers, against values worked out by hand and the libraries' own examples."""

from __future__ import annotations

import sys
from decimal import Decimal
from types import SimpleNamespace

import pytest

from tunesmith.errors import InputError
from tunesmith.metrics.generation import REPORTS, ended, find_number, score


def test_exact_match_forgives_spaces_only() -> None:
    answers = ["  a\n b ", "A b", "a b", "ab"]
    assert score(["exact_match"], answers, ["a b"] * 4)["metrics"] == {"exact_match": 0.5}
    assert score(["exact_match"], ["b"], [["a", " b"]])["metrics"] == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 1,234.", "1234"),
        ("The answer is $5.", "5"),
        ("so 3-5 = -2.", "-2"),
        ("1, 2,3", "3"),
        ("10-7", "7"),
        ("\u22124 degrees", "-4"),
        ("it costs -$5.50", "-5.5"),
        ("about .5", "0.5"),
        ("1.5e3 grams", "1500"),
        ("12,345,678.90 dollars", "12345678.9"),
        ("5 #### 6 and #### 7", "6"),
        ("8 #### none", "8"),
        ("no number", None),
        ("9e99999999999999999999", "99999999999999999999"),
    ],
)
def test_the_number_of_an_answer(text: str, value: str | None) -> None:
    assert find_number(text) == (None if value is None else Decimal(value))


def test_numbers_are_compared_as_decimals() -> None:
    answers = ["0.3", "about 1,000 or so", "2", "nothing"]
    assert score(["number"], answers, ["x\n#### 0.30", "#### 1000.0", "#### 2.0001", "#### 4"])["metrics"] == {"number": 0.5}


def test_a_reference_without_what_is_compared_is_an_error() -> None:
    with pytest.raises(InputError) as caught:
        score(["number"], ["1", "2"], ["1", "none"])
    assert (caught.value.code, caught.value.problems[0].where) == ("data.not_a_number", "row 2 of those compared")
    with pytest.raises(InputError) as caught:
        score(["pattern"], ["(A)"], ["B"], pattern=r"\((\w)\)")
    assert caught.value.code == "spec.conflict"
    assert score(["number"], ["2"], [["none", "2"]])["metrics"] == {"number": 1.0}


def test_pattern_compares_its_first_group_or_all_it_matches() -> None:
    answers = ["I say (A), not (B)", "(B)", "none"]
    assert score(["pattern"], answers, ["(A)", "(C)", "(A)"], pattern=r"\((\w)\)")["metrics"]["pattern"] == pytest.approx(1 / 3)
    assert score(["pattern"], ["yes, sir", "yes"], ["yes!", "no"], pattern="yes|no")["metrics"]["pattern"] == 0.5


def test_rouge_is_that_of_rouge_score_and_reads_any_script() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    answer, reference = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    theirs = RougeScorer(list(REPORTS["rouge"])).score(reference, answer)
    assert score(["rouge"], [answer], [reference])["metrics"] == {name: theirs[name].fmeasure for name in REPORTS["rouge"]}
    assert score(["rouge"], ["Привет мир"], ["привет, мир!"])["metrics"]["rougeL"] == 1.0
    assert score(["rouge"], ["one two"], [["three", "one two"]])["metrics"]["rouge2"] == 1.0


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    import sacrebleu

    answers = ["the dog bit the man .", "it was not unexpected", "he bit him first"]
    references = [["the dog bit the man .", "the dog had bitten the man ."], ["nobody was surprised by it"], ["he bit him first at all"]]
    streams = [[row[0] for row in references], [references[0][1], None, None]]
    result = score(["bleu", "chrf"], answers, references)
    assert result["metrics"]["bleu"] == sacrebleu.corpus_bleu(answers, streams, force=True).score
    assert result["metrics"]["chrf"] == sacrebleu.corpus_chrf(answers, streams).score
    for name in ("bleu", "chrf"):
        low, high = result["intervals"][name]
        assert 0 <= low < result["metrics"][name] < high <= 100
    same = score(["bleu"], answers, answers)
    assert same["metrics"]["bleu"] == pytest.approx(100)
    assert same["intervals"]["bleu"] == pytest.approx([100, 100])


def test_answers_that_share_nothing_score_nothing() -> None:
    result = score(["bleu", "chrf", "rouge", "exact_match"], ["", "x"], ["a b", "c"])
    assert set(result["metrics"].values()) == {0.0}
    assert all(bounds == [0.0, 0.0] for bounds in result["intervals"].values())


def test_intervals_of_a_share_are_those_of_a_coin() -> None:
    answers = ["yes"] * 60 + ["no"] * 40
    result = score(["exact_match"], answers, ["yes"] * 100)
    low, high = result["intervals"]["exact_match"]
    # 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 100)
    assert (low, high) == (pytest.approx(0.504, abs=0.02), pytest.approx(0.696, abs=0.02))


def test_ended_counts_answers_that_end_by_themselves() -> None:
    result = ended([SimpleNamespace(num_tokens=3, finished=True), SimpleNamespace(num_tokens=8, finished=False)])
    assert result["metrics"] == {"ended": 0.5, "mean_tokens": 5.5}
    assert result["intervals"]["mean_tokens"] == [3.0, 8.0]


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(InputError) as caught:
        score(["exactmatch"], ["a"], ["a"])
    assert caught.value.problems[0].fix == "did you mean exact_match?"


@pytest.mark.parametrize(("metric", "module"), [("rouge", "rouge_score"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu")])
def test_a_missing_library_is_named_with_its_extra(metric: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        score([metric], ["a"], ["a"])
    assert caught.value.code == "usage.missing_extra"
    assert module in caught.value.problems[0].problem
    assert caught.value.problems[0].fix == "pip install 'tunesmith[eval]'"


def test_answers_that_have_next_to_nothing_in_common_have_intervals() -> None:
    """Some resamples then have nothing in common, which sacrebleu scores in another type."""
    answers = ["a b c d e", *["x y z"] * 8]
    result = score(["bleu", "chrf"], answers, ["a b c d f", *["l m n"] * 8])
    for name in ("bleu", "chrf"):
        low, high = result["intervals"][name]
        assert low <= result["metrics"][name] <= high
    assert score(["bleu", "exact_match"], answers, answers, intervals=False)["intervals"] == {}
