"""Answers that a model writes for rows, and how they compare with what ought to stand there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.encode import Encoded
from tunesmith.data.split import spread
from tunesmith.engines.beams import write_targets
from tunesmith.engines.generation import Generated, generate
from tunesmith.metrics.generation import ended, score
from tunesmith.registry import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOWN_SAMPLES = 8


def write_answers(
    task: Task,
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    precision: str,
    first_row: int = 0,
    advance: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[int, Generated]]:
    """(index of the prompt, its answer), as the task's section says, in the order in which they are finished."""
    if task.writes_target:
        return write_targets(model, tokenizer, prompts, section.generation, precision, advance=advance)
    return generate(model, tokenizer, prompts, section.generation, precision, first_row=first_row, advance=advance)


def score_answers(
    encoded: Encoded,
    task: Task,
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    num_rows: int | str,
    intervals: bool = True,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Metrics of written answers over so many evenly spread rows (or `all`), the share that ends by itself, and some samples."""
    assert task.prompt is not None
    firsts = np.flatnonzero(np.diff(encoded.row, prepend=-1))
    indices = firsts if num_rows == "all" else firsts[spread(len(firsts), int(num_rows))]
    batch = encoded.sources(indices)
    prompts = task.prompt(section, batch, tokenizer)
    written = dict(write_answers(task, section, model, tokenizer, [ids for ids, _ in prompts], precision, advance=advance))
    answers = [written[index] for index in range(len(prompts))]
    references = [reference or "" for _, reference in prompts]
    pattern = getattr(section, "answer_pattern", "none")
    found = score(section.metrics, [answer.text for answer in answers], references, pattern, intervals)
    stops = ended(answers)
    samples = [
        {
            "place": encoded.place(indices[number]),
            "prompt": asked({name: values[number] for name, values in batch.items()}),
            "reference": " | ".join(references[number]) if isinstance(references[number], list) else references[number],
            "answer": answers[number].text,
            "finished": answers[number].finished,
        }
        for number in spread(len(answers), SHOWN_SAMPLES)
    ]
    return {
        "metrics": {**found["metrics"], **stops["metrics"]},
        "intervals": {**found["intervals"], **stops["intervals"]},
        "num_generated": len(answers),
        "samples": samples,
    }


def asked(row: dict[str, Any]) -> str:
    """What a canonical row asks for."""
    if "messages" in row:
        return str(json.loads(row["messages"])[-2]["content"])
    return str(row["text"])
