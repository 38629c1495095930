"""Rows of texts: their columns, what is wrong with them, the stratum they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.data.cells import read_cells
from tunesmith.data.columns import read_number
from tunesmith.data.text import shorten
from tunesmith.errors import InputError
from tunesmith.registry import Fault, Role
from tunesmith.tasks.embedding.section import LABELLED, SCORED, TRIPLETS, EmbeddingSpec

TEXTS = ("text", "pair", "negative")
"""Columns of a row's texts, in the order in which they are laid end to end."""
CANONICAL = {"text": "text", "pair": "text", "negative": "text", "label": "labels"}
INPUT = {"text": "text", "pair": "text"}
NUM_BINS = 10

TEXT = Role(
    "text", "text", known_names=("anchor", "query", "question", "text", "sentence1", "sentence_1", "sentence_a", "sentence", "premise")
)
PAIR = Role(
    "pair",
    "text",
    known_names=(
        "positive", "pos", "pair", "text_pair", "sentence2", "sentence_2", "sentence_b", "paraphrase", "passage", "document", "answer",
        "hypothesis",
    ),
)  # fmt: skip
NEGATIVE = Role("negative", "text", required=False, known_names=("negative", "neg", "hard_negative"))
LABEL = Role(
    "label",
    "label",
    required=False,
    known_names=("score", "label", "similarity", "similarity_score", "relatedness_score", "relatedness", "is_duplicate", "gold"),
)
ROLES = (TEXT, PAIR, NEGATIVE, LABEL)


def recognise(opened: Any) -> str | None:
    """Columns whose names say that texts belong together."""
    names = {name.lower().strip() for name in opened.names}
    anchors, positives = names & {"anchor", "query", "question", "sentence"}, names & {"positive", "pos"}
    return f"columns {min(anchors)} and {min(positives)}" if anchors and positives else None


def read(section: EmbeddingSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """The texts of a row, and its score."""
    return read_cells(CANONICAL, columns, row)


def read_input(section: EmbeddingSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """A text, or two whose similarity is wanted."""
    return read_cells(INPUT, columns, row)


def lint(section: EmbeddingSpec, batch: dict[str, list[Any]]) -> Iterable[tuple[int, Fault]]:
    """(row in batch, fault) of rows of which nothing, or something wrong, would be learnt.

    Raises InputError when the rows are of another kind than those that were trained on.
    """
    needed = {SCORED: "label", LABELLED: "label", TRIPLETS: "negative"}.get(str(section.examples), "text")
    if needed not in batch:
        problem = f"{str(section.examples).replace('_', ' ')} need a column for the {needed}"
        raise InputError("data.missing_column", problem, found=f"columns for {', '.join(name for name in CANONICAL if name in batch)}")
    for index in range(len(batch["text"])):
        texts = [batch[name][index].strip() for name in TEXTS if name in batch]
        fault = _lint_score(section, batch["label"][index], texts) if section.examples in (SCORED, LABELLED) else _lint_texts(texts)
        if fault is not None:
            yield index, fault


def _lint_texts(texts: list[str]) -> Fault | None:
    fix = "correct or remove the row; data.on_bad_row=skip leaves it out"
    if texts[0] == texts[1]:
        return "data.same_text", "the anchor and its positive are the same text", shorten(texts[0]), fix
    if len(texts) > 2 and texts[2] in texts[:2]:
        which = "anchor" if texts[2] == texts[0] else "positive"
        return "data.same_text", f"the negative and the {which} are the same text", shorten(texts[2]), fix
    return None


def _lint_score(section: EmbeddingSpec, cell: Sequence[str], texts: list[str]) -> Fault | None:
    number = read_number(cell[0]) if len(cell) == 1 else None
    if number is None or not math.isfinite(number):
        found = ", ".join(cell)[:100] or "an empty list"
        return "data.not_a_number", "the score is not a finite number", found, "correct the row, or data.on_bad_row=skip"
    if section.examples == LABELLED and number not in (0, 1):
        return "data.score_range", "the label of a pair is neither 0 nor 1", cell[0], "correct the row, or task.examples=scored_pairs"
    if section.examples == LABELLED and number == 0 and texts[0] == texts[1]:
        fix = "correct or remove the row; data.on_bad_row=skip leaves it out"
        return "data.same_text", "two texts that do not belong together are the same", shorten(texts[0]), fix
    if isinstance(section.score_range, list) and not section.score_range[0] <= number <= section.score_range[1]:
        low, high = section.score_range
        return "data.score_range", f"the score is not between {low:g} and {high:g}", cell[0], "correct the row or task.score_range"
    return None


def apart(section: EmbeddingSpec, batch: dict[str, list[Any]]) -> list[list[str]]:
    """All texts of a row, where another row of its step must not have any of them."""
    if not section.no_duplicates:
        return []
    return [list(texts) for texts in zip(*(batch[name] for name in TEXTS if name in batch), strict=True)]


def stratify(section: EmbeddingSpec, cells: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """A stratum for each row: its label, or a tenth of the range of scores; neither need be on both sides of a split."""
    if not isinstance(section.score_range, list):
        return [cell[0] if cell else section.examples for cell in cells], False
    low, high = section.score_range
    width = (high - low) / NUM_BINS
    bins = [f"{low + width * index:.4g} to {low + width * (index + 1):.4g}" for index in range(NUM_BINS)]
    return [bins[min(int((float(cell[0]) - low) / width), NUM_BINS - 1)] for cell in cells], False
