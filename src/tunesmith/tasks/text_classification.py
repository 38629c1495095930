"""Text classification: one of several classes, several labels, or a number, for a text or a pair of texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.data.text import shorten
from tunesmith.errors import InputError, Problem, did_you_mean, nearest
from tunesmith.metrics.classification import ClassMeter, MultiLabelMeter, RegressionMeter
from tunesmith.registry import Decision, Meter, Role, Task
from tunesmith.spec import Auto, NamedSection, PositiveInt
from tunesmith.strict import near_file

if TYPE_CHECKING:
    import torch

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SEPARATORS = (",", ";", "|")
NUM_BINS = 10


class TextClassificationSpec(NamedSection):
    """A class, several labels or a number for each text."""

    name: str = "text_classification"
    """`text_classification`."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | Auto = "auto"
    """As in transformers: one class a row, several labels a row, or a number; `auto` sees it from the labels."""
    labels: list[str] | Auto = "auto"
    """The classes in the order of their ids; `auto` takes those of the training rows (or of a checkpoint that has the same)."""
    label_names: dict[str, str] | list[str] | str = "none"
    """Names for labels that are ids: a list, a mapping, a file with one name a line (the first is id 0), or `none`."""
    label_separator: str = "auto"
    """What stands between several labels in one cell; `none` when nothing does."""
    label_pattern: str = "none"
    """A regular expression that cuts the label out of its cell: its first group, or all it matches from the start."""
    class_weights: dict[str, Annotated[float, Field(gt=0)]] | Literal["none"] | Auto = "none"
    """Weight of each class in the loss; `auto` weighs classes (or, with several labels, positives) by how rare they are."""
    max_length: PositiveInt | Auto = "auto"
    """Tokens after which a text is cut."""

    @field_validator("labels")
    @classmethod
    def _are_classes(cls, labels: Any, info: Any) -> Any:
        if labels == "auto" or info.data.get("problem_type") == REGRESSION:
            return labels
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"should be different classes, and {', '.join(twice)} is said twice")
        if len(labels) < 2 or not all(label.strip() for label in labels):
            raise ValueError("should be two classes or more, none of them empty")
        return labels

    @field_validator("label_names")
    @classmethod
    def _are_names(cls, names: Any) -> Any:
        check_names(names if isinstance(names, list) else list(names.values()) if isinstance(names, dict) else ["one", "two"])
        return names

    @field_validator("label_pattern")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"should be a regular expression of Python: {error}") from None
        return pattern

    @field_validator("label_separator")
    @classmethod
    def _separates(cls, separator: str) -> str:
        if not separator:
            raise ValueError("should be the text between two labels, auto or none")
        return separator


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError when these cannot be the names of classes."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"should be different names, and {', '.join(twice)} is said twice")
    if len(names) < 2 or not all(name.strip() for name in names):
        raise ValueError("should be two names or more, none of them empty")


def recognise(preview: Any) -> str | None:
    """Any rows with a text and a label are text classification."""
    return "rows with a text and a label"


# What becomes of each `auto`


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
    fix = "a file with one name a line, in UTF-8; or the names themselves: [first, second]"
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        near = near_file(path)
        problem, found = "the file of label names cannot be read", f"{path}: {getattr(error, 'strerror', None) or error}"
        raise InputError("data.no_such_file", problem, where="task.label_names", found=found, fix=f"{near}; or {fix}") from None
    try:
        names = [name.strip() for name in content.decode("utf-8-sig").splitlines() if name.strip()]
        check_names(names)
    except UnicodeDecodeError as error:
        where = f"{path.name}:{content.count(bytes([10]), 0, error.start) + 1}"
        found = f"byte 0x{content[error.start]:02x}"
        raise InputError(
            "data.encoding", "the file of label names is not UTF-8", where=where, found=found, fix="save it as UTF-8"
        ) from None
    except ValueError as error:
        raise InputError("spec.value", f"the file of label names {error}", where=path.name, fix=fix) from None
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
    numbers = [number for cell in counts if (number := _number(cell[0])) is not None]
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
    return _take(section, decisions, "problem_type", SINGLE, f"{len(counts)} different labels, one a row")


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
    number = _number(label)
    return (1, 0.0, label) if number is None else (0, number, label)


