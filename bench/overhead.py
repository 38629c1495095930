"""The engine beside a bare loop, on a model so small that what is measured is what surrounds it.

A BERT of 2 layers x 32 with random weights, 8 sentences a step, fp32. The bare loop does what a step cannot do without: fetch, pad,
forward, backward, clip, AdamW. Both take the same steps in turn, in one process; milliseconds are medians of all steps but the first 20.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.synthetic import tiny_model, write_sentences

BATCH_SIZE = 8
WARM_UP_STEPS = 20


class _Times(transformers.TrainerCallback):  # type: ignore[misc]
    """The time of the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def spec_of(folder: Path, steps: int, off: bool = False) -> dict[str, Any]:
    """A run of so many steps with nothing between them."""
    train = {
        "batch_size": BATCH_SIZE, "max_steps": steps, "logging_steps": steps, "eval_steps": "none", "save_steps": "none",
        "load_best_model_at_end": False, "precision": "fp32",
    }  # fmt: skip
    data = {"root": str(folder), "train": "rows.jsonl", "validation": "none"}
    return {"task": "text_classification", "model": str(folder / "model"), "method": "full", "data": data, "train": train}


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
        batch = collate(rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE], pad_token_id)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return ends


def step_milliseconds(ends: list[float]) -> list[float]:
    """Milliseconds of each step after the first few."""
    return [(after - before) * 1e3 for before, after in zip(ends[WARM_UP_STEPS:], ends[WARM_UP_STEPS + 1 :], strict=False)]


def measure(steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a step of both, and their ratio turn by turn."""
    import tunesmith
    from tunesmith.models.load import load_model
    from tunesmith.prepare import prepare

    turns = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        tiny_model(folder / "model")
        write_sentences(folder / "rows.jsonl", steps * BATCH_SIZE, num_words=12)
        for repeat in range(repeats):
            prepared = prepare(tunesmith.load_spec(spec_of(folder, steps)), use_cache=False)
            columns = prepared.encoded["train"].dataset[[int(row) for row in prepared.plan.order(0)]]
            rows = [
                dict(zip(("input_ids", "labels"), values, strict=True))
                for values in zip(columns["input_ids"], columns["labels"], strict=True)
            ]
            plain = load_model(prepared.files.path, prepared.task, prepared.task.head(prepared.spec.task), 0).model
            engine = statistics.median(step_milliseconds(engine_ends(prepared, folder / f"run-{repeat}")))
            bare = statistics.median(step_milliseconds(bare_ends(plain, rows, int(prepared.tokenizer.pad_token_id or 0), steps)))
            turns.append({"engine_ms": engine, "bare_ms": bare, "ratio": engine / bare})
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    return {
        **medians,
        "least_ratio": min(turn["ratio"] for turn in turns),
        "most_ratio": max(turn["ratio"] for turn in turns),
        "turns": turns,
    }


def main(arguments: Any) -> None:
    """`python -m bench overhead`."""
    transformers.logging.set_verbosity_error()
    found = measure(arguments.steps, arguments.repeats)
    print("| engine, ms a step | bare loop, ms a step | ratio |\n|---|---|---|")
    print(
        f"| {found['engine_ms']:.2f} | {found['bare_ms']:.2f} | {found['ratio']:.2f} ({found['least_ratio']:.2f} to {found['most_ratio']:.2f}) |"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2))
