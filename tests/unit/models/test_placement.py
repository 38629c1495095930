"""Models are where this process computes before anything is chosen for them, and on the processor while they are proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from tunesmith.engines.arguments import training_arguments
from tunesmith.models.placement import on_processor, place
from tunesmith.pipeline import train
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of
from tunesmith.verbs.run import open_run

CPU, META = torch.device("cpu"), torch.device("meta")


class Model:
    """Notes where it is moved."""

    def __init__(self, device: torch.device, is_quantized: bool = False) -> None:
        self.device, self.is_quantized = device, is_quantized
        self.moves: list[torch.device] = []

    def to(self, device: torch.device) -> None:
        self.moves.append(device)
        self.device = device


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose models compute on another device."""
    monkeypatch.setattr("tunesmith.models.placement.compute_device", lambda: META)


def test_a_model_is_moved_once(elsewhere: None) -> None:
    model = Model(CPU)
    place(model)
    place(model)
    assert model.moves == [META]


def test_on_the_processor_nothing_is_moved() -> None:
    model = tiny_models.tiny_decoder("llama")
    model.to = None
    place(model)
    with on_processor(model):
        pass


def test_a_quantised_model_stays(elsewhere: None) -> None:
    before, after = Model(CPU, is_quantized=True), Model(META, is_quantized=True)
    place(before)
    with on_processor(after):
        pass
    assert before.moves == after.moves == []


def test_it_goes_back_from_the_processor_whatever_happens() -> None:
    device = torch.device("cuda:1")
    model = Model(device)

    def fail() -> None:
        with on_processor(model):
            raise RuntimeError("the file is gone")

    with pytest.raises(RuntimeError, match="the file is gone"):
        fail()
    assert model.moves == [CPU, device]


def _prepared(tiny_bert: Path, folder: Path) -> Prepared:
    data = tiny_models.write_jsonl(folder / "rows.jsonl")
    return prepare(spec_of(str(data), [f"model={tiny_bert}", "train.precision=fp32", "train.batch_size=8"]))


def test_accelerations_are_chosen_for_where_the_model_computes(elsewhere: None, tiny_bert: Path, tmp_path: Path) -> None:
    prepared = _prepared(tiny_bert, tmp_path)
    assert {parameter.device for parameter in prepared.model.parameters()} == {META}
    assert prepared.accelerations == []


def test_a_process_has_one_gpu(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that sees two, Trainer would have the second compute a part of each micro-batch."""
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: vars(self).get("_n_gpu") or 2))
    assert training_arguments(_prepared(tiny_bert, tmp_path).spec, 1, tmp_path).n_gpu == 1


def test_a_run_is_proven_on_the_processor_and_used_where_models_compute(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_models.write_jsonl(tmp_path / "rows.jsonl")
    moves: list[Any] = []
    monkeypatch.setattr("tunesmith.models.placement.place", lambda model, device: moves.append(device))
    settings = [f"model={tiny_bert}", "train.precision=fp32", "train.max_steps=1", "speed.off=all"]
    path = train(str(data), settings, run=tmp_path / "run", quiet=True).path
    assert moves == [CPU, CPU], "the proof's: there, and back to where it was"
    monkeypatch.undo()
    monkeypatch.setattr("tunesmith.models.placement.compute_device", lambda: META)
    run = open_run(path)
    assert run.model.device == META
    assert run.base_model.device == META
