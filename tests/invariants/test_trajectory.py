"""Cutting a step into micro-batches changes nothing: the trajectory is that of plain Trainer on the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_models import write_jsonl
from trajectories import PlainTrainer, Trajectory, assert_same_trajectory, by_trainer, by_tunesmith
from tunesmith.data.collate import collate_rows
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20


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


class AveragingTrainer(PlainTrainer):
    """Left alone, Trainer sums the mean losses of a classifier's batches: four times the gradient with four batches a step."""

    loss_is_scaled_for_ga = False


def _plain(prepared: Prepared, folder: Path, accumulation: int = 1) -> Trajectory:
    encoded, pad = prepared.encoded["train"], int(prepared.tokenizer.pad_token_id)

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        return collate_rows(encoded, np.asarray(indices), prepared.task, prepared.spec.task, pad)

    batches = {"per_device_train_batch_size": prepared.spec.train.batch_size, "gradient_accumulation_steps": accumulation}
    return by_trainer(prepared, folder, list(range(len(encoded))), collate, AveragingTrainer, **batches)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_twenty_steps_equal_plain_trainer(still_bert: Path, tmp_path: Path, method: str) -> None:
    settings = [f"method={method}", "train.max_tokens_per_micro_batch=48"] + (["method.dropout=0.0"] if method == "lora" else [])
    prepared = _prepare(still_bert, tmp_path, *settings)
    assert max(len(step) for step in prepared.plan.batches(0)) > 3, "steps should be cut for this to say anything"
    ours = by_tunesmith(prepared, tmp_path / "ours")
    theirs = _plain(_prepare(still_bert, tmp_path, *settings), tmp_path / "theirs")
    assert_same_trajectory(ours, theirs, NUM_STEPS, ())
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
    assert_same_trajectory(ours, theirs, NUM_STEPS, ())


@pytest.mark.parametrize("weights", ["none", "auto"])
def test_micro_batch_bound_changes_nothing(still_bert: Path, tmp_path: Path, weights: str) -> None:
    settings = [f"task.class_weights={weights}"]
    small = by_tunesmith(_prepare(still_bert, tmp_path, *settings, "train.max_tokens_per_micro_batch=16"), tmp_path / "a")
    large = by_tunesmith(_prepare(still_bert, tmp_path, *settings, "train.max_tokens_per_micro_batch=100000"), tmp_path / "b")
    assert_same_trajectory(small, large, NUM_STEPS, ())


def test_same_spec_same_bits(tiny_bert: Path, tmp_path: Path) -> None:
    first = by_tunesmith(_prepare(tiny_bert, tmp_path), tmp_path / "a")
    second = by_tunesmith(_prepare(tiny_bert, tmp_path), tmp_path / "b")
    assert first[0] == second[0]
    assert all(torch.equal(second[1][name], tensor) for name, tensor in first[1].items())
