"""Text classification: one of several classes, several labels, or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunesmith.data.cells import read_cells
from tunesmith.registry import Fault, Role, Task
from tunesmith.tasks.text_classification.cells import lint, stratify
from tunesmith.tasks.text_classification.decisions import decide
from tunesmith.tasks.text_classification.learning import (
    encode,
    encode_label,
    fit_tokenizer,
    forward,
    head,
    label_tensor,
    loss,
    loss_weight,
    meter,
    metrics,
    outputs,
)
from tunesmith.tasks.text_classification.section import TextClassificationSpec


def recognise(opened: Any) -> str | None:
    """Any rows with two columns may be a text and its label."""
    return "rows with a text and a label" if len(opened.names) > 1 else None


CANONICAL = {"text": "text", "pair": "text", "label": "labels"}


def read(section: TextClassificationSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """Text, pair and label of a row."""
    return read_cells(CANONICAL, columns, row)


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
    canonical=CANONICAL,
    read=read,
    decide=decide,
    lint=lint,
    target=encode_label,
    stratify=stratify,
    head=head,
    fit_tokenizer=fit_tokenizer,
    encode=encode,
    label_tensor=label_tensor,
    forward=forward,
    loss=loss,
    loss_weight=loss_weight,
    meter=meter,
    metrics=metrics,
    outputs=outputs,
)
