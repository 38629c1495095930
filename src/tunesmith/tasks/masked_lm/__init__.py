"""Masked language modelling: an encoder learns to say which tokens were hidden in a text."""

from __future__ import annotations

from tunesmith.data.blocks import CANONICAL, TEXT_ROLE, read_running_text
from tunesmith.metrics.language_model import METRICS, TokenMeter
from tunesmith.models.language_model import label_tensor
from tunesmith.registry import Task
from tunesmith.tasks.masked_lm.learning import (
    candidates,
    decide,
    encode,
    encode_input,
    fit_tokenizer,
    forward,
    loss_weight,
    outputs,
    regroup,
    to_text,
)
from tunesmith.tasks.masked_lm.masking import draw
from tunesmith.tasks.masked_lm.section import MaskedLMSpec

MASKED_LM = Task(
    name="masked_lm",
    summary="the tokens that were hidden in a text",
    spec=MaskedLMSpec,
    roles=(TEXT_ROLE,),
    default_model="minilm",
    auto_model="AutoModelForMaskedLM",
    peft_task_type=None,
    recognise=lambda opened: None,
    canonical=CANONICAL,
    read=read_running_text,
    decide=decide,
    lint=lambda section, batch: (),
    target=lambda section, cell: None,
    stratify=lambda section, cells: (["row"] * len(cells), False),
    head=lambda section: {},
    fit_tokenizer=fit_tokenizer,
    encode=encode,
    regroup=regroup,
    draw=draw,
    label_tensor=label_tensor,
    forward=forward,
    loss=lambda section, outputs, labels, label_smoothing: outputs.loss,
    loss_weight=loss_weight,
    meter=lambda section: TokenMeter(first=0),
    metrics=lambda section: METRICS,
    outputs=outputs,
    to_text=to_text,
    for_prediction={"encode": encode_input, "regroup": None, "draw": None, "forward": candidates, "running_text": False},
    running_text=True,
    per_token=True,
)
