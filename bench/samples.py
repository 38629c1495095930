"""A work as plain files that every peer can read: token ids, labels and their order, as tunesmith encodes and draws them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tunesmith
from bench.works import Work
from tunesmith.models.load import load_model
from tunesmith.prepare import Prepared, prepare

WARM_ROWS = 64
PREDICTING_STEPS = 30
"""Steps that the model for prediction is trained."""


def prepare_work(work: Work, data: Path, steps: int, folder: Path) -> dict[str, Any]:
    """Writes the work into a folder of its own, anew; returns what work.json says.

    Raises SystemExit when the data has fewer rows than the steps need.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = work.spec_of(data, steps if work.kind == "train" else PREDICTING_STEPS)
    prepared = prepare(tunesmith.load_spec(spec if work.kind == "train" else {**spec, "method": "full"}))
    encoded = prepared.encoded["train"]
    if steps * work.batch_size > len(encoded):
        raise SystemExit(f"{work.name}: the data has {len(encoded)} rows, so --steps is at most {len(encoded) // work.batch_size}")
    order = prepared.plan.order(0)[: steps * work.batch_size]
    _write(folder / "rows.jsonl", _rows(prepared, "train", order))
    _write(folder / "held.jsonl", _rows(prepared, "validation", range(len(prepared.encoded["validation"]))))
    section: Any = prepared.spec.task
    head = prepared.task.head(section)
    load_model(prepared.files.path, prepared.task, head, prepared.spec.train.seed).model.save_pretrained(folder / "model")
    prepared.tokenizer.save_pretrained(folder / "model")
    _write_spec(work, spec, folder)
    settings = {
        "name": work.name, "kind": work.kind, "per_token": work.per_token, "steps": steps, "batch_size": work.batch_size,
        "micro_batches": work.micro_batches, "learning_rate": work.spec["train"]["learning_rate"], "seed": prepared.spec.train.seed,
        "pad_token_id": prepared.tokenizer.pad_token_id, "max_length": section.max_length, "lora": _lora(prepared),
        "bf16": prepared.spec.train.precision == "bf16",
        "trainable": sum(parameter.numel() for parameter in prepared.model.parameters() if parameter.requires_grad),
        "sentence_transformer": str(prepared.files.path),
    }  # fmt: skip
    (folder / "work.json").write_text(json.dumps(settings, indent=2))
    return settings


def _rows(prepared: Prepared, split: str, indices: Iterable[Any]) -> Iterable[dict[str, Any]]:
    encoded = prepared.encoded[split]
    chosen = [int(index) for index in indices]
    columns = encoded.dataset[chosen]
    texts = encoded.sources(chosen) if not prepared.task.per_token else {}
    for index in range(len(chosen)):
        row = {"input_ids": list(columns["input_ids"][index]), "labels": columns["labels"][index]}
        yield {**row, "text": texts["text"][index], "label": texts["label"][index][0]} if texts else row


def _lora(prepared: Prepared) -> dict[str, Any] | None:
    """The adapters, in peft's words."""
    method: Any = prepared.spec.method
    if method.name != "lora":
        return None
    return {"r": method.rank, "lora_alpha": method.alpha, "lora_dropout": method.dropout, "target_modules": list(method.target_modules)}


def _write_spec(work: Work, spec: dict[str, Any], folder: Path) -> None:
    """spec.json, over files of just these rows where the work is not to train; for prediction, a run that can predict."""
    if work.kind != "train":
        for name in ("rows", "held"):
            rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
            _write(folder / f"{name}_texts.jsonl", ({"text": row["text"], "label": row["label"]} for row in rows))
        files = {"root": str(folder.absolute()), "train": "rows_texts.jsonl", "validation": "held_texts.jsonl"}
        spec = {**spec, "data": files}
    if work.kind == "predict":
        texts = [{"text": json.loads(line)["text"]} for line in (folder / "rows_texts.jsonl").read_text().splitlines()]
        _write(folder / "texts.jsonl", texts)
        _write(folder / "first.jsonl", texts[:WARM_ROWS])
        tunesmith.train(spec, run=folder / "run", quiet=True)
    if work.kind == "probe":  # its fit takes no steps
        del spec["train"]
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
