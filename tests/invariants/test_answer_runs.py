"""Question answering: the trajectory is that of plain Trainer with the model's own loss, whatever cuts the steps; resumed equals straight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from resumption import resumed_equals_straight
from tiny_models import save_tiny
from tiny_questions import questions, write_flat
from trajectories import Losses, PlainTrainer, Trajectory, by_tunesmith
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20
SETTINGS = [
    "task.max_length=32", "task.stride=8", "data.validation=none", "train.precision=fp32", f"train.max_steps={NUM_STEPS}",
    "train.learning_rate=1e-2", "train.weight_decay=0.01", "train.batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def still_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without dropout, whose draws depend on the shape of a batch."""
    folder = save_tiny("bert", tmp_path_factory.mktemp("models") / "bert")
    model = transformers.AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder)
    return folder


def _prepare(model: Path, tmp_path: Path, *overrides: str) -> Prepared:
    data = write_flat(tmp_path / "rows.jsonl", questions(120, clauses=5))
    return prepare(spec_of(str(data), [f"model={model}", *SETTINGS, *overrides]))


def _plain(prepared: Prepared, folder: Path) -> Trajectory:
    """Plain Trainer with transformers' collator and the loss that the model computes.

    The model's loss would take padding for places where an answer may be: each window is a batch of its own, summed over a step.
    """
    losses, train = Losses(), prepared.spec.train
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=NUM_STEPS, per_device_train_batch_size=1, gradient_accumulation_steps=train.batch_size,
        learning_rate=float(train.learning_rate), weight_decay=train.weight_decay, seed=train.seed, logging_steps=1, save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    rows = [
        {
            "input_ids": row["input_ids"],
            "token_type_ids": row["token_type_ids"],
            "start_positions": row["labels"][0],
            "end_positions": row["labels"][1],
        }
        for row in prepared.encoded["train"].dataset
    ]
    plain = PlainTrainer(
        prepared.model, arguments, train_dataset=rows, data_collator=transformers.default_data_collator, callbacks=[losses]
    )
    plain.plan = prepared.plan
    plain.train()
    return losses.values, {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}


def _assert_same(ours: Trajectory, theirs: Trajectory) -> None:
    assert len(ours[0]) == len(theirs[0]) == NUM_STEPS
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-4)
    for name, tensor in theirs[1].items():
        # What moves all tokens alike moves no share: its gradient is rounding, which Adam takes for a direction.
        if name.endswith(("key.bias", "qa_outputs.bias", "layer.1.output.LayerNorm.bias")):
            continue
        torch.testing.assert_close(ours[1][name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_twenty_steps_equal_plain_trainer(still_bert: Path, tmp_path: Path) -> None:
    prepared = _prepare(still_bert, tmp_path, "train.max_tokens_per_micro_batch=64")
    assert max(len(step) for step in prepared.plan.batches(0)) > 3, "steps should be cut for this to say anything"
    assert len(prepared.encoded["train"]) > len(prepared.data.rows["train"])
    assert len(prepared.encoded["train"]) >= NUM_STEPS * 8, "plain Trainer weighs the last step of an epoch otherwise"
    ours = by_tunesmith(prepared, tmp_path / "ours")
    _assert_same(ours, _plain(_prepare(still_bert, tmp_path), tmp_path / "theirs"))
    assert ours[0][-1] < ours[0][0]


def test_accumulated_and_cut_equal_one_batch(still_bert: Path, tmp_path: Path) -> None:
    whole = by_tunesmith(_prepare(still_bert, tmp_path, "speed.off=all"), tmp_path / "a")
    settings = ["train.batch_size=2", "train.gradient_accumulation_steps=4", "train.max_tokens_per_micro_batch=32"]
    _assert_same(by_tunesmith(_prepare(still_bert, tmp_path, *settings), tmp_path / "b"), whole)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resumed_equals_straight(still_bert: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_flat(tmp_path / "rows.jsonl", questions(60, clauses=5))
    settings = [
        f"model={still_bert}", f"method={method}", "task.max_length=32", "task.stride=8", "data.validation=20%", "train.precision=fp32",
        "train.epochs=1", "train.batch_size=8", "train.learning_rate=5e-3", "train.save_steps=3", "train.eval_steps=3", "train.logging_steps=1",
    ]  # fmt: skip
    _, log = resumed_equals_straight(data, settings, tmp_path, monkeypatch, crash_after=5)
    assert any("eval_f1" in entry for entry in log)
