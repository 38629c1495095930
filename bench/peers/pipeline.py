"""transformers.pipeline: as it ships (fp32, a row at a time), and tuned (bf16 where that is faster, batches of rows of similar length)."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from bench.peers.given import read_request
from bench.peers.record import Record


def main() -> None:
    """Predicts as asked."""
    given, record = read_request(), Record()
    rows = given.rows("rows_texts")
    texts = [row["text"] for row in rows]
    settings: dict[str, Any] = {"batch_size": given.batch_size} if given.is_tuned else {}
    if given.is_tuned_to_bf16:
        settings["dtype"] = torch.bfloat16
    classify = transformers.pipeline("text-classification", str(given.folder / "run" / "model"), device="cpu", **settings)
    classify(texts[: given.batch_size])
    record.start()
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index])) if given.is_tuned else range(len(texts))
    found = classify([texts[index] for index in order])
    record.step_ends = [time.time()]
    right = sum(prediction["label"] == rows[index]["label"] for index, prediction in zip(order, found, strict=True))
    record.metrics = {"accuracy": right / len(rows)}
    record.write(given.out)


if __name__ == "__main__":
    main()
