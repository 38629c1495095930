"""Sequence to sequence: an encoder-decoder makes one text of another: summaries, translations, answers."""

from __future__ import annotations

from tunesmith.metrics.language_model import TokenMeter
from tunesmith.registry import Task
from tunesmith.tasks.seq2seq.learning import (
    answered,
    decide,
    encode,
    fit_tokenizer,
    forward,
    label_tensor,
    loss_weight,
    metrics,
    prompt,
    settle,
    source,
)
from tunesmith.tasks.seq2seq.rows import ROLES, decide_reading, read, read_input, recognise, remarks
from tunesmith.tasks.seq2seq.section import Seq2SeqSpec

SEQ2SEQ = Task(
    name="seq2seq",
    summary="one text becomes another: summaries, translations",
    spec=Seq2SeqSpec,
    roles=ROLES,
    default_model="t5",
    auto_model="AutoModelForSeq2SeqLM",
    peft_task_type="SEQ_2_SEQ_LM",
    recognise=recognise,
    canonical={"text": "text", "label": "texts"},
    read=read,
    read_input=read_input,
    decide_reading=decide_reading,
    decide=decide,
    remarks=remarks,
    lint=lambda section, batch: (),
    target=lambda section, cell: None,
    units=lambda cell: (),
    distribution=lambda section, counts: {},
    stratify=lambda section, cells: (["row"] * len(cells), False),
    head=lambda section: {},
    tokenizer_columns=("text", "label"),
    fit_tokenizer=fit_tokenizer,
    encode=encode,
    carried=("full_label_length",),
    label_tensor=label_tensor,
    forward=forward,
    loss=lambda section, outputs, labels, label_smoothing: outputs.loss,
    loss_weight=loss_weight,
    meter=lambda section: TokenMeter(first=0),
    metrics=metrics,
    prompt=prompt,
    answered=answered,
    settle=settle,
    source=source,
    writes_target=True,
)
