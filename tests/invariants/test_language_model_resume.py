"""Resumed equals straight for language models under every method: the same bits, log and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import tunesmith
from tiny_conversations import save_chat_model, write_conversations, write_prose
from tiny_models import save_tiny
from tunesmith import pipeline
from tunesmith.engines import trainer

SETTINGS = [
    "data.validation=20%", "train.precision=fp32", "train.epochs=2", "train.batch_size=4", "train.gradient_accumulation_steps=2",
    "train.learning_rate=5e-3", "train.save_steps=3", "train.eval_steps=3", "train.logging_steps=1", "train.save_total_limit=none",
]  # fmt: skip
CRASH_AFTER_STEP = 5
LORA = ["task=chat", "method.rank=4", "method.dropout=0.1"]


@pytest.fixture(autouse=True)
def without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process of the proof takes seconds; these tests compare files."""
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})


class _Crash(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == CRASH_AFTER_STEP:
            raise RuntimeError("pulled the plug")


def _crashed(data: Path, settings: list[str], run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    original = trainer.PlannedTrainer.__init__

    def with_crash(self: Any, job: Any) -> None:
        job.callbacks.append(_Crash())
        original(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PlannedTrainer, "__init__", with_crash)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            tunesmith.train(str(data), settings, run=run, quiet=True)
    return run


def _assert_same_tensors(expected: Any, found: Any) -> int:
    """Compares nested values to the bit; returns the number of tensors."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found)
        return 1
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        return sum(_assert_same_tensors(value, found[key]) for key, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return sum(_assert_same_tensors(one, other) for one, other in zip(expected, found, strict=True))
    assert expected == found
    return 0


@pytest.mark.parametrize(
    "overrides",
    [
        [*LORA, "method=lora"],
        [*LORA, "method=qlora", "method.bits=4"],
        [*LORA, "method=qlora", "method.bits=8"],
        ["task=chat", "method=freeze", "method.num_blocks=1"],
        ["task=chat", "method=full", "train.pack=true", "train.max_tokens_per_micro_batch=150"],
        ["task=causal_lm", "method=full", "task.max_length=24"],
        ["task=masked_lm", "method=full", "task.max_length=24"],
    ],
    ids=["lora", "qlora-4", "qlora-8", "freeze", "full-packed", "causal_lm", "masked_lm"],
)
def test_resumed_equals_straight(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_chat = "task=chat" in overrides
    data = write_conversations(tmp_path / "rows.jsonl", 50) if is_chat else write_prose(tmp_path / "prose.txt", 2200)
    is_masked = "task=masked_lm" in overrides
    model = (
        save_tiny("bert", tmp_path / "model", "AutoModelForMaskedLM")
        if is_masked
        else save_chat_model(tmp_path / "model", attention_dropout=0.1)
    )
    settings = [f"model={model}", *SETTINGS, *overrides, *([] if is_chat else ["train.max_steps=9"])]
    straight = tunesmith.train(str(data), settings, run=tmp_path / "straight", quiet=True).path
    stopped = _crashed(data, settings, tmp_path / "stopped", monkeypatch)
    resumed = pipeline.resume(stopped, quiet=True)
    event = next(event for event in resumed.directory.events() if event["event"] == "resume")
    assert event["checkpoint"] == "checkpoint-3", "in the middle of an epoch"
    weights = [path.name for path in (straight / "model").glob("*.safetensors")]
    assert weights == ["adapter_model.safetensors" if "lora" in str(overrides) else "model.safetensors"]
    assert _assert_same_tensors(load_file(straight / "model" / weights[0]), load_file(resumed.path / "model" / weights[0])) > 4
    checkpoints = sorted((path for path in (straight / "checkpoints").iterdir()), key=lambda path: int(path.name.rpartition("-")[2]))
    last = checkpoints[-1]
    assert int(last.name.rpartition("-")[2]) > CRASH_AFTER_STEP
    state = [torch.load(folder / "checkpoints" / last.name / "optimizer.pt", weights_only=True) for folder in (straight, resumed.path)]
    assert _assert_same_tensors(*state) > 4
    logs = [json.loads((folder / "checkpoints" / last.name / "trainer_state.json").read_text()) for folder in (straight, resumed.path)]
    assert logs[0]["log_history"] == logs[1]["log_history"]
    assert sum("eval_loss" in entry for entry in logs[0]["log_history"]) > 1
    results = [json.loads((folder / "eval/validation.json").read_text()) for folder in (straight, resumed.path)]
    assert results[0] == results[1]
    assert results[0]["metrics"]["loss"] > 0
