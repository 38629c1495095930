"""Answers that a model writes: for the rows of a file, and for some rows of an evaluation, beside what ought to stand there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tunesmith.data.encode import Encoded
from tunesmith.data.rows import Rows
from tunesmith.registry import Task
from tunesmith.runs.progress import Progress
from tunesmith.verbs.prove import spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_ONCE = 64
"""Rows whose answers are written before the next are begun: those of similar length share a batch."""
SHOWN_SAMPLES = 8


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
    from tunesmith.engines.generation import generate

    assert task.prompt is not None
    for start, batch in rows.batches(ROWS_AT_ONCE):
        prompts = [ids for ids, _ in task.prompt(section, batch, tokenizer)]
        for index, written in generate(
            model, tokenizer, prompts, section.generation, precision, first_row=first_row + start, advance=advance
        ):
            row = {"messages": json.loads(batch["messages"][index])} if "messages" in batch else {"text": batch["text"][index]}
            yield start + index, {**row, "answer": written.text, "finished": written.finished, "num_tokens": written.num_tokens}


def score_answers(
    encoded: Encoded,
    task: Task,
    section: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    progress: Progress,
) -> dict[str, Any]:
    """Metrics of written answers over evenly spread rows, the share that ends by itself, and some samples."""
    from tunesmith.engines.generation import generate
    from tunesmith.metrics.generation import ended, score

    assert task.prompt is not None
    indices = spread(len(encoded), section.num_generated)
    batch = encoded.sources(indices)
    prompts = task.prompt(section, batch, tokenizer)
    with progress.activity(f"writing {len(prompts)} answers", len(prompts)) as activity:
        written = dict(generate(model, tokenizer, [ids for ids, _ in prompts], section.generation, precision, advance=activity.advance))
    answers = [written[index] for index in range(len(prompts))]
    references = [reference or "" for _, reference in prompts]
    found = score(section.metrics, [answer.text for answer in answers], references, section.answer_pattern)
    samples = [
        {
            "place": encoded.place(indices[number]),
            "prompt": json.loads(batch["messages"][number])[-2]["content"],
            "reference": references[number],
            "answer": answers[number].text,
            "finished": answers[number].finished,
        }
        for number in spread(len(answers), SHOWN_SAMPLES)
    ]
    stops = ended(answers)
    return {
        "metrics": {**found["metrics"], **stops["metrics"]},
        "intervals": {**found["intervals"], **stops["intervals"]},
        "num_generated": len(answers),
        "samples": samples,
    }
