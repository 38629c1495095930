"""Resumed equals straight: a run that is stopped anywhere and resumed ends with the same bits, log and metrics."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import tunesmith
from tiny_models import write_jsonl
from tunesmith import pipeline
from tunesmith.engines import trainer

SETTINGS = [
    "train.epochs=3", "train.batch_size=8", "train.learning_rate=1e-3", "train.save_steps=4", "train.eval_steps=4", "train.logging_steps=1",
    "train.gradient_accumulation_steps=2", "train.early_stopping_patience=50", "data.validation=20%",
    # Left on auto it is measured, and two runs on a busy machine may find differently.
    "train.precision=fp32",
]  # fmt: skip


class _Stop(TrainerCallback):
    """Stops as a signal does, or as a crash does, after some step."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.how == "crash":
                raise RuntimeError("pulled the plug")
            signal.raise_signal(getattr(signal, self.how))


def _train(tiny_bert: Path, tmp_path: Path, run: str, *overrides: str) -> Path:
    data = tmp_path / "rows.jsonl"
    if not data.exists():
        write_jsonl(data, num_rows=150)
    return tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS, *overrides], run=tmp_path / run, quiet=True).path


@pytest.fixture
def in_process_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process of the proof takes seconds; these tests compare files."""
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})


def _stopped(tiny_bert: Path, tmp_path: Path, run: str, step: int, how: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    original = trainer.PlannedTrainer.__init__

    def with_stop(self: Any, job: Any) -> None:
        # Before the callback that turns the signal into a checkpoint, as a signal would come.
        job.callbacks.insert(0, _Stop(step, how))
        original(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PlannedTrainer, "__init__", with_stop)
        if how == "crash":
            with pytest.raises(RuntimeError, match="pulled the plug"):
                _train(tiny_bert, tmp_path, run, *overrides)
        else:
            with pytest.raises(tunesmith.RunError) as caught:
                _train(tiny_bert, tmp_path, run, *overrides)
            assert caught.value.code == "run.interrupted"
            assert how in str(caught.value)
            assert "tunesmith resume" in str(caught.value)
            assert (tmp_path / run / "checkpoints" / f"checkpoint-{step}" / "manifest.json").is_file()
    return tmp_path / run


def _assert_same_end(straight: Path, resumed: Path) -> None:
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if not (straight / "model" / name).exists():
            continue
        expected, found = load_file(straight / "model" / name), load_file(resumed / "model" / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert json.loads((resumed / "eval/validation.json").read_text()) == json.loads((straight / "eval/validation.json").read_text())
    last = sorted(path.name for path in (straight / "checkpoints").iterdir())
    for name in last:
        log = [json.loads((run / "checkpoints" / name / "trainer_state.json").read_text())["log_history"] for run in (straight, resumed)]
        assert log[0] == log[1]
        optimizers = [torch.load(run / "checkpoints" / name / "optimizer.pt", weights_only=True)["state"] for run in (straight, resumed)]
        assert all(torch.equal(optimizers[0][key]["exp_avg"], optimizers[1][key]["exp_avg"]) for key in optimizers[0])


@pytest.mark.parametrize(
    ("overrides", "step", "how"),
    [
        ((), 6, "SIGTERM"),  # between checkpoints, in the middle of an epoch
        ((), 8, "SIGINT"),  # the end of an epoch, and of an interval
        ((), 14, "crash"),  # after checkpoint 12: two steps are taken again
        (("train.precision=bf16",), 10, "SIGTERM"),
        (("method=lora",), 11, "SIGTERM"),
        (("train.max_tokens_per_micro_batch=32", "train.lr_scheduler_type=cosine", "train.warmup_steps=0.2"), 5, "crash"),
    ],
)
def test_resumed_equals_straight(
    tiny_bert: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    step: int,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    in_process_proof: None,
) -> None:
    straight = _train(tiny_bert, tmp_path, "straight", *overrides)
    stopped = _stopped(tiny_bert, tmp_path, "stopped", step, how, monkeypatch, *overrides)
    assert not (stopped / "result.json").exists()
    resumed = pipeline.resume(stopped, quiet=True)
    _assert_same_end(straight, resumed.path)
    with pytest.raises(tunesmith.InputError) as caught:
        pipeline.resume(stopped)
    assert caught.value.code == "usage.nothing_to_resume"


def test_a_damaged_checkpoint_is_passed_over(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process_proof: None
) -> None:
    straight = _train(tiny_bert, tmp_path, "straight")
    stopped = _stopped(tiny_bert, tmp_path, "stopped", 10, "crash", monkeypatch)
    weights = stopped / "checkpoints/checkpoint-8/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    resumed = pipeline.resume(stopped, quiet=True)
    event = next(event for event in resumed.directory.events() if event["event"] == "resume")
    assert event["checkpoint"] == "checkpoint-4"
    assert event["damaged"] == ["checkpoint-8"]
    _assert_same_end(straight, resumed.path)


def test_without_a_checkpoint_it_starts_again(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process_proof: None
) -> None:
    straight = _train(tiny_bert, tmp_path, "straight")
    stopped = _stopped(tiny_bert, tmp_path, "stopped", 2, "crash", monkeypatch)
    assert not list((stopped / "checkpoints").iterdir())
    _assert_same_end(straight, pipeline.resume(stopped, quiet=True).path)


def test_changed_data_is_refused(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process_proof: None) -> None:
    stopped = _stopped(tiny_bert, tmp_path, "stopped", 10, "crash", monkeypatch)
    shutil.copy(write_jsonl(tmp_path / "other.jsonl", num_rows=150, seed=1), tmp_path / "rows.jsonl")
    with pytest.raises(tunesmith.InputError) as caught:
        pipeline.resume(stopped, quiet=True)
    assert caught.value.code == "data.changed"
    assert "rows.jsonl" in str(caught.value)
