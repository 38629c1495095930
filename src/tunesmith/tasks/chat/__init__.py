"""Chat: a language model learns the assistant's answers in conversations."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from tunesmith.models.language_model import LANGUAGE_MODEL
from tunesmith.models.load import require_package
from tunesmith.registry import Decision, Task
from tunesmith.tasks.chat import conversations
from tunesmith.tasks.chat.conversations import ROLES, read
from tunesmith.tasks.chat.encoding import encode, prompt
from tunesmith.tasks.chat.section import ChatSpec
from tunesmith.tasks.chat.template import fit_template


def recognise(opened: Any) -> str | None:
    """Rows that hold conversations in one of their known shapes."""
    return conversations.recognise(opened.names, opened.sample)


def decide(section: ChatSpec, facts: Any) -> list[Decision]:
    """The shape of the rows. Raises InputError when a metric needs what is not installed."""
    for metric, package in (("rouge", "rouge_score"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu")):
        if metric in section.metrics:
            require_package(package, "eval")
    shape = conversations.shape_of(facts.names, facts.sample, facts.columns)
    return [Decision("shape of the conversations", shape, conversations.SHAPES[shape])] if shape in conversations.SHAPES else []


CHAT = Task(
    name="chat",
    summary="the assistant's answers in conversations",
    spec=ChatSpec,
    roles=ROLES,
    recognise=recognise,
    canonical={"messages": "json"},
    read=read,
    read_input=partial(read, needs_answer=False),
    decide=decide,
    fit_tokenizer=fit_template,
    encode=encode,
    prompt=prompt,
    source=lambda section, row, tokenizer: {"messages": json.loads(row["messages"])},
    **LANGUAGE_MODEL,
)
