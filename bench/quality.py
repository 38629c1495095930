"""Quality beside plain scripts: the same model, rows, hyper-parameters and seeds, each trained by tunesmith and by a script.

    python -m bench.quality examples/sst2.yaml --seeds 0 1 2 --out quality.jsonl data.root=FOLDER

A plain script (`bench/plain.py`) is what one would write by hand: `Trainer`, padded batches in random order or, with
`--order group_by_length`, of similar lengths, and the model's own loss. Both keep the best epoch by the same validation metric. One JSON
object a run is appended to --out; `--table FILE` prints what was gathered.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from bench.plain import train_plain
from tunesmith.pipeline import build_job, run_job
from tunesmith.prepare import prepare
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.progress import Progress
from tunesmith.verbs.init import spec_of

SIDES = ("plain Trainer", "tunesmith")


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of training alone: epochs, without what is evaluated and saved between them; those of all threads are what the work costs
    on a machine that has other work too."""

    def __init__(self) -> None:
        self.seconds = {"training_seconds": 0.0, "training_cpu_seconds": 0.0}

    def _add(self, sign: int) -> None:
        for name, clock in (("training_seconds", time.perf_counter), ("training_cpu_seconds", time.process_time)):
            self.seconds[name] += sign * clock()

    def on_epoch_begin(self, *arguments: Any, **others: Any) -> None:
        self._add(-1)

    def on_epoch_end(self, *arguments: Any, **others: Any) -> None:
        self._add(1)


def run(spec_path: str, overrides: list[str], seed: int, order: str) -> Iterator[dict[str, Any]]:
    """One seed, by each side as it is done; the plain script draws its rows in `order`."""
    spec = spec_of(spec_path, [*overrides, f"train.seed={seed}"])
    for by in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            start, clock = time.perf_counter(), Clock()
            if by == "tunesmith":
                directory = RunDirectory.create(f"{folder}/run", spec.task.name)
                prepared = prepare(spec)
                job = build_job(prepared, directory)
                job.callbacks.append(clock)
                metrics = run_job(job, prepared, directory, Progress(quiet=True)).result["validation"]
            else:
                prepared = prepare(spec)
                metrics = train_plain(prepared, folder, order, [clock])
            seconds = {**clock.seconds, "seconds": time.perf_counter() - start}
        known = {"spec": Path(spec_path).stem, "seed": seed, "settings": overrides, "order": order, "by": by}
        best_by = prepared.spec.train.metric_for_best_model
        yield {**known, "best_by": best_by, "metrics": metrics, **{name: round(value, 1) for name, value in seconds.items()}}


def print_table(path: str) -> None:
    """Mean and range over seeds, and mean processor seconds of training, as Markdown."""
    runs = [json.loads(line) for line in Path(path).read_text().splitlines()]
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for item in runs:
        groups[item["spec"], item["best_by"]][item["by"]].append(item)
    print(f"| spec | metric | seeds | {' | '.join(SIDES)} | processor seconds of training |\n|---|---|---|---|---|---|")
    for (spec, metric), sides in groups.items():
        shown, seconds = [], []
        for by in SIDES:
            found = [item["metrics"][metric] for item in sides[by]]
            shown.append(f"{statistics.mean(found):.4f} ({min(found):.4f}-{max(found):.4f})")
            seconds.append(f"{statistics.mean(item['training_cpu_seconds'] for item in sides[by]):.0f}")
        print(f"| {spec} | {metric} | {len(found)} | {' | '.join(shown)} | {', '.join(seconds)} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--order", choices=("random", "group_by_length"), default="random", help="of the plain script's rows")
    parser.add_argument("--out", default="quality.jsonl")
    parser.add_argument("--table", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    if arguments.table:
        print_table(arguments.table)
        return
    transformers.logging.set_verbosity_error()
    for seed in arguments.seeds:
        for result in run(arguments.spec, arguments.overrides, seed, arguments.order):
            with Path(arguments.out).open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                result["spec"],
                result["by"],
                seed,
                result["metrics"][result["best_by"]],
                f"{result['training_cpu_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
