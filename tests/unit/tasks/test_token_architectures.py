"""Every architecture learns to tag words and to answer: trained, saved, loaded again; and padding never changes what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny_models
from tiny_questions import questions, write_flat
from tiny_tags import write_conll
from tunesmith.data.collate import collate_rows
from tunesmith.engines.trainer import fit
from tunesmith.models.load import load_trained
from tunesmith.models.save import save_model
from tunesmith.pipeline import build_job
from tunesmith.prepare import Prepared, prepare
from tunesmith.runs.directory import RunDirectory
from tunesmith.strict import load_spec

KINDS = [*tiny_models.ENCODERS, *tiny_models.DECODERS]
TAGGING = {"name": "token_classification", "max_length": 24, "stride": 4}
ANSWERING = {"name": "question_answering", "max_length": 40, "stride": 8}
CASES = [
    *((TAGGING, kind) for kind in KINDS),
    *((ANSWERING, kind) for kind in (*tiny_models.ENCODERS, "gpt2", "llama", "qwen2", "qwen3", "mistral")),
]
LABELS = {
    "token_classification": {0: "O", 1: "B-blame", 2: "I-blame", 3: "B-praise", 4: "I-praise"},
    "question_answering": {0: "start", 1: "end"},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_models.save_tiny(kind, folder / kind) for kind in KINDS}


def prepared_run(task: dict[str, Any], checkpoint: Path, folder: Path, method: Any) -> Prepared:
    data = write_conll(folder / "rows.conll", 30) if task is TAGGING else write_flat(folder / "rows.jsonl", questions(30, clauses=7))
    spec = {
        "task": task,
        "model": str(checkpoint),
        "data": {"train": str(data), "validation": "none"},
        "method": method,
        "train": {"max_steps": 2, "precision": "fp32", "learning_rate": 1e-2},
    }
    return prepare(load_spec(spec), use_cache=False)


def logits(model: Any, prepared: Prepared, indices: list[int]) -> list[torch.Tensor]:
    """Logits [tokens, tags; or start and end] of each example, those of padding left out."""
    encoded = prepared.encoded["train"]
    batch = collate_rows(encoded, np.asarray(indices), prepared.task, prepared.spec.task, int(prepared.tokenizer.pad_token_id))
    labels = batch.pop("labels")
    with torch.inference_mode():
        computed = prepared.task.forward(prepared.spec.task, model.eval(), batch, labels)
    if prepared.task.name == "question_answering":
        assert (computed.isinf() == (batch["attention_mask"] == 0)[..., None]).all()
    return [row[: encoded.lengths[index]] for row, index in zip(computed, indices, strict=True)]


@pytest.mark.parametrize(("task", "kind"), CASES, ids=lambda value: value if isinstance(value, str) else str(value["name"]))
@pytest.mark.parametrize(
    "method", ["full", {"name": "lora", "rank": 2}, {"name": "freeze", "num_blocks": 1}], ids=["full", "lora", "freeze"]
)
def test_trained_saved_and_loaded_again(task: dict[str, Any], kind: str, method: Any, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    prepared = prepared_run(task, checkpoints[kind], tmp_path, method)
    before = {name: parameter.detach().clone() for name, parameter in prepared.model.named_parameters() if parameter.requires_grad}
    directory = RunDirectory.create(tmp_path / "run", prepared.task.name)
    assert fit(build_job(prepared, directory)).steps == 2
    trained = dict(prepared.model.named_parameters())
    heads = [name for name in before if {"classifier", "score", "qa_outputs"} & set(name.split("."))]
    assert any(not torch.equal(trained[name], before[name]) for name in heads)
    save_model(prepared.model, prepared.tokenizer, prepared.method, directory.model, prepared.files.path, "a card")
    loaded = load_trained(directory.model, prepared.task.auto_model)
    lengths = prepared.encoded["train"].lengths
    indices = np.argsort(lengths)[[0, 5, -1]].tolist()
    assert lengths[indices[0]] < lengths[indices[-1]]
    together = logits(prepared.model, prepared, indices)
    for index, expected in zip(indices, together, strict=True):
        torch.testing.assert_close(logits(loaded, prepared, [index])[0], expected, atol=1e-5, rtol=0)
    assert torch.cat(together).std(0).max() > 1e-4, "tokens that all get the same logits prove nothing"
    config = transformers.AutoConfig.from_pretrained(directory.model)
    assert config.id2label.items() >= LABELS[prepared.task.name].items()
