"""A run that crashed and was resumed, beside the same run that went straight on: weights, optimizer, log and metrics, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import tunesmith
from tunesmith import pipeline
from tunesmith.engines import trainer
from tunesmith.runs.checkpoints import Checkpoints
from tunesmith.verbs.run import Run


def resumed_equals_straight(
    data: Path, settings: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, crash_after: int
) -> tuple[Run, list[dict[str, Any]]]:
    """Asserts that they are equal, the crash being after this step; returns the resumed run, and what both have logged."""
    # The fresh process of the proof takes seconds, and files are compared here.
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    straight = tunesmith.train(str(data), settings, run=folder / "straight", quiet=True)
    _crash(data, settings, folder / "resumed", monkeypatch, crash_after)
    resumed = pipeline.resume(folder / "resumed", quiet=True)
    assert next(event for event in resumed.directory.events() if event["event"] == "resume")["checkpoint"] is not None
    weights = [path.name for path in straight.directory.model.glob("*.safetensors")]
    name = "adapter_model.safetensors" if "adapter_model.safetensors" in weights else "model.safetensors"
    assert assert_same_tensors(*(load_file(run.directory.model / name) for run in (straight, resumed))) > 4
    last = Checkpoints(straight.directory.checkpoints).all()[-1].name
    checkpoints = [run.directory.checkpoints / last for run in (straight, resumed)]
    assert assert_same_tensors(*(torch.load(path / "optimizer.pt", weights_only=True) for path in checkpoints)) > 4
    logs = [json.loads((path / "trainer_state.json").read_text())["log_history"] for path in checkpoints]
    assert logs[0] == logs[1]
    for file in ("eval/validation.json", "model/thresholds.json"):
        assert straight.directory.read_json(file) == resumed.directory.read_json(file), file
    assert resumed.directory.read_json("eval/validation.json")["metrics"]["loss"] > 0
    return resumed, logs[0]


def _crash(data: Path, settings: list[str], run: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    class Crash(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == after:
                raise RuntimeError("pulled the plug")

    original = trainer.PlannedTrainer.__init__

    def with_crash(self: Any, job: Any) -> None:
        job.callbacks.append(Crash())
        original(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PlannedTrainer, "__init__", with_crash)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            tunesmith.train(str(data), settings, run=run, quiet=True)


def assert_same_tensors(expected: Any, found: Any) -> int:
    """Compares nested values to the bit; returns the number of tensors."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found)
        return 1
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        return sum(assert_same_tensors(value, found[key]) for key, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return sum(assert_same_tensors(one, other) for one, other in zip(expected, found, strict=True))
    assert expected == found
    return 0
