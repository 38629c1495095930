"""Embedding: a vector for each text, for search, clustering and the similarity of sentences."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.registry import Task
from tunesmith.tasks.embedding.decisions import decide
from tunesmith.tasks.embedding.folder import LOADER, finish, fit_tokenizer
from tunesmith.tasks.embedding.learning import (
    encode,
    encode_label,
    forward,
    label_tensor,
    loss,
    loss_weight,
    meter,
    metrics,
    outputs,
    whole_step,
)
from tunesmith.tasks.embedding.rows import CANONICAL, INPUT, PAIR, ROLES, TEXT, apart, lint, read, read_input, recognise, stratify
from tunesmith.tasks.embedding.section import EmbeddingSpec


def head(section: EmbeddingSpec) -> dict[str, object]:
    """There is no head: hidden states are pooled."""
    return {}


EMBEDDING = Task(
    name="embedding",
    summary="a vector for each text, near those of texts that mean the same",
    spec=EmbeddingSpec,
    roles=ROLES,
    default_model="minilm",
    auto_model="AutoModel",
    peft_task_type="FEATURE_EXTRACTION",
    recognise=recognise,
    canonical=CANONICAL,
    read=read,
    read_input=read_input,
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
    whole_step=whole_step,
    apart=apart,
    meter=meter,
    metrics=metrics,
    outputs=outputs,
    for_prediction={"roles": (TEXT, replace(PAIR, required=False)), "canonical": INPUT},
    loader=LOADER,
    finish=finish,
)
