"""Resumed equals straight for language models under every method: the same bits, log and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumption import resumed_equals_straight
from tiny_conversations import save_chat_model, write_conversations, write_prose
from tiny_models import save_tiny
from tunesmith.native.products import has_products

SETTINGS = [
    "data.validation=20%", "train.precision=fp32", "train.epochs=2", "train.batch_size=4", "train.gradient_accumulation_steps=2",
    "train.learning_rate=5e-3", "train.save_steps=3", "train.eval_steps=3", "train.logging_steps=1", "train.save_total_limit=none",
]  # fmt: skip
CRASH_AFTER_STEP = 5
LORA = ["task=chat", "method.rank=4", "method.dropout=0.1"]


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
    run, log = resumed_equals_straight(data, settings, tmp_path, monkeypatch, CRASH_AFTER_STEP)
    event = next(event for event in run.directory.events() if event["event"] == "resume")
    assert event["checkpoint"] == "checkpoint-3", "in the middle of an epoch"
    assert (run.directory.model / "adapter_model.safetensors").is_file() == ("lora" in str(overrides))
    assert sum("eval_loss" in entry for entry in log) > 1


@pytest.mark.skipif(not has_products(), reason="no compiled products here")
def test_features_that_were_kept_come_again_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has none of the features that the straight one kept, and computes them in other steps."""
    data = write_conversations(tmp_path / "rows.jsonl", 50)
    model = save_chat_model(tmp_path / "model", hidden_size=512, intermediate_size=512, head_dim=128)
    bf16 = [setting.replace("fp32", "bf16").replace("epochs=2", "epochs=3") for setting in SETTINGS]
    settings = [f"model={model}", *bf16, "task=chat", "method=freeze", "method.num_blocks=1"]
    run, _ = resumed_equals_straight(data, settings, tmp_path, monkeypatch, crash_after=8)
    decisions = {decision["field"]: decision for decision in run.directory.read_json("decisions.json")}
    assert decisions["speed.frozen_features"]["value"], decisions["speed.frozen_features"]["because"]
    event = next(event for event in run.directory.events() if event["event"] == "resume")
    assert event["checkpoint"] == "checkpoint-6", "in the second epoch"