def _decide_weights(section: TextClassificationSpec, label_counts: Counter[str], num_rows: int) -> Decision:
    if section.problem_type == MULTI:
        weights = {label: round((num_rows - label_counts[label]) / max(label_counts[label], 1), 4) for label in section.labels}
        return Decision("task.class_weights", weights, "rows without the label / rows with it, for positives")
    weights = {label: round(num_rows / (len(section.labels) * max(label_counts[label], 1)), 4) for label in section.labels}
    return Decision("task.class_weights", weights, "rows / (classes x rows of the class), as scikit-learn's balanced")


def misspelt(label: str, label_counts: Counter[str]) -> str | None:
    """The common label that a rare one looks like, or None."""
    count = label_counts[label]
    for other, other_count in label_counts.items():
        if other != label and other.strip().casefold() == label.strip().casefold() and (other_count, other) > (count, label):
            return other
    common = [other for other, other_count in label_counts.items() if other_count >= 10 * count]
    if count > 3 or not common or len(label) < 4 or _number(label) is not None:
        return None
    match = nearest(label, common)
    return match if match is not None and _edits(label, match) <= (1 if len(label) < 8 else 2) else None


def _edits(first: str, second: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(second) + 1))
    for index, letter in enumerate(first, 1):
        previous, row[0] = row[0], index
        for column, other in enumerate(second, 1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (letter != other))
    return row[-1]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# Rows


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
    number = _number(cell[0]) if len(cell) == 1 else None
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


