"""Metrics of written answers: each answer is compared with its reference, or with the best of several."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from tunesmith.errors import InputError, did_you_mean
from tunesmith.metrics.bootstrap import NUM_RESAMPLES, row_weight_intervals

References = Sequence[str] | Sequence[Sequence[str]]
"""One reference a row, or several."""
NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212]\s?)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?|(?<![\w.])\.\d+")
WORD = re.compile(r"[^\W_]+")
REPORTS: dict[str, tuple[str, ...]] = {
    "exact_match": ("exact_match",),
    "number": ("number",),
    "pattern": ("pattern",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "bleu": ("bleu",),
    "chrf": ("chrf",),
}
"""The numbers that each metric reports; greater is always better."""


class Ending(Protocol):
    """What is read of a generated answer."""

    num_tokens: int
    finished: bool


def score(
    names: Iterable[str], answers: Sequence[str], references: References, pattern: str = "none", intervals: bool = True
) -> dict[str, Any]:
    """`{"metrics": {name: number}, "intervals": {name: [low, high]}}` of the metrics named; without `intervals` these are empty.

    Raises InputError when a name is unknown, an extra is not installed, or a reference has nothing to compare.
    """
    rows: dict[str, list[float]] = {}
    corpus: dict[str, tuple[float, list[float]]] = {}
    several = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    for name in names:
        if name == "exact_match":
            rows[name] = exact_match(answers, several)
        elif name == "number":
            rows[name] = number(answers, several)
        elif name == "pattern":
            rows[name] = match_pattern(answers, several, pattern)
        elif name == "rouge":
            rows |= rouge(answers, several)
        elif name in ("bleu", "chrf"):
            corpus[name] = translation_score(name, answers, several, NUM_RESAMPLES if intervals else 1)
        else:
            raise InputError("spec.unknown_name", "there is no metric of this name", found=name, fix=did_you_mean(name, REPORTS))
    result = _means(rows)
    for name, (value, interval) in corpus.items():
        result["metrics"][name], result["intervals"][name] = value, interval
    return result if intervals else {**result, "intervals": {}}


def ended(answers: Iterable[Ending]) -> dict[str, Any]:
    """`ended`, the share of answers that the model ended by itself, and `mean_tokens`; form as of `score`."""
    rows = [(float(answer.finished), float(answer.num_tokens)) for answer in answers]
    return _means({"ended": [row[0] for row in rows], "mean_tokens": [row[1] for row in rows]})


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1 or 0 a row: whether answer and reference are the same but for spaces at the ends and how many stand between words."""
    return _any_equal([" ".join(answer.split()) for answer in answers], references, lambda text: " ".join(text.split()))


def number(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1 or 0 a row: whether both come to the same decimal number; see `find_number`."""
    expected = _found(references, find_number, "data.not_a_number", "the reference holds no number", "correct the row")
    return _any_equal([find_number(answer) for answer in answers], expected)


def find_number(text: str) -> Decimal | None:
    """The first number after the first `####`, as GSM8K marks answers; otherwise the last number of the text.

    Reads thousands with commas, a dollar sign, a sign, decimals and exponents.
    """
    marked = NUMBER.search(text.partition("####")[2])
    found = marked.group() if marked else (NUMBER.findall(text) or [None])[-1]
    return Decimal(re.sub(r"[$,\s]", "", found).replace("\u2212", "-")) if found else None


def match_pattern(answers: Sequence[str], references: Sequence[Sequence[str]], pattern: str) -> list[float]:
    """1 or 0 a row: whether the regular expression finds the same in both: its first group, or all it matches."""
    compiled = re.compile(pattern)

    def find(text: str) -> str | None:
        match = compiled.search(text)
        return (match.group(1) if compiled.groups else match.group()) if match else None

    expected = _found(references, find, "spec.conflict", "the pattern finds nothing in a reference", "correct the pattern, or the row")
    return _any_equal([find(answer) for answer in answers], expected)


class _Words:
    """Words in any script, in lower case; rouge-score's own are a to z only, and on those both agree."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


def rouge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """ROUGE-1, -2 and -L of each row (rouge-score, F-measure from 0 to 1, no stemming)."""
    scorer = _extra("rouge_score.rouge_scorer").RougeScorer(list(REPORTS["rouge"]), tokenizer=_Words())
    scores = [scorer.score_multi(texts, answer) for answer, texts in zip(answers, references, strict=True)]
    return {name: [float(row[name].fmeasure) for row in scores] for name in REPORTS["rouge"]}


def translation_score(
    name: str, answers: Sequence[str], references: Sequence[Sequence[str]], num_resamples: int = NUM_RESAMPLES
) -> tuple[float, list[float]]:
    """`bleu` or `chrf` of all rows together and its 95% interval, from 0 to 100, with sacrebleu's defaults and its bootstrap."""
    metrics = _extra("sacrebleu.metrics")
    # force: without it sacrebleu warns of answers that end in " ."
    metric = _of_one_type(metrics.BLEU)(force=True) if name == "bleu" else _of_one_type(metrics.CHRF)()
    most = max(len(texts) for texts in references)
    streams = [[texts[index] if index < len(texts) else None for texts in references] for index in range(most)]
    found = metric.corpus_score(list(answers), streams, n_bootstrap=num_resamples)
    told = json.loads(found.format(width=12, signature=metric.get_signature().format(), is_json=True))
    middle, half = told.get("confidence_mean", found.score), told.get("confidence_var", 0.0)
    return float(found.score), [max(middle - half, 0.0), min(middle + half, 100.0)]


def _of_one_type(metric: Any) -> Any:
    """A metric of sacrebleu whose scores are of one type: its bootstrap fails where some resamples have nothing in common and others do."""

    def compute(self: Any, stats: Any) -> Any:
        found = metric._compute_score_from_stats(self, stats)
        found.score = float(found.score)
        return found

    return type(metric.__name__, (metric,), {"_compute_score_from_stats": compute})


def _means(rows: dict[str, list[float]]) -> dict[str, Any]:
    """Means over rows and their intervals."""
    if not rows:
        return {"metrics": {}, "intervals": {}}
    values = np.asarray(list(rows.values()))

    def score_draws(weights: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(rows, (weights @ values.T / values.shape[1]).T, strict=True))

    means = {name: float(np.mean(row)) for name, row in rows.items()}
    return {"metrics": means, "intervals": row_weight_intervals(values.shape[1], score_draws)}


def _any_equal(
    answers: Sequence[Any], references: Sequence[Sequence[Any]], normalise: Callable[[Any], Any] = lambda value: value
) -> list[float]:
    return [float(any(answer == normalise(value) for value in values)) for answer, values in zip(answers, references, strict=True)]


def _found(references: Sequence[Sequence[str]], find: Callable[[str], Any], code: str, problem: str, fix: str) -> list[list[Any]]:
    """What `find` finds in the references of each row; none at all is an error, since no answer could be right."""
    rows = []
    for index, texts in enumerate(references):
        rows.append([value for text in texts if (value := find(text)) is not None])
        if not rows[-1]:
            raise InputError(code, problem, where=f"row {index + 1} of those compared", found=repr(" | ".join(texts)[-100:]), fix=fix)
    return rows


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        problem = f"the metric needs {module.partition('.')[0]}, which is not installed"
        raise InputError("usage.missing_extra", problem, fix="pip install 'tunesmith[eval]'") from None
