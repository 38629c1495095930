"""Tokens a second and memory as the data grows: more rows, then longer ones, with a model so small that handling the data shows.

Each size is a process of its own: `tunesmith.train` on synthetic rows, a fixed number of steps. Preparing (reading, checking, encoding)
is timed apart from training, without the cache.
"""

from __future__ import annotations

import json
import os
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
    return {
        "prepare_seconds": started - began,
        "step_seconds": (ends[-1] - ends[WARM_UP_STEPS - 1]) / (len(ends) - WARM_UP_STEPS),
        "trained": ends[-1],
    }


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
    print("| rows | tokens at most | file, MB | rows prepared/s | ms a step | tokens/s | peak MB |\n|---|---|---|---|---|---|---|")
    found = []
    for num_rows, num_tokens in sizes:
        one = measure(num_rows, num_tokens, min(arguments.steps, num_rows // BATCH_SIZE))
        found.append(one)
        start = f"| {num_rows:,} | {num_tokens:,} | {one['megabytes']:.1f} |"
        if "error" in one:
            print(f"{start} failed: {one['error']} | | | |", flush=True)
            continue
        print(
            f"{start} {one['rows_prepared_per_second']:,.0f} | {one['step_seconds'] * 1e3:.1f} | {one['tokens_per_second']:,.0f} | {one['peak_mb']:,.0f} |",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    print(json.dumps(child(Path(sys.argv[1]), int(sys.argv[2]))))
