"""What becomes of each `auto` of the section: separator, kind of problem, classes, weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.columns import read_number
from tunesmith.data.label_names import misspelt, read_label_names
from tunesmith.errors import InputError, Problem, did_you_mean
from tunesmith.registry import Decision
from tunesmith.tasks.text_classification.cells import cell_labels
from tunesmith.tasks.text_classification.section import MULTI, REGRESSION, SINGLE, TextClassificationSpec

SEPARATORS = (",", ";", "|")


def decide(section: TextClassificationSpec, facts: Any) -> list[Decision]:
    """Separator, kind of problem, labels and class weights, from the labels of the training rows."""
    decisions: list[Decision] = []
    section = _decide_names(section, facts, decisions)
    counts = facts.label_counts
    section = _decide_separator(section, facts, counts, decisions)
    section = _decide_problem_type(section, facts, counts, decisions)
    _check_settings(section)
    if section.problem_type == REGRESSION:
        return [*decisions, *([Decision("task.labels", [], "a number has no classes")] if section.labels == "auto" else [])]
    label_counts: Counter[str] = Counter()
    for cell, count in counts.items():
        for label in cell_labels(section, cell) or ():
            label_counts[label] += count
    if counts and not label_counts and section.problem_type == SINGLE:
        raise _no_label(section, counts)
    section = _decide_labels(section, facts, label_counts, decisions)
    if section.class_weights == "auto":
        decisions.append(_decide_weights(section, label_counts, facts.num_rows))
    elif isinstance(section.class_weights, dict):
        _check_weights(section.class_weights, section.labels)
    return decisions


def _no_label(section: TextClassificationSpec, counts: Counter[tuple[str, ...]]) -> InputError:
    setting = "label_pattern" if section.label_pattern != "none" else "label_names"
    return InputError(
        "spec.conflict",
        f"task.{setting} fits no label of the training rows",
        where=f"task.{setting}",
        found=f"labels such as {', '.join(repr(', '.join(cell)[:60]) for cell, _ in counts.most_common(3))}",
        fix=f"correct task.{setting}, or leave it out; or name another column in data.columns",
    )


def _check_weights(weights: Mapping[str, float], labels: Sequence[str]) -> None:
    problems = [
        Problem("spec.conflict", f"class_weights names a class that does not exist: {name}", f"task.class_weights.{name}", name, fix)
        for name in weights
        if name not in labels
        for fix in [did_you_mean(name, labels)]
    ]
    missing = [label for label in labels if label not in weights]
    if missing:
        fix = "give each class a weight; 1 changes nothing"
        problem = "class_weights needs one weight for each class"
        problems.append(Problem("spec.conflict", problem, "task.class_weights", f"none for {', '.join(missing)}", fix))
    if problems:
        raise InputError.from_problems(problems)


def _take(section: TextClassificationSpec, decisions: list[Decision], field: str, value: Any, because: str) -> TextClassificationSpec:
    decisions.append(Decision(f"task.{field}", value, because))
    return section.model_copy(update={field: value})


def _decide_names(section: TextClassificationSpec, facts: Any, decisions: list[Decision]) -> TextClassificationSpec:
    if not isinstance(section.label_names, str) or section.label_names == "none":
        return section
    path = Path(facts.root) / section.label_names
    names = read_label_names(path)
    return _take(section, decisions, "label_names", names, f"{len(names)} names in {path.name}")


def _decide_separator(
    section: TextClassificationSpec, facts: Any, counts: Counter[tuple[str, ...]], decisions: list[Decision]
) -> TextClassificationSpec:
    if section.label_separator != "auto":
        return section
    if "list" in facts.label_kinds:
        return _take(section, decisions, "label_separator", "none", "labels are lists")
    if section.problem_type in (SINGLE, REGRESSION):
        return _take(section, decisions, "label_separator", "none", "one label a row")
    cells = {cell[0] for cell in counts}
    for separator in SEPARATORS:
        joined = [cell for cell in cells if separator in cell]
        parts = {part.strip() for cell in joined for part in cell.split(separator)}
        alone = parts & cells
        if joined and len(alone) >= 0.8 * len(parts):
            why = f"{len(joined)} different cells join labels that also stand alone, e.g. {joined[0]!r}"
            return _take(section, decisions, "label_separator", separator, why)
    return _take(section, decisions, "label_separator", "none", "no cell joins labels that also stand alone")


def _decide_problem_type(
    section: TextClassificationSpec, facts: Any, counts: Counter[tuple[str, ...]], decisions: list[Decision]
) -> TextClassificationSpec:
    if section.problem_type != "auto":
        return section
    if "list" in facts.label_kinds or section.label_separator != "none":
        return _take(section, decisions, "problem_type", MULTI, "a row may have several labels")
    if section.labels != "auto" or section.label_names != "none":
        return _take(section, decisions, "problem_type", SINGLE, "the labels are named")
    numbers = [number for cell in counts if (number := read_number(cell[0])) is not None]
    if len(numbers) >= 0.9 * len(counts) and counts:
        fractions = sum(number != int(number) for number in numbers if math.isfinite(number))
        if fractions:
            return _take(
                section,
                decisions,
                "problem_type",
                REGRESSION,
                f"labels are numbers, {fractions} of {len(counts)} different ones with a fraction",
            )
        if len(counts) > max(20, facts.num_rows // 20):
            return _take(section, decisions, "problem_type", REGRESSION, f"labels are {len(counts)} different numbers")
    elif len(counts) > 20 and len(counts) > facts.num_rows // 2:
        raise InputError(
            "spec.undecided",
            "nearly every row has a label of its own",
            where="task.problem_type",
            found=f"{len(counts)} different labels in {facts.num_rows} rows, e.g. {next(iter(counts))[0][:60]!r}",
            fix="name the right column: data.columns.label=..., or say task.problem_type",
        )
    labels = {label for cell in counts for label in cell_labels(section, cell) or ()}
    return _take(section, decisions, "problem_type", SINGLE, f"{len(labels)} different labels, one a row")


def _check_settings(section: TextClassificationSpec) -> None:
    problems: list[Problem] = []

    def refuse(field: str, because: str) -> None:
        found = f"{field}: {getattr(section, field)}"[:100]
        problems.append(Problem("spec.no_effect", f"task.{field} has no effect {because}", f"task.{field}", found, "leave it out"))

    if section.problem_type == REGRESSION:
        for field, idle in (
            ("labels", ("auto", [])),
            ("label_names", ("none",)),
            ("class_weights", ("none",)),
            ("label_pattern", ("none",)),
        ):
            if getattr(section, field) not in idle:
                refuse(field, "on a regression")
    if section.problem_type != MULTI and section.label_separator != "none":
        refuse("label_separator", f"on a {section.problem_type}")
    if problems:
        raise InputError.from_problems(problems)


def _decide_labels(
    section: TextClassificationSpec, facts: Any, label_counts: Counter[str], decisions: list[Decision]
) -> TextClassificationSpec:
    if section.labels == "auto":
        kept = [label for label in label_counts if misspelt(label, label_counts) is None]
        labels = _named_order(section, sorted(kept, key=_label_order))
        if len(labels) < 2:
            raise InputError(
                "data.one_class",
                "every training row has the same label",
                where="data.columns",
                found=", ".join(labels) or "no label",
                fix="a classifier needs two classes or more: add rows of another, or name the right column in data.columns",
            )
        if facts.pretrained_labels and set(facts.pretrained_labels) == set(labels):
            return _take(
                section, decisions, "labels", list(facts.pretrained_labels), "the order of the checkpoint, which has the same labels"
            )
        return _take(section, decisions, "labels", labels, f"the {len(labels)} labels of the training rows")
    absent = [label for label in section.labels if not label_counts[label]]
    if absent:
        decisions.append(Decision("task.labels", section.labels, f"no training row has {', '.join(absent)}"))
    return section


def _named_order(section: TextClassificationSpec, labels: list[str]) -> list[str]:
    """All names of label_names in their order, when there are any; otherwise the labels."""
    if isinstance(section.label_names, dict):
        return list(section.label_names.values())
    return list(section.label_names) if isinstance(section.label_names, list) else labels


def _label_order(label: str) -> tuple[int, float, str]:
    number = read_number(label)
    return (1, 0.0, label) if number is None else (0, number, label)


def _decide_weights(section: TextClassificationSpec, label_counts: Counter[str], num_rows: int) -> Decision:
    if section.problem_type == MULTI:
        weights = {label: round((num_rows - label_counts[label]) / max(label_counts[label], 1), 4) for label in section.labels}
        return Decision("task.class_weights", weights, "rows without the label / rows with it, for positives")
    weights = {label: round(num_rows / (len(section.labels) * max(label_counts[label], 1)), 4) for label in section.labels}
    return Decision("task.class_weights", weights, "rows / (classes x rows of the class), as scikit-learn's balanced")
