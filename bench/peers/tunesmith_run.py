"""tunesmith itself, by its public functions: `train` for training and probes, `open_run` and `predict_file` for prediction."""

from __future__ import annotations

import json
import time

import tunesmith
from bench.peers.given import Given, read_request
from bench.peers.record import Record


def main() -> None:
    """Runs as asked."""
    given, record = read_request(), Record()
    (predict if given.kind == "predict" else train)(given, record)
    record.write(given.out)


def train(given: Given, record: Record) -> None:
    """Trains, and reads what the run wrote down."""
    run = tunesmith.train(json.loads((given.folder / "spec.json").read_text()), run=given.scratch / "run", quiet=True)
    events = run.directory.events()
    record.started = next(event["time"] for event in events if event["event"] == "start")
    record.metrics = run.metrics
    if given.kind == "probe":
        record.step_ends = [record.started + run.result["fit_seconds"]]
        return
    for event in events:
        if event["event"] == "log" and "loss" in event:
            record.step_ends.append(event["time"])
            record.losses.append(event["loss"])
    lengths = [len(row["input_ids"]) for row in given.rows()]
    record.tokens = [sum(lengths[start : start + given.batch_size]) for start in range(0, len(lengths), given.batch_size)]


def predict(given: Given, record: Record) -> None:
    """Predicts the rows, after a first few."""
    run = tunesmith.open_run(given.folder / "run")
    list(run.predict_file(str(given.folder / "first.jsonl"), quiet=True))
    record.start()
    predicted = list(run.predict_file(str(given.folder / "texts.jsonl"), quiet=True))
    record.step_ends = [time.time()]
    labels = [row["label"] for row in given.rows("rows_texts")]
    record.metrics = {"accuracy": sum(row["label"] == label for row, label in zip(predicted, labels, strict=True)) / len(labels)}


if __name__ == "__main__":
    main()
