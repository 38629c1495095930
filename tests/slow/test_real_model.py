"""The demo's model and data, through the command line's own function: what a newcomer gets."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

import tunesmith
from tunesmith.models.catalog import CATALOG, is_installed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert is_installed(CATALOG["minilm"]), "make setup installs it"
    path = tmp_path / "topics.jsonl"
    monkeypatch.setattr(sys, "argv", ["chatterbot_topics.py", str(path)])
    runpy.run_path(str(ROOT / "examples" / "chatterbot_topics.py"), run_name="__main__")
    return path


def test_lora_learns_topics_and_is_proven(topics: Path, tmp_path: Path) -> None:
    overrides = [f"data.train={topics}", "method=lora", "train.epochs=3", "train.learning_rate=2e-3"]
    run = tunesmith.train(ROOT / "examples" / "topics.yaml", overrides, run=tmp_path / "run", quiet=True)
    # The largest of the twelve classes has a third of the rows.
    assert run.metrics["accuracy"] > 0.55
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    rejected = [json.loads(line) for line in (run.path / "rejected.jsonl").read_text().splitlines()]
    assert {row["code"] for row in rejected} == {"data.conflicting_labels", "data.empty_text"}
    assert run.predict("what is artificial intelligence")[0]["label"] in run.spec.task.labels
