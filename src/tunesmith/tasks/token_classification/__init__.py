"""Token classification: a tag for each word, such as named entities or parts of speech."""

from __future__ import annotations

from tunesmith.registry import Task
from tunesmith.tasks.token_classification.learning import (
    CARRIED,
    encode,
    fit_tokenizer,
    forward,
    label_tensor,
    loss,
    loss_weight,
    meter,
    metrics,
    source,
)
from tunesmith.tasks.token_classification.predictions import join, outputs
from tunesmith.tasks.token_classification.rows import ROLES, read, read_input, recognise
from tunesmith.tasks.token_classification.section import TokenClassificationSpec
from tunesmith.tasks.token_classification.tags import decide, distribution, head, lint, stratify, target, units

TOKEN_CLASSIFICATION = Task(
    name="token_classification",
    summary="a tag for each word: named entities, parts of speech",
    spec=TokenClassificationSpec,
    roles=ROLES,
    default_model="minilm",
    auto_model="AutoModelForTokenClassification",
    peft_task_type="TOKEN_CLS",
    recognise=recognise,
    canonical={"words": "texts", "source_text": "text", "label": "labels"},
    read=read,
    read_input=read_input,
    decide=decide,
    lint=lint,
    target=target,
    units=units,
    distribution=distribution,
    stratify=stratify,
    head=head,
    fit_tokenizer=fit_tokenizer,
    encode=encode,
    carried=CARRIED,
    label_tensor=label_tensor,
    forward=forward,
    loss=loss,
    loss_weight=loss_weight,
    meter=meter,
    metrics=metrics,
    outputs=outputs,
    join=join,
    source=source,
    per_token=True,
)
