"""The engine beside a bare loop and plain Trainer, without accelerations, so that what is measured is what surrounds the model.

Once a BERT of 2 layers x 32 with random weights, which takes next to no time, and once MiniLM, the smallest real model; 8 short sentences
a step, fp32. The bare loop does what a step cannot do without: fetch, pad, forward, backward, clip, AdamW. All take the same steps in
turn, padded alike, in one process; milliseconds are medians of all steps but the first 20.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.synthetic import tiny_model, write_sentences
from tunesmith.data.collate import LENGTH_MULTIPLE

BATCH_SIZE = 8
WARM_UP_STEPS = 20


class _Times(transformers.TrainerCallback):  # type: ignore[misc]
    """The time of the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def spec_of(folder: Path, steps: int, model: str = "tiny") -> dict[str, Any]:
    """A run of so many steps with nothing between them."""
    train = {
        "batch_size": BATCH_SIZE, "max_steps": steps, "logging_steps": steps, "eval_steps": "none", "save_steps": "none",
        "load_best_model_at_end": False, "precision": "fp32",
    }  # fmt: skip
    data = {"root": str(folder), "train": "rows.jsonl", "validation": "none"}
    model = str(folder / "model") if model == "tiny" else model
    return {"task": "text_classification", "model": model, "method": "full", "data": data, "train": train, "speed": {"off": "all"}}


def engine_ends(prepared: Any, folder: Path) -> list[float]:
    """Ends of the engine's steps."""
    from tunesmith.engines.trainer import fit
    from tunesmith.pipeline import build_job
    from tunesmith.runs.directory import RunDirectory

    job = build_job(prepared, RunDirectory.create(folder, "overhead"))
    times = _Times()
    job.callbacks.append(times)
    fit(job)
    return times.ends


def bare_ends(model: Any, rows: list[dict[str, Any]], pad_token_id: int, steps: int) -> list[float]:
    """Ends of a bare loop's steps over the same rows in the same order."""
    from bench.peers.given import collate

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    model.train()
    ends = []
    for step in range(steps):
        batch = collate(rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE], pad_token_id, LENGTH_MULTIPLE)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return ends


def trainer_ends(model: Any, rows: list[dict[str, Any]], pad_token_id: int, steps: int, folder: Path) -> list[float]:
    """Ends of plain Trainer's steps over the same rows in the same order."""
    from bench.peers.given import collate

    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH_SIZE, max_steps=steps, learning_rate=2e-5, train_sampling_strategy="sequential",
        logging_steps=steps, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    times = _Times()
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, data_collator=lambda batch: collate(batch, pad_token_id, LENGTH_MULTIPLE), callbacks=[times]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return times.ends


def step_milliseconds(ends: list[float]) -> list[float]:
    """Milliseconds of each step after the first few."""
    return [(after - before) * 1e3 for before, after in zip(ends[WARM_UP_STEPS:], ends[WARM_UP_STEPS + 1 :], strict=False)]


def measure(model: str, steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a step of all three, and their ratios turn by turn."""
    import tunesmith
    from tunesmith.models.load import load_model
    from tunesmith.prepare import prepare

    turns = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        tiny_model(folder / "model")
        write_sentences(folder / "rows.jsonl", steps * BATCH_SIZE, num_words=12)
        for repeat in range(repeats):
            prepared = prepare(tunesmith.load_spec(spec_of(folder, steps, model)), use_cache=False)
            columns = prepared.encoded["train"].dataset[[int(row) for row in prepared.plan.order(0)]]
            rows = [
                dict(zip(("input_ids", "labels"), values, strict=True))
                for values in zip(columns["input_ids"], columns["labels"], strict=True)
            ]
            pad_token_id = int(prepared.tokenizer.pad_token_id or 0)

            def fresh(prepared: Any = prepared) -> Any:
                return load_model(prepared.files.path, prepared.task, prepared.task.head(prepared.spec.task), 0).model

            ways = {
                "engine": partial(engine_ends, prepared, folder / f"run-{repeat}"),
                "trainer": partial(trainer_ends, fresh(), rows, pad_token_id, steps, folder / f"trainer-{repeat}"),
                "bare": partial(bare_ends, fresh(), rows, pad_token_id, steps),
            }
            order = [list(ways)[(repeat + place) % len(ways)] for place in range(len(ways))]  # nobody is always the first
            turns.append({name: statistics.median(step_milliseconds(ways[name]())) for name in order})
    ratios = {name: [turn[name] / turn["bare"] for turn in turns] for name in ("engine", "trainer")}
    return {"model": model, "ratios": ratios, "turns": turns}


def main(arguments: Any) -> None:
    """`python -m bench overhead`."""
    transformers.logging.set_verbosity_error()
    print("| model | bare loop, ms a step | engine | plain Trainer |\n|---|---|---|---|")
    found = []
    for model in ("tiny", "minilm"):
        found.append(measure(model, arguments.steps, arguments.repeats))
        cells = [model, f"{statistics.median(turn['bare'] for turn in found[-1]['turns']):.2f}"]
        for name, ratios in found[-1]["ratios"].items():
            milliseconds = statistics.median(turn[name] for turn in found[-1]["turns"])
            cells.append(f"{milliseconds:.2f}, {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2))
