"""Label cells of rows: the labels they mean, what is wrong with them, the stratum they belong to."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.data.columns import read_number
from tunesmith.data.text import shorten
from tunesmith.errors import did_you_mean
from tunesmith.tasks.text_classification.section import REGRESSION, SINGLE, TextClassificationSpec

NUM_BINS = 10


def cell_labels(section: TextClassificationSpec, cell: Sequence[str]) -> list[str] | None:
    """The labels that a cell means, by separator, pattern and names; None when the pattern or the names do not fit."""
    parts = (
        [part.strip() for value in cell for part in value.split(section.label_separator)]
        if section.label_separator not in ("none", "auto")
        else list(cell)
    )
    if section.label_pattern != "none":
        matches = [re.match(section.label_pattern, part) for part in parts]
        if not all(matches):
            return None
        parts = [(match.group(1) if match.re.groups else match.group(0)) or "" for match in matches if match]
        if not all(parts):
            return None
    if section.label_names == "none" or isinstance(section.label_names, str):
        return parts
    names = (
        section.label_names
        if isinstance(section.label_names, dict)
        else {str(index): name for index, name in enumerate(section.label_names)}
    )
    known = set(names.values())
    named = [names.get(part, part if part in known else None) for part in parts]
    return None if None in named else [name for name in named if name is not None]


def lint(section: TextClassificationSpec, batch: dict[str, list[Any]]) -> Iterable[tuple[int, tuple[str, str, str, str]]]:
    """(row in batch, (code, problem, found, fix)) of rows whose label the task cannot use."""
    for index, cell in enumerate(batch["label"]):
        problem = _lint_number(cell) if section.problem_type == REGRESSION else _lint_cell(section, cell)
        if problem is not None:
            yield index, problem


def _lint_number(cell: Sequence[str]) -> tuple[str, str, str, str] | None:
    number = read_number(cell[0]) if len(cell) == 1 else None
    if number is not None and math.isfinite(number):
        return None
    return (
        "data.not_a_number",
        "the target is not a finite number",
        ", ".join(cell)[:100] or "an empty list",
        "correct the row, or data.on_bad_row=skip",
    )


def _lint_cell(section: TextClassificationSpec, cell: Sequence[str]) -> tuple[str, str, str, str] | None:
    labels = cell_labels(section, cell)
    if labels is None:
        if section.label_pattern != "none":
            problem, setting = "the label does not fit task.label_pattern, or has no name", "task.label_pattern"
        else:
            problem, setting = "the label has no name in task.label_names", "task.label_names"
        return "data.unknown_label", problem, shorten(", ".join(cell)), f"correct the row or {setting}; or data.on_bad_row=skip"
    if section.problem_type == SINGLE and len(labels) != 1:
        return (
            "data.unknown_label",
            "the row has not one label",
            f"{len(labels)} labels: {', '.join(labels)}"[:200],
            "task.problem_type=multi_label_classification, or correct the row",
        )
    for label in labels:
        if label not in section.labels:
            fix = f"{did_you_mean(label, section.labels)} If it is meant, name all in task.labels; data.on_bad_row=skip leaves it out"
            return "data.unknown_label", "the label is not one of the task's", shorten(label), fix
    return None


def stratify(section: TextClassificationSpec, cells: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """A stratum for each row, and whether each stratum must be on both sides of a split: classes must; bins of numbers need not."""
    if section.problem_type == REGRESSION:
        values = [float(cell[0]) for cell in cells]
        low, high = min(values, default=0.0), max(values, default=0.0)
        width = (high - low) / NUM_BINS or 1.0
        bins = [f"{low + width * index:.4g} to {low + width * (index + 1):.4g}" for index in range(NUM_BINS)]
        return [bins[min(int((value - low) / width), NUM_BINS - 1)] for value in values], False
    rows = [cell_labels(section, cell) or [] for cell in cells]
    counts = Counter(label for labels in rows for label in labels)
    return [min(labels, key=lambda label: (counts[label], label), default="no label") for labels in rows], section.problem_type == SINGLE
