"""The `task: text_classification` section of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.data.label_names import LabelNames
from tunesmith.spec import Auto, NamedSection, Pattern, PositiveInt

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


class TextClassificationSpec(NamedSection):
    """A class, several labels or a number for each text."""

    name: str = "text_classification"
    """`text_classification`."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | Auto = "auto"
    """As in transformers: one class a row, several labels a row, or a number; `auto` sees it from the labels."""
    labels: list[str] | Auto = "auto"
    """The classes in the order of their ids; `auto` takes those of the training rows (or of a checkpoint that has the same)."""
    label_names: LabelNames = "none"
    """Names for labels that are ids: a list, a mapping, a file with one name a line (the first is id 0), or `none`."""
    label_separator: str = "auto"
    """What stands between several labels in one cell; `none` when nothing does."""
    label_pattern: Pattern = "none"
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

    @field_validator("label_separator")
    @classmethod
    def _separates(cls, separator: str) -> str:
        if not separator:
            raise ValueError("should be the text between two labels, auto or none")
        return separator
