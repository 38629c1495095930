"""Runs of a tiny model in which something goes wrong at a chosen moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import tunesmith
from tiny_models import write_jsonl
from tunesmith.engines import trainer
from tunesmith.runs.checkpoints import Checkpoints

SETTINGS = [
    "train.epochs=2", "train.batch_size=16", "train.learning_rate=1e-3", "train.save_steps=3", "train.eval_steps=3", "train.logging_steps=2",
    "data.validation=20%", "train.precision=fp32", "speed.off=all",
]  # fmt: skip
"""16 steps, 8 an epoch; checkpoints 3, 6, 9, 12, 15 and the last: neither logs nor epochs fall on all of them."""


class When(TrainerCallback):
    """Does something at one kind of event, once, when a step has been taken."""

    def __init__(self, event: str, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action
        setattr(self, event, self._act)

    def _act(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            self.action()


@contextmanager
def acting(monkeypatch: pytest.MonkeyPatch, event: str, step: int, action: Callable[[], None]) -> Iterator[None]:
    """Whatever is trained inside acts at this event of this step, before any other callback of ours."""
    original = trainer.PlannedTrainer.__init__

    def with_action(self: Any, job: Any) -> None:
        job.callbacks.insert(0, When(event, step, action))
        original(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PlannedTrainer, "__init__", with_action)
        yield


def train(model: Path, run: Path, *overrides: str) -> Path:
    """A run on 150 rows that lie beside it."""
    data = run.parent / "rows.jsonl"
    if not data.exists():
        write_jsonl(data, num_rows=150)
    return tunesmith.train(str(data), [f"model={model}", *SETTINGS, *overrides], run=run, quiet=True).path


def crash() -> None:
    """As if the plug were pulled."""
    raise RuntimeError("pulled the plug")


def assert_same_end(straight: Path, found: Path) -> None:
    """The same bits of weights and optimizer, the same log, the same metrics."""
    assert differing(straight, found) == []


def differing(straight: Path, found: Path) -> list[str]:
    """What of two finished runs is not the same to the bit."""
    names = [path.name for path in (straight / "model").glob("*.safetensors")]
    assert names
    wrong = [name for name in names if not _same(load_file(straight / "model" / name), load_file(found / "model" / name))]
    for path in (straight / "eval").glob("*.json"):
        if path.read_bytes() != (found / "eval" / path.name).read_bytes():
            wrong.append(path.name)
    every = Checkpoints(straight / "checkpoints").all()
    if not every:  # solved in closed form
        return wrong
    folders = [run / "checkpoints" / every[-1].name for run in (straight, found)]
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in folders]
    if logs[0] != logs[1]:
        wrong.append("the log")
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in folders]
    if not all(_same(states[0][key], states[1][key]) for key in states[0]):
        wrong.append("the optimizer")
    return wrong


def _same(expected: dict[Any, torch.Tensor], found: dict[Any, torch.Tensor]) -> bool:
    return expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
