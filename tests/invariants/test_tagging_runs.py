"""Token classification: the trajectory is that of plain Trainer with the model's own loss, whatever cuts the steps; resumed equals straight."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from resumption import resumed_equals_straight
from tiny_tags import write_conll
from trajectories import Trajectory, assert_same_trajectory, by_trainer, by_tunesmith
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20
SETTINGS = [
    "data.validation=none", "train.precision=fp32", f"train.max_steps={NUM_STEPS}", "train.learning_rate=1e-2", "train.weight_decay=0.01",
    "train.batch_size=16",
]  # fmt: skip


def _prepare(model: Path, tmp_path: Path, *overrides: str) -> Prepared:
    data = write_conll(tmp_path / "rows.conll", 180)
    return prepare(spec_of(str(data), [f"model={model}", *SETTINGS, *overrides]))


def _plain(prepared: Prepared, folder: Path) -> Trajectory:
    """Plain Trainer with transformers' collator and the loss that the model computes."""
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in prepared.encoded["train"].dataset]
    return by_trainer(prepared, folder, rows, transformers.DataCollatorForTokenClassification(prepared.tokenizer))


@pytest.mark.parametrize(
    "settings", [(), ("task.max_length=16", "task.stride=4", "task.label_all_tokens=true")], ids=["first", "windows-all"]
)
def test_twenty_steps_equal_plain_trainer(still_bert: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    prepared = _prepare(still_bert, tmp_path, "train.max_tokens_per_micro_batch=64", *settings)
    assert max(len(step) for step in prepared.plan.batches(0)) > 3, "steps should be cut for this to say anything"
    if settings:
        assert len(prepared.encoded["train"]) > len(prepared.data.rows["train"])
    ours = by_tunesmith(prepared, tmp_path / "ours")
    assert_same_trajectory(ours, _plain(_prepare(still_bert, tmp_path, *settings), tmp_path / "theirs"), NUM_STEPS)
    assert ours[0][-1] < ours[0][0]


def test_accumulated_and_cut_equal_one_batch(still_bert: Path, tmp_path: Path) -> None:
    whole = by_tunesmith(_prepare(still_bert, tmp_path), tmp_path / "a")
    settings = ["train.batch_size=4", "train.gradient_accumulation_steps=4", "train.max_tokens_per_micro_batch=16"]
    assert_same_trajectory(by_tunesmith(_prepare(still_bert, tmp_path, *settings), tmp_path / "b"), whole, NUM_STEPS)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resumed_equals_straight(still_bert: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_conll(tmp_path / "rows.conll", 60)
    settings = [
        f"model={still_bert}", f"method={method}", "task.max_length=16", "task.stride=4", "data.validation=20%", "train.precision=fp32",
        "train.epochs=2", "train.batch_size=8", "train.learning_rate=5e-3", "train.save_steps=4", "train.eval_steps=4", "train.logging_steps=1",
    ]  # fmt: skip
    _, log = resumed_equals_straight(data, settings, tmp_path, monkeypatch, crash_after=6)
    assert any("eval_f1" in entry for entry in log)
