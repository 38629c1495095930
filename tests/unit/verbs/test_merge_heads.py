"""Adapters of models with a head of their own become one whole model, head and all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

import tiny_models
import tunesmith
from tiny_questions import questions, write_flat
from tiny_tags import write_conll


@pytest.mark.parametrize(
    "task",
    ["text_classification", *(pytest.param(task, marks=pytest.mark.slow) for task in ("token_classification", "question_answering"))],
)
def test_a_head_of_any_size_is_merged(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    model = tiny_models.save_tiny("bert", tmp_path / "bert")
    if task == "token_classification":
        data, names = write_conll(tmp_path / "rows.conll", 30), ["O", "B-blame", "I-blame", "B-praise", "I-praise"]
    elif task == "question_answering":
        data, names = write_flat(tmp_path / "rows.jsonl", questions(30)), ["start", "end"]
    else:
        texts, _ = tiny_models.texts_and_labels(30)
        data, names = tmp_path / "rows.jsonl", ["a", "b", "c"]
        data.write_text("".join(json.dumps({"text": text, "label": names[index % 3]}) + "\n" for index, text in enumerate(texts)))
    settings = [
        f"model={model}",
        "method=lora",
        "train.max_steps=2",
        "train.learning_rate=1e-2",
        "train.precision=fp32",
        "data.validation=20%",
    ]
    run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
    proof = run.merge(tmp_path / "merged", quiet=True)
    assert proof["proven"]
    assert proof["largest_logit_difference"] < 1e-4
    config = transformers.AutoConfig.from_pretrained(tmp_path / "merged")
    assert [config.id2label[index] for index in range(len(names))] == names
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
