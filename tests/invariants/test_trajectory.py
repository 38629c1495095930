"""Cutting a step into micro-batches changes nothing: the trajectory is that of plain Trainer on the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tiny_models import write_jsonl
from trajectories import Losses, PlainTrainer, Trajectory, by_tunesmith
from tunesmith.data.collate import collate_rows
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20


@pytest.fixture
def still_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """The tiny BERT without dropout, whose draws depend on the shape of a batch."""
    folder = tmp_path / "still-bert"
    model = transformers.AutoModel.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


def _prepare(model: Path, tmp_path: Path, *overrides: str) -> Prepared:
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=180)
    settings = [
        "data.validation=none",
        "train.precision=fp32",
        f"train.max_steps={NUM_STEPS}",
        "train.learning_rate=1e-2",
        "train.batch_size=16",
    ]
    return prepare(spec_of(str(data), [f"model={model}", *settings, "train.weight_decay=0.01", "train.warmup_steps=3", *overrides]))


def _plain(prepared: Prepared, folder: Path, accumulation: int = 1) -> Trajectory:
    losses, encoded, train = Losses(), prepared.encoded["train"], prepared.spec.train
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=NUM_STEPS, per_device_train_batch_size=train.batch_size, gradient_accumulation_steps=accumulation,
        learning_rate=float(train.learning_rate), weight_decay=train.weight_decay, warmup_steps=int(train.warmup_steps), seed=train.seed,
        logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        return collate_rows(encoded, np.asarray(indices), prepared.task, prepared.spec.task, int(prepared.tokenizer.pad_token_id))

    trainer = PlainTrainer(prepared.model, arguments, train_dataset=list(range(len(encoded))), data_collator=collate, callbacks=[losses])
    trainer.plan = prepared.plan
    # Left alone, it sums the mean losses of a classifier's batches: four times the gradient with four batches a step.
    trainer.loss_is_scaled_for_ga = False
    trainer.train()
    return losses.values, {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}


def _assert_same(ours: Trajectory, theirs: Trajectory) -> None:
    # fp32 sums in another order differ in the seventh digit, and twenty steps of AdamW carry that on.
    assert len(ours[0]) == len(theirs[0]) == NUM_STEPS
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-4)
    for name, tensor in theirs[1].items():
        torch.testing.assert_close(ours[1][name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_twenty_steps_equal_plain_trainer(still_bert: Path, tmp_path: Path, method: str) -> None:
    settings = [f"method={method}", "train.max_tokens_per_micro_batch=48"] + (["method.dropout=0.0"] if method == "lora" else [])
    prepared = _prepare(still_bert, tmp_path, *settings)
    assert max(len(step) for step in prepared.plan.batches(0)) > 3, "steps should be cut for this to say anything"
    ours = by_tunesmith(prepared, tmp_path / "ours")
    theirs = _plain(_prepare(still_bert, tmp_path, *settings), tmp_path / "theirs")
    _assert_same(ours, theirs)
    assert ours[0][-1] < ours[0][0]


def test_accumulated_equals_one_batch(still_bert: Path, tmp_path: Path) -> None:
    accumulated = by_tunesmith(_prepare(still_bert, tmp_path, "train.batch_size=4", "train.gradient_accumulation_steps=4"), tmp_path / "a")
    whole = by_tunesmith(_prepare(still_bert, tmp_path), tmp_path / "b")
    assert accumulated[0] == whole[0]
    for name, tensor in whole[1].items():
        assert torch.equal(accumulated[1][name], tensor), name


def test_accumulation_equals_plain_trainers(still_bert: Path, tmp_path: Path) -> None:
    # 180 rows and 16 a step leave a last step of 4: one batch instead of four.
    settings = ["train.batch_size=4", "train.gradient_accumulation_steps=4"]
    ours = by_tunesmith(_prepare(still_bert, tmp_path, *settings), tmp_path / "ours")
    theirs = _plain(_prepare(still_bert, tmp_path, *settings), tmp_path / "theirs", accumulation=4)
    _assert_same(ours, theirs)


@pytest.mark.parametrize("weights", ["none", "auto"])
def test_micro_batch_bound_changes_nothing(still_bert: Path, tmp_path: Path, weights: str) -> None:
    settings = [f"task.class_weights={weights}"]
    small = by_tunesmith(_prepare(still_bert, tmp_path, *settings, "train.max_tokens_per_micro_batch=16"), tmp_path / "a")
    large = by_tunesmith(_prepare(still_bert, tmp_path, *settings, "train.max_tokens_per_micro_batch=100000"), tmp_path / "b")
    _assert_same(small, large)


def test_same_spec_same_bits(tiny_bert: Path, tmp_path: Path) -> None:
    first = by_tunesmith(_prepare(tiny_bert, tmp_path), tmp_path / "a")
    second = by_tunesmith(_prepare(tiny_bert, tmp_path), tmp_path / "b")
    assert first[0] == second[0]
    assert all(torch.equal(second[1][name], tensor) for name, tensor in first[1].items())
