"""The same from Python: specs as mappings, data as tables, runs as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import tunesmith
from tiny_models import texts_and_labels


@pytest.fixture(autouse=True)
def quick_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _tables() -> dict[str, Any]:
    texts, labels = texts_and_labels(80)
    return {
        "DataFrame": pd.DataFrame({"review": texts, "verdict": labels}),
        "Dataset": datasets.Dataset.from_dict({"review": texts, "verdict": labels}),
        "list": [{"review": text, "verdict": label} for text, label in zip(texts, labels, strict=True)],
    }


@pytest.mark.parametrize("kind", ["DataFrame", "Dataset", "list"])
def test_train_on_a_table(kind: str, tiny_bert: Path, tmp_path: Path) -> None:
    table = _tables()[kind]
    spec = {"model": tiny_bert, "data": {"train": table, "columns": {"text": "review", "label": "verdict"}}, "train": {"max_steps": 3}}
    run = tunesmith.train(spec, run=tmp_path / "run", quiet=True)
    assert run.metrics.keys() >= {"accuracy", "loss"}
    assert run.evaluate(quiet=True)["metrics"] == run.metrics
    assert run.evaluate(table, quiet=True)["num_rows"] == 80
    predictions = tunesmith.open_run(tmp_path / "run").predict(["the great film", "the awful film"])
    assert [row["text"] for row in predictions] == ["the great film", "the awful film"]
    assert set(predictions[0]["scores"]) == {"good", "bad"}


def test_pairs_numbers_and_several_labels(tiny_bert: Path, tmp_path: Path) -> None:
    texts, _ = texts_and_labels(60)
    number = [{"sentence1": text, "sentence2": texts[-index], "score": index % 11 / 2} for index, text in enumerate(texts, 1)]
    spec = {"model": tiny_bert, "data": {"train": number}, "train": {"max_steps": 3}}
    run = tunesmith.train(spec, run=tmp_path / "number", quiet=True)
    assert run.metrics.keys() >= {"pearson", "spearman", "mae", "rmse"}
    assert isinstance(run.predict([("one film", "two films")])[0]["value"], float)
    with pytest.raises(tunesmith.InputError, match="text and pair"):
        run.predict(["one film"])
    several = [{"text": text, "labels": [["a"], ["b"], ["a", "c"], []][index % 4]} for index, text in enumerate(texts)]
    run = tunesmith.train({**spec, "data": {"train": several}}, run=tmp_path / "several", quiet=True)
    assert run.metrics.keys() >= {"subset_accuracy", "micro_f1", "macro_f1", "lrap"}
    assert set(run.predict("one film")[0]["scores"]) == {"a", "b", "c"}


def test_check_and_specs(tiny_bert: Path, tmp_path: Path) -> None:
    spec = tunesmith.load_spec({"task": "text_classification", "model": str(tiny_bert), "method": "full", "data": {"train": "x.csv"}})
    assert isinstance(spec, tunesmith.RunSpec)
    report = tunesmith.check(
        {"model": tiny_bert, "data": {"train": _tables()["list"]}}, ["data.columns={text: review, label: verdict}"], measure=False
    )
    assert report["data"]["columns"] == {"text": "review", "label": "verdict"}
    with pytest.raises(tunesmith.InputError) as caught:
        tunesmith.check({"model": tiny_bert, "data": {"train": 5}})
    assert caught.value.exit_code == 2
    with pytest.raises(tunesmith.InputError):
        tunesmith.open_run(tmp_path)
