"""Question answering: the answer to a question, as a span of its context."""

from __future__ import annotations

from tunesmith.registry import Task
from tunesmith.tasks.question_answering.card import usage
from tunesmith.tasks.question_answering.learning import (
    CARRIED,
    decide,
    decide_tokens,
    encode,
    fit_tokenizer,
    forward,
    head,
    label_tensor,
    learnt,
    loss,
    loss_weight,
    source,
    target,
)
from tunesmith.tasks.question_answering.predictions import WindowMeter, join, metrics, outputs
from tunesmith.tasks.question_answering.rows import ROLES, lint, read, read_input, recognise, stratify, units
from tunesmith.tasks.question_answering.section import QuestionAnsweringSpec

QUESTION_ANSWERING = Task(
    name="question_answering",
    summary="the answer to a question, as a span of its context",
    spec=QuestionAnsweringSpec,
    roles=ROLES,
    default_model="minilm",
    auto_model="AutoModelForQuestionAnswering",
    peft_task_type=None,  # PEFT has QUESTION_ANS, but its model leaves out token_type_ids (0.21.2)
    recognise=recognise,
    canonical={"question": "text", "context": "text", "id": "text", "label": "labels"},
    read=read,
    read_input=read_input,
    decide=decide,
    decide_tokens=decide_tokens,
    lint=lint,
    target=target,
    units=units,
    stratify=stratify,
    together=("context",),
    head=head,
    fit_tokenizer=fit_tokenizer,
    encode=encode,
    carried=CARRIED,
    label_tensor=label_tensor,
    forward=forward,
    loss=loss,
    loss_weight=loss_weight,
    meter=WindowMeter,
    metrics=metrics,
    outputs=outputs,
    join=join,
    learnt=learnt,
    source=source,
    usage=usage,
)
