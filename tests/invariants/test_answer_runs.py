"""Question answering: the trajectory is that of plain Trainer with the model's own loss, whatever cuts the steps; resumed equals straight."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from resumption import resumed_equals_straight
from tiny_questions import questions, write_flat
from trajectories import Trajectory, assert_same_trajectory, by_trainer, by_tunesmith
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20
SETTINGS = [
    "task.max_length=32", "task.stride=8", "data.validation=none", "train.precision=fp32", f"train.max_steps={NUM_STEPS}",
    "train.learning_rate=1e-2", "train.weight_decay=0.01", "train.batch_size=8",
]  # fmt: skip
UNMOVED = ("key.bias", "qa_outputs.bias", "layer.1.output.LayerNorm.bias")
"""What moves all tokens alike moves no share: the gradient is rounding."""


def _prepare(model: Path, tmp_path: Path, *overrides: str) -> Prepared:
    data = write_flat(tmp_path / "rows.jsonl", questions(120, clauses=5))
    return prepare(spec_of(str(data), [f"model={model}", *SETTINGS, *overrides]))


def _plain(prepared: Prepared, folder: Path) -> Trajectory:
    """Plain Trainer with transformers' collator and the loss that the model computes.

    The model's loss would take padding for places where an answer may be: each window is a batch of its own, summed over a step.
    """
    rows = [
        {
            "input_ids": row["input_ids"],
            "token_type_ids": row["token_type_ids"],
            "start_positions": row["labels"][0],
            "end_positions": row["labels"][1],
        }
        for row in prepared.encoded["train"].dataset
    ]
    one_by_one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": prepared.spec.train.batch_size}
    return by_trainer(prepared, folder, rows, transformers.default_data_collator, **one_by_one)


def test_twenty_steps_equal_plain_trainer(still_bert: Path, tmp_path: Path) -> None:
    prepared = _prepare(still_bert, tmp_path, "train.max_tokens_per_micro_batch=64")
    assert max(len(step) for step in prepared.plan.batches(0)) > 3, "steps should be cut for this to say anything"
    assert len(prepared.encoded["train"]) > len(prepared.data.rows["train"])
    assert len(prepared.encoded["train"]) >= NUM_STEPS * 8, "plain Trainer weighs the last step of an epoch otherwise"
    ours = by_tunesmith(prepared, tmp_path / "ours")
    assert_same_trajectory(ours, _plain(_prepare(still_bert, tmp_path), tmp_path / "theirs"), NUM_STEPS, UNMOVED)
    assert ours[0][-1] < ours[0][0]


def test_accumulated_and_cut_equal_one_batch(still_bert: Path, tmp_path: Path) -> None:
    whole = by_tunesmith(_prepare(still_bert, tmp_path, "speed.off=all"), tmp_path / "a")
    settings = ["train.batch_size=2", "train.gradient_accumulation_steps=4", "train.max_tokens_per_micro_batch=32"]
    assert_same_trajectory(by_tunesmith(_prepare(still_bert, tmp_path, *settings), tmp_path / "b"), whole, NUM_STEPS, UNMOVED)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resumed_equals_straight(still_bert: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_flat(tmp_path / "rows.jsonl", questions(60, clauses=5))
    settings = [
        f"model={still_bert}", f"method={method}", "task.max_length=32", "task.stride=8", "data.validation=20%", "train.precision=fp32",
        "train.epochs=1", "train.batch_size=8", "train.learning_rate=5e-3", "train.save_steps=3", "train.eval_steps=3", "train.logging_steps=1",
    ]  # fmt: skip
    _, log = resumed_equals_straight(data, settings, tmp_path, monkeypatch, crash_after=5)
    assert any("eval_f1" in entry for entry in log)
