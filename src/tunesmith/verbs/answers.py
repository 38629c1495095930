"""Answers that a model writes for the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.encode import Encoded
from tunesmith.data.rows import Rows
from tunesmith.registry import Task
from tunesmith.runs.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_ONCE = 64
"""Rows whose answers are written before the next are begun: those of similar length share a batch."""


def answer_rows(
    rows: Rows,
    task: Task,
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    first_row: int = 0,
    advance: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, its prediction) pairs, as answers are finished; `first_row` is the number of the first, which draws depend on."""
    from tunesmith.engines.answers import write_answers

    assert task.prompt is not None
    answered = task.answered or _answered
    for start, batch in rows.batches(ROWS_AT_ONCE):
        prompts = [ids for ids, _ in task.prompt(section, batch, tokenizer)]
        whole = list(map(len, prompts))
        if task.writes_target:  # a source may be cut; what is written on from is not
            sources = {name: values for name, values in batch.items() if name != "label"}
            whole = task.encode(section, sources, tokenizer, max(whole))["full_length"]
        for index, written in write_answers(task, section, model, tokenizer, prompts, precision, first_row + start, advance):
            answer = answered(section, {name: values[index] for name, values in batch.items()}, written)
            yield start + index, {**answer, **cut_tokens(whole[index] - len(prompts[index]))}


def cut_tokens(number: int) -> dict[str, int]:
    """What a prediction says of tokens that the model did not read; nothing when it read them all."""
    return {"cut_tokens": int(number)} if number else {}


def with_answers(
    result: dict[str, Any],
    encoded: Encoded,
    task: Task,
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    progress: Progress,
) -> dict[str, Any]:
    """An evaluation, with the metrics and samples of the answers that the section asks for."""
    from tunesmith.engines.answers import score_answers

    num_rows = len(np.unique(encoded.row)) if section.num_generated == "all" else min(section.num_generated, len(encoded))
    with progress.activity(f"writing {num_rows} answers", num_rows) as activity:
        written = score_answers(encoded, task, section, model, tokenizer, precision, section.num_generated, advance=activity.advance)
    metrics, intervals = ({**written.pop(name), **result[name]} for name in ("metrics", "intervals"))
    return {**result, "metrics": metrics, "intervals": intervals, **written}


def _answered(section: Any, row: dict[str, Any], written: Any) -> dict[str, Any]:
    said = {"messages": json.loads(row["messages"])} if "messages" in row else {"text": row["text"]}
    return {**said, "answer": written.text, "finished": written.finished, "num_tokens": written.num_tokens}
