"""Every architecture goes the whole way: prepared, trained, saved, loaded again; and padding never changes a logit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
import tunesmith
from tunesmith.data.collate import collate_rows
from tunesmith.engines.trainer import fit
from tunesmith.models.load import load_trained
from tunesmith.models.save import save_model
from tunesmith.pipeline import build_job
from tunesmith.prepare import Prepared, prepare
from tunesmith.runs.directory import RunDirectory
from tunesmith.strict import load_spec

KINDS = [*tiny_models.ENCODERS, *tiny_models.DECODERS]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_models.save_tiny(kind, folder / kind) for kind in KINDS}


def spec_for(checkpoint: Path, folder: Path, method: Any) -> dict[str, Any]:
    data = tiny_models.write_jsonl(folder / "rows.jsonl")
    return {
        "task": "text_classification",
        "model": str(checkpoint),
        "data": {"train": str(data)},
        "method": method,
        "train": {"max_steps": 2, "precision": "fp32", "learning_rate": 1e-2},
    }


def logits(model: Any, prepared: Prepared, indices: list[int]) -> torch.Tensor:
    batch = collate_rows(
        prepared.encoded["train"], np.asarray(indices), prepared.task, prepared.spec.task, int(prepared.tokenizer.pad_token_id)
    )
    batch.pop("labels")
    with torch.inference_mode():
        return model.eval()(**batch).logits


def assert_padding_is_not_read(model: Any, prepared: Prepared) -> None:
    lengths = prepared.encoded["train"].lengths
    indices = np.argsort(lengths)[[0, 3, 9, -1]].tolist()
    assert lengths[indices[0]] < lengths[indices[-1]]
    together = logits(model, prepared, indices)
    alone = torch.cat([logits(model, prepared, [index]) for index in indices])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert alone.std(0).max() > 1e-4, "rows that all get the same logits prove nothing"


def train_and_reload(kind: str, checkpoint: Path, folder: Path, method: Any) -> tuple[Prepared, Any, Any]:
    """(what was trained, the model loaded again, the configuration saved)."""
    prepared = prepare(load_spec(spec_for(checkpoint, folder, method)), use_cache=False)
    before = {name: parameter.detach().clone() for name, parameter in prepared.model.named_parameters() if parameter.requires_grad}
    directory = RunDirectory.create(folder / "run", "text_classification")
    outcome = fit(build_job(prepared, directory))
    assert outcome.steps == 2
    trained = dict(prepared.model.named_parameters())
    assert any(not torch.equal(trained[name], value) for name, value in before.items())
    save_model(prepared.model, prepared.tokenizer, prepared.method, directory.model, prepared.files.path, "a card")
    loaded = load_trained(directory.model, prepared.task.auto_model)
    return prepared, loaded, json.loads((directory.model / "config.json").read_text())


def assert_whole(kind: str, prepared: Prepared, loaded: Any, config: dict[str, Any]) -> None:
    some = list(range(8))
    torch.testing.assert_close(logits(loaded, prepared, some), logits(prepared.model, prepared, some), atol=1e-6, rtol=0)
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    assert config["pad_token_id"] == prepared.tokenizer.pad_token_id
    assert_padding_is_not_read(loaded, prepared)


@pytest.mark.parametrize("kind", KINDS)
def test_full(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    prepared, loaded, config = train_and_reload(kind, checkpoints[kind], tmp_path, "full")
    assert all(parameter.requires_grad for parameter in prepared.model.parameters())
    assert_whole(kind, prepared, loaded, config)


@pytest.mark.parametrize("kind", KINDS)
def test_lora(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    prepared, loaded, config = train_and_reload(kind, checkpoints[kind], tmp_path, {"name": "lora", "rank": 2})
    trained = [name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad]
    assert any("lora_B" in name for name in trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert_whole(kind, prepared, loaded, config)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_lora_and_full_train_a_new_layer_inside_the_body(method: str, tmp_path: Path) -> None:
    """A masked language model has no pooler: it is new beside the head, and must be trained and saved with it."""
    checkpoint = tiny_models.save_tiny("bert", tmp_path / "checkpoint", "AutoModelForMaskedLM")
    prepared, loaded, config = train_and_reload("bert", checkpoint, tmp_path, method)
    pooler = [name for name, parameter in prepared.model.named_parameters() if "pooler.dense" in name and parameter.requires_grad]
    assert any("modules_to_save" in name for name in pooler) if method == "lora" else len(pooler) == 2
    assert_whole("bert", prepared, loaded, config)


@pytest.mark.parametrize(("kind", "method"), [("bert", "full"), ("llama", "lora")])
def test_the_whole_pipeline_with_its_proof(kind: str, method: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    run = tunesmith.train(spec_for(checkpoints[kind], tmp_path, method), run=tmp_path / "run", quiet=True)
    proof = json.loads((tmp_path / "run" / "proof.json").read_text())
    assert proof["proven"]
    assert proof["same_tokens"]
    assert run.result["steps"] == 2
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    predicted = run.predict(["the good film", "the dull story of two friends and their long day in town"])
    assert {row["label"] for row in predicted} <= {"bad", "good"}
