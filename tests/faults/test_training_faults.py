"""What goes wrong while training ends with a code, what was found, and all that was done kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunesmith
from tiny_models import write_jsonl
from tunesmith.engines.trainer import PlannedTrainer

SETTINGS = ["train.batch_size=8", "train.epochs=2", "train.precision=fp32"]


def test_a_loss_that_is_no_number_names_step_and_rows(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    with pytest.raises(tunesmith.RunError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS, "train.learning_rate=1e30"], run=tmp_path / "run", quiet=True)
    problem = caught.value.problems[0]
    assert problem.code == "run.non_finite"
    assert problem.where.startswith("step ")
    assert "rows.jsonl:" in problem.found
    assert "learning_rate" in problem.fix
    assert caught.value.exit_code == 1


def test_no_memory_says_what_to_lower(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*arguments: Any) -> Any:
        torch.empty(1 << 55)

    monkeypatch.setattr(PlannedTrainer, "training_step", too_much)
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    with pytest.raises(tunesmith.RunError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS], run=tmp_path / "run", quiet=True)
    assert caught.value.code == "run.out_of_memory"
    assert "max_tokens_per_micro_batch" in str(caught.value)


def test_a_model_that_was_saved_wrong_fails_the_run(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.models import save

    original = save.save_model

    def damaging(model: Any, tokenizer: Any, method: Any, folder: Path, base: Path, card: str) -> None:
        original(model, tokenizer, method, folder, base, card)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.bias"] += 0.001
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(save, "save_model", damaging)
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    with pytest.raises(tunesmith.RunError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS], run=tmp_path / "run", quiet=True)
    assert caught.value.code == "run.proof"
    assert "logits differ" in str(caught.value)
    proof = json.loads((tmp_path / "run" / "proof.json").read_text())
    assert not proof["proven"]
    assert proof["largest_logit_difference"] == pytest.approx(0.001, rel=1e-2)
    assert not (tmp_path / "run" / "result.json").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/manifest.json"))
