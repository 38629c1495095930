"""Masked language modelling takes the steps of plain Trainer, when that is shown the same hidden tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tiny_conversations import write_prose
from tiny_models import save_tiny
from trajectories import Trajectory, assert_same_trajectory, by_trainer, by_tunesmith
from tunesmith.data.collate import IGNORED
from tunesmith.data.encode import training_key
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20
SETTINGS = [
    "task=masked_lm", "task.max_length=24", "data.validation=none", "train.precision=fp32", "train.learning_rate=1e-2",
    "train.batch_size=8", "train.weight_decay=0.01", f"train.max_steps={NUM_STEPS}", "train.max_tokens_per_micro_batch=72",
]  # fmt: skip


def _plain(prepared: Prepared, folder: Path) -> Trajectory:
    """Trainer with the model's own loss, the mean over the hidden tokens of the batch."""
    encoded, rows_seen = prepared.encoded["train"], 0

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        nonlocal rows_seen
        columns = encoded.examples(indices, training_key(prepared.spec.train.seed, rows_seen // len(encoded)))
        rows_seen += len(indices)
        longest = max(map(len, columns["input_ids"]))

        def padded(values: list[Any], fill: int) -> torch.Tensor:
            return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values])

        mask = [[1] * len(row) for row in columns["input_ids"]]
        return {
            "input_ids": padded(columns["input_ids"], 0), "attention_mask": padded(mask, 0), "labels": padded(columns["labels"], IGNORED)
        }  # fmt: skip

    return by_trainer(prepared, folder, list(range(len(encoded))), collate)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full"],
        ["method=full", "train.gradient_accumulation_steps=2", "train.batch_size=4", "task.masking=spans"],
        ["method=lora", "method.dropout=0.0", "method.rank=4", "task.masking=words"],
    ],
    ids=["full", "accumulated-spans", "lora-words"],
)
def test_twenty_steps_are_those_of_trainer(overrides: list[str], tmp_path: Path) -> None:
    data = str(write_prose(tmp_path / "prose.txt", 400))
    folder = save_tiny("bert", tmp_path / "model", "AutoModelForMaskedLM")
    config = transformers.AutoConfig.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.save_pretrained(folder)  # what is dropped depends on the shape of a batch
    spec = spec_of(data, [f"model={folder}", *SETTINGS, *overrides])
    ours, theirs = by_tunesmith(prepare(spec), tmp_path / "ours"), _plain(prepare(spec), tmp_path / "theirs")
    assert len(set(ours[0])) == NUM_STEPS
    assert_same_trajectory(ours, theirs, NUM_STEPS, atol=2e-4)
