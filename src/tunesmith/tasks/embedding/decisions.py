"""What becomes of each `auto` of the section: the kind of examples, the loss and its settings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tunesmith.data.columns import read_number
from tunesmith.errors import InputError, Problem
from tunesmith.models.load import require_package
from tunesmith.registry import Decision
from tunesmith.tasks.embedding.section import LABELLED, PAIRS, SCORED, TRIPLETS, EmbeddingSpec


class LossFacts(NamedTuple):
    """What a loss is for, and the settings that it has."""

    examples: tuple[str, ...]
    settings: tuple[str, ...]
    compares_rows: bool
    """Whether it is no sum over rows, since it compares the rows of a step."""


LOSSES = {
    "multiple_negatives_ranking": LossFacts((PAIRS, TRIPLETS), ("scale",), True),
    "cosine_similarity": LossFacts((SCORED, LABELLED), (), False),
    "cosent": LossFacts((SCORED, LABELLED), ("scale",), True),
    "angle": LossFacts((SCORED, LABELLED), ("scale",), True),
    "triplet": LossFacts((TRIPLETS,), ("distance", "margin"), False),
    "contrastive": LossFacts((LABELLED,), ("distance", "margin"), False),
    "online_contrastive": LossFacts((LABELLED,), ("distance", "margin"), True),
}
USUAL = {PAIRS: "multiple_negatives_ranking", TRIPLETS: "multiple_negatives_ranking", SCORED: "cosent", LABELLED: "contrastive"}
NEEDS = {PAIRS: ((), ("label", "negative")), TRIPLETS: (("negative",), ("label",)), SCORED: (("label",), ("negative",))}
NEEDS[LABELLED] = NEEDS[SCORED]


def decide(section: EmbeddingSpec, facts: Any) -> list[Decision]:
    """Kind of examples, loss, its settings and the range of scores, from the columns and scores of the training rows.

    Raises InputError when sentence-transformers is not installed, or settings do not suit each other or the columns.
    """
    require_package("sentence_transformers", "embedding")
    decisions: list[Decision] = []

    def take(field: str, value: Any, because: str) -> None:
        nonlocal section
        if getattr(section, field) == "auto":
            decisions.append(Decision(f"task.{field}", value, because))
            section = section.model_copy(update={field: value})

    scores = [number for cell in facts.label_counts if (number := read_number(cell[0])) is not None and math.isfinite(number)]
    take("examples", *_see_examples(facts.columns, scores))
    _check_columns(section, facts.columns)
    take("loss", USUAL[str(section.examples)], f"the usual one for {str(section.examples).replace('_', ' ')}")
    _check_settings(section)
    loss = str(section.loss)
    has = LOSSES[loss].settings
    take("scale", 20.0 if "scale" in has else "none", "upstream's" if "scale" in has else f"{loss} has none")
    distance = "euclidean" if loss == "triplet" else "cosine"
    take("distance", distance if "distance" in has else "none", "upstream's" if "distance" in has else f"{loss} has none")
    margin = 5.0 if loss == "triplet" and section.distance != "cosine" else 0.5
    take(
        "margin",
        margin if "margin" in has else "none",
        f"usual with distance {section.distance}" if "margin" in has else f"{loss} has none",
    )
    ranks = loss == "multiple_negatives_ranking"
    take("no_duplicates", ranks, "other rows' positives are negatives" if ranks else f"{loss} takes no other row for a negative")
    take("score_range", *_see_range(section, scores))
    if LOSSES[loss].compares_rows and not section.gradient_cache:
        because = f"{loss} compares its rows, so their activations are held together; task.gradient_cache=true holds one micro-batch"
        decisions.append(Decision("a step", "one graph", because))
    return decisions


def _see_examples(columns: Any, scores: list[float]) -> tuple[str, str]:
    if "negative" in columns:
        return TRIPLETS, f"the rows have negatives (column {columns['negative']})"
    if "label" not in columns:
        return PAIRS, "the rows have two texts and no score"
    if scores and set(scores) <= {0.0, 1.0}:
        return LABELLED, f"column {columns['label']} is 0 or 1"
    return SCORED, f"column {columns['label']} holds numbers"


def _see_range(section: EmbeddingSpec, scores: list[float]) -> tuple[Any, str]:
    if section.examples != SCORED:
        return "none", f"{str(section.examples).replace('_', ' ')} have no scores"
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    if low >= 0 and high <= 1:
        return [0.0, 1.0], "no score of the training rows is outside"
    if low >= -1 and high <= 1:
        return [-1.0, 1.0], "no score of the training rows is outside, and some are negative"
    return [min(low, 0.0), high], f"the scores of the training rows are {low:g} to {high:g}"


def _check_columns(section: EmbeddingSpec, columns: Any) -> None:
    needed, idle = NEEDS[str(section.examples)]
    problems = [
        Problem("data.missing_column", f"{section.examples} need a column for the {role}", "data.columns", "", f"data.columns.{role}=...")
        for role in needed
        if role not in columns
    ]
    problems += [
        Problem("spec.conflict", f"{section.examples} do not read the {role}", "task.examples", f"column {columns[role]}", fix)
        for role in idle
        if role in columns
        for fix in ["name only the columns to read in data.columns, or leave task.examples out"]
    ]
    if problems:
        raise InputError.from_problems(problems)


def _check_settings(section: EmbeddingSpec) -> None:
    loss = LOSSES[str(section.loss)]
    problems = []
    if section.examples not in loss.examples:
        fitting = [name for name, facts in LOSSES.items() if section.examples in facts.examples]
        problem = f"{section.loss} is for {' and '.join(loss.examples)}"
        problems.append(Problem("spec.conflict", problem, "task.loss", f"rows are {section.examples}", f"one of: {', '.join(fitting)}"))
    for field in ("scale", "distance", "margin"):
        value = getattr(section, field)
        if value not in ("auto", "none") and field not in loss.settings:
            problem = f"{section.loss} has no {field}"
            problems.append(Problem("spec.no_effect", problem, f"task.{field}", f"{field}: {value}", "leave it out"))
    if isinstance(section.score_range, list) and section.examples != SCORED:
        found = f"score_range: {section.score_range}"
        problems.append(Problem("spec.no_effect", f"{section.examples} have no scores", "task.score_range", found, "leave it out"))
    if section.no_duplicates is True and section.loss != "multiple_negatives_ranking":
        problem = f"{section.loss} takes no other row for a negative"
        problems.append(Problem("spec.no_effect", problem, "task.no_duplicates", "no_duplicates: true", "leave it out"))
    if section.gradient_cache and not loss.compares_rows:
        problem = f"{section.loss} is a sum over rows: each micro-batch is computed alone as it is"
        problems.append(Problem("spec.no_effect", problem, "task.gradient_cache", "gradient_cache: true", "leave it out"))
    if problems:
        raise InputError.from_problems(problems)