def encode(section: TextClassificationSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """input_ids, token_type_ids where there are two texts, labels, and full_length (tokens before the cut)."""
    texts, pairs = batch["text"], batch.get("pair")
    tokens = tokenizer(texts, pairs, truncation=False, padding=False, verbose=False)
    names = ["input_ids"] + (["token_type_ids"] if pairs is not None and "token_type_ids" in tokens else [])
    columns: dict[str, list[Any]] = {name: list(tokens[name]) for name in names}
    columns["full_length"] = [len(ids) for ids in columns["input_ids"]]
    for row, length in enumerate(columns["full_length"]):
        if length > max_length:
            cut = tokenizer(texts[row], pairs[row] if pairs is not None else None, truncation=True, max_length=max_length, padding=False)
            for name in names:
                columns[name][row] = list(cut[name])
    if "label" in batch:
        columns["labels"] = [encode_label(section, cell) for cell in batch["label"]]
    return columns


def encode_label(section: TextClassificationSpec, cell: Sequence[str]) -> Any:
    """A class id, a list of 0 and 1 for each label, or a number."""
    if section.problem_type == REGRESSION:
        return float(cell[0])
    ids = [section.labels.index(label) for label in cell_labels(section, cell) or ()]
    if section.problem_type == SINGLE:
        return ids[0]
    return [int(index in ids) for index in range(len(section.labels))]


# The model


def head(section: TextClassificationSpec) -> dict[str, Any]:
    """Size, kind and label names of the classification head."""
    if section.problem_type == REGRESSION:
        return {"num_labels": 1, "problem_type": REGRESSION}
    names = dict(enumerate(section.labels))
    return {
        "num_labels": len(names),
        "problem_type": section.problem_type,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }


def label_tensor(section: TextClassificationSpec, labels: Sequence[Any]) -> torch.Tensor:
    """Class ids [batch], or 0 and 1 as floats [batch, labels], or numbers [batch]."""
    import torch

    return torch.tensor(labels, dtype=torch.long if section.problem_type == SINGLE else torch.float32)


def weights_of(section: TextClassificationSpec) -> torch.Tensor | None:
    """Class weights [classes] in fp32, or None."""
    import torch

    return torch.tensor([section.class_weights[label] for label in section.labels]) if isinstance(section.class_weights, dict) else None


def loss(section: TextClassificationSpec, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Sum over the batch of cross-entropy, of binary cross-entropy averaged over labels, or of squared error; in fp32."""
    import torch.nn.functional as F  # noqa: N812

    logits = logits.float()
    weights = weights_of(section)
    weights = weights.to(logits.device) if weights is not None else None
    if section.problem_type == SINGLE:
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="sum")
    if section.problem_type == MULTI:
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="sum") / logits.shape[-1]
    return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


def loss_weight(section: TextClassificationSpec, labels: Sequence[Any]) -> float:
    """The number of rows, or the sum of their class weights (as torch's weighted mean divides)."""
    weights = weights_of(section)
    if section.problem_type != SINGLE or weights is None:
        return float(len(labels))
    return float(weights[list(labels)].sum())


def meter(section: TextClassificationSpec, thresholds: Sequence[float] | None = None) -> Meter:
    """A meter of the kind of problem; thresholds are for several labels."""
    if section.problem_type == REGRESSION:
        return RegressionMeter()
    return ClassMeter(section.labels) if section.problem_type == SINGLE else MultiLabelMeter(section.labels, thresholds)


def metrics(section: TextClassificationSpec) -> dict[str, bool]:
    """What each kind of problem reports, and whether greater is better."""
    names = {
        SINGLE: ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc"),
        MULTI: ("micro_f1", "macro_f1", "weighted_f1", "subset_accuracy", "lrap"),
        REGRESSION: ("spearman", "pearson", "mae", "rmse"),
    }[str(section.problem_type)]
    return {name: name not in ("mae", "rmse") for name in names}


def outputs(section: TextClassificationSpec, logits: torch.Tensor, tuned: dict[str, Any]) -> list[dict[str, Any]]:
    """`{label, score, scores}`, `{labels, scores}` or `{value}` for each row of logits [batch, outputs]."""
    logits = logits.float()
    if section.problem_type == REGRESSION:
        return [{"value": value} for value in logits.flatten().tolist()]
    names = list(section.labels)
    if section.problem_type == SINGLE:
        rows = logits.softmax(-1).tolist()
        best = logits.argmax(-1).tolist()
        return [
            {"label": names[index], "score": row[index], "scores": dict(zip(names, row, strict=True))}
            for index, row in zip(best, rows, strict=True)
        ]
    thresholds = tuned.get("thresholds") or [0.5] * len(names)
    scored = [dict(zip(names, row, strict=True)) for row in logits.sigmoid().tolist()]
    return [
        {"labels": [name for name, limit in zip(names, thresholds, strict=True) if row[name] >= limit], "scores": row} for row in scored
    ]


TEXT_NAMES = (
    "text",
    "sentence",
    "sentence1",
    "review",
    "reviews",
    "content",
    "document",
    "message",
    "tweet",
    "comment",
    "body",
    "sms",
    "premise",
    "question",
    "question1",
    "utterance",
    "sentences",
)
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "category",
    "categories",
    "target",
    "sentiment",
    "stars",
    "rating",
    "intent",
    "topic",
    "emotion",
    "emotions",
    "score",
    "similarity",
    "quality",
    "y",
    "is_duplicate",
)

TEXT_CLASSIFICATION = Task(
    name="text_classification",
    summary="a class, several labels or a number for a text or a pair of texts",
    spec=TextClassificationSpec,
    roles=(
        Role("text", "text", known_names=TEXT_NAMES),
        Role("pair", "text", required=False, known_names=("pair", "text_pair", "sentence2", "hypothesis", "question2")),
        Role("label", "label", known_names=LABEL_NAMES),
    ),
    default_model="minilm",
    auto_model="AutoModelForSequenceClassification",
    peft_task_type="SEQ_CLS",
    recognise=recognise,
    decide=decide,
    lint=lint,
    target=encode_label,
    stratify=stratify,
    head=head,
    encode=encode,
    label_tensor=label_tensor,
    loss=loss,
    loss_weight=loss_weight,
    meter=meter,
    metrics=metrics,
    outputs=outputs,
)
