"""What peers are given are the rows and the order that tunesmith trains on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench.peers.given import Given, collate, evaluate, load_model, num_trainable
from bench.samples import prepare_work
from bench.works import WORKS, Work

import tunesmith
from tiny_models import save_tiny, write_jsonl
from tunesmith.prepare import prepare


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Full training of a tiny BERT on forty rows."""
    save_tiny("bert", tmp_path / "tiny")
    write_jsonl(tmp_path / "rows.jsonl")
    spec = {
        "model": str(tmp_path / "tiny"),
        "data": {"train": "rows.jsonl", "validation": "20%"},
        "method": "full",
        "train": {"learning_rate": 1e-3},
    }
    return Work("tiny", "a tiny model", "train", spec, steps=4, batch_size=8)


def given(folder: Path, settings: dict[str, object]) -> Given:
    """What a peer reads of it."""
    return Given(folder, "shipped", folder, folder / "out.json", settings)


def test_rows_lie_in_the_order_of_the_plan(work: Work, tmp_path: Path) -> None:
    settings = prepare_work(work, tmp_path, 3, tmp_path / "work")
    prepared = prepare(tunesmith.load_spec(work.spec_of(tmp_path, 3)))
    rows = given(tmp_path / "work", settings).rows()
    assert len(rows) == 24
    for step, indices in enumerate(prepared.plan.drawn(0)[:3]):
        ids = [list(prepared.encoded["train"].dataset[int(index)]["input_ids"]) for index in indices]
        assert [row["input_ids"] for row in rows[step * 8 : step * 8 + 8]] == ids
    spec = json.loads((tmp_path / "work" / "spec.json").read_text())
    assert spec["train"]["max_steps"] == 3


def test_peers_start_from_the_weights_that_tunesmith_starts_from(work: Work, tmp_path: Path) -> None:
    settings = prepare_work(work, tmp_path, 2, tmp_path / "work")
    theirs = load_model(given(tmp_path / "work", settings))
    ours = prepare(tunesmith.load_spec(work.spec_of(tmp_path, 2))).model
    assert num_trainable(theirs) == settings["trainable"]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert 0 <= evaluate(theirs, given(tmp_path / "work", settings))["accuracy"] <= 1


def test_adapters_are_as_many_as_tunesmiths(work: Work, tmp_path: Path) -> None:
    with_adapters = replace(work, spec={**work.spec, "method": {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.0}})
    settings = prepare_work(with_adapters, tmp_path, 2, tmp_path / "work")
    assert num_trainable(load_model(given(tmp_path / "work", settings))) == settings["trainable"]


def test_more_steps_than_rows_are_refused(work: Work, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="tiny: the data has 32 rows, so --steps is at most 4"):
        prepare_work(work, tmp_path, 5, tmp_path / "work")


def test_collated_rows_are_padded_on_the_right() -> None:
    batch = collate([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[-100, 6], [7, -100]]


def test_specs_of_the_works_are_valid(tmp_path: Path) -> None:
    for work in WORKS.values():
        if work.kind != "probe":
            assert tunesmith.load_spec(work.spec_of(tmp_path, 7)).train.max_steps == 7
