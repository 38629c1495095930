"""Tokens a second and memory as the data grows: more rows, then longer ones, with a model so small that handling the data shows.

Each run is a process of its own: `tunesmith.train` on synthetic rows, a fixed number of steps. Sizes take turns, so that a machine that
changes changes for all. Preparing (reading, checking, encoding) is timed apart from training, without the cache.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.compare import ENVIRONMENT, WARM_UP_STEPS
from bench.processes import run_watched
from bench.synthetic import LONGEST, tiny_model, write_sentences

ROWS_OF_LENGTHS = 1_000
WORDS_OF_ROWS = 16
BATCH_SIZE = 32
SPECIAL_TOKENS = 5
"""[CLS], [SEP] and the three words that number a row."""
WINDOW = 9
"""Steps that are timed together: the log tells milliseconds, and a step may take four."""


def child(folder: Path, steps: int) -> dict[str, Any]:
    """Prepares and trains, in this process."""
    import tunesmith

    train = {
        "batch_size": BATCH_SIZE, "max_steps": steps, "logging_steps": 1, "eval_steps": "none", "save_steps": "none", "load_best_model_at_end": False,
    }  # fmt: skip
    data = {"root": str(folder), "train": "rows.jsonl", "validation": "none"}
    spec = {
        "task": {"name": "text_classification", "max_length": LONGEST}, "model": str(folder / "model"), "method": "full", "data": data,
        "train": train,
    }  # fmt: skip
    began = time.time()
    run = tunesmith.train(spec, run=folder / "run", use_cache=False, quiet=True)
    events = run.directory.events()
    started = next(event["time"] for event in events if event["event"] == "start")
    ends = [event["time"] for event in events if event["event"] == "log" and "loss" in event]
    return {"prepare_seconds": started - began, "step_seconds": step_seconds(ends), "trained": ends[-1]}


def step_seconds(ends: list[float]) -> float:
    """Seconds a step after the first few: the median over windows, or the mean where there are too few steps for one."""
    size = min(WINDOW, len(ends) - WARM_UP_STEPS)
    marks = ends[WARM_UP_STEPS - 1 :: size]
    return statistics.median((after - before) / size for before, after in itertools.pairwise(marks))


def measure(num_rows: int, num_tokens: int, steps: int) -> dict[str, Any]:
    """One size: rows of half to all of `num_tokens` tokens."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        tiny_model(folder / "model")
        write_sentences(folder / "rows.jsonl", num_rows, num_tokens - SPECIAL_TOKENS)
        command = [sys.executable, "-m", "bench.growth", name, str(steps)]
        log = folder / "log.txt"
        watched = run_watched(command, ENVIRONMENT, Path(os.getcwd()), 24 * 3600, log)
        size = {"rows": num_rows, "tokens": num_tokens, "megabytes": (folder / "rows.jsonl").stat().st_size / 1e6}
        if watched.returncode:
            return {**size, "error": watched.error}
        found = json.loads(log.read_text().splitlines()[-1])
    mean_tokens = num_tokens - (num_tokens - SPECIAL_TOKENS) // 4
    return {
        **size, **found, "tokens_per_second": BATCH_SIZE * mean_tokens / found["step_seconds"],
        "rows_prepared_per_second": num_rows / found["prepare_seconds"], "peak_mb": watched.peak_bytes(found["trained"]) / 1e6,
    }  # fmt: skip


def main(arguments: Any) -> None:
    """`python -m bench growth`."""
    sizes = [(rows, WORDS_OF_ROWS) for rows in arguments.rows] + [(ROWS_OF_LENGTHS, length) for length in arguments.lengths]
    turns: list[list[dict[str, Any]]] = [[] for _ in sizes]
    for repeat in range(arguments.repeats):
        for size, found in zip(sizes, turns, strict=True):
            num_rows, num_tokens = size
            found.append(measure(num_rows, num_tokens, min(arguments.steps, num_rows // BATCH_SIZE)))
            shown = found[-1].get("error") or f"{found[-1]['step_seconds'] * 1e3:.2f} ms a step"
            print(f"{num_rows:,} rows of up to {num_tokens:,} tokens  {repeat + 1}/{arguments.repeats}  {shown}", flush=True)
    print("| rows | tokens at most | file, MB | rows prepared/s | ms a step | tokens/s | peak MB |\n|---|---|---|---|---|---|---|")
    for found in turns:
        print(f"| {' | '.join(cells_of(found))} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(turns, indent=2))


def cells_of(turns: list[dict[str, Any]]) -> list[str]:
    """A size's row of the table: the median over turns, and the range of a step's time."""
    size = [f"{turns[0]['rows']:,}", f"{turns[0]['tokens']:,}", f"{turns[0]['megabytes']:.1f}"]
    errors = [turn["error"] for turn in turns if "error" in turn]
    if errors:
        return [*size, f"failed: {errors[0]}", "", "", ""]
    middle = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    times = [turn["step_seconds"] * 1e3 for turn in turns]
    span = f"{middle['step_seconds'] * 1e3:.2f} ({min(times):.2f} to {max(times):.2f})"
    return [*size, f"{middle['rows_prepared_per_second']:,.0f}", span, f"{middle['tokens_per_second']:,.0f}", f"{middle['peak_mb']:,.0f}"]


if __name__ == "__main__":
    print(json.dumps(child(Path(sys.argv[1]), int(sys.argv[2]))))
