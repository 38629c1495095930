"""A linear probe goes the way of every run: chosen, fitted, saved, proven, evaluated, resumed; and refuses what it would not heed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny_models
import tunesmith
from tunesmith.engines import closed_form
from tunesmith.errors import RunError

L2 = {"name": "linear_probe", "l2": 2.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def in_process_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process of the proof takes seconds; it is tried once, below."""
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})


def spec_for(checkpoint: Path, folder: Path, method: Any = "linear_probe", **more: Any) -> dict[str, Any]:
    data = folder / "rows.jsonl"
    if not data.exists():
        tiny_models.write_jsonl(data, 150)
    spec = {"task": "text_classification", "model": str(checkpoint), "data": {"train": str(data), "validation": "20%"}, "method": method}
    return {**spec, **more, "train": {"precision": "fp32", **more.get("train", {})}}


def train(spec: dict[str, Any], folder: Path, run: str = "run") -> Any:
    return tunesmith.train(spec, run=folder / run, quiet=True)


def refused(spec: dict[str, Any], folder: Path) -> Any:
    with pytest.raises(tunesmith.InputError) as caught:
        train(spec, folder)
    assert not (folder / "run").exists()
    return caught.value


def test_the_whole_way_with_its_proof(checkpoint: Path, tmp_path: Path) -> None:
    run = train(spec_for(checkpoint, tmp_path, train={"metric_for_best_model": "accuracy"}), tmp_path)
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    result = run.result
    assert (result["steps"], result["best_checkpoint"], result["split"]) == (0, None, "validation")
    assert {"fit_seconds", "train_seconds", "peak_memory_mb"} <= set(result)
    tried = [event for event in run.directory.events() if event["event"] == "evaluation"]
    assert [event["l2"] for event in tried] == closed_form.penalties(120)[: len(tried)]
    assert len(tried) > closed_form.PATIENCE
    decisions = json.loads((run.path / "decisions.json").read_text())
    [chosen] = [decision for decision in decisions if decision["field"] == "l2"]
    best = max(tried, key=lambda event: (event["eval_accuracy"], -event["eval_loss"]))
    assert chosen["value"] == best["l2"]
    assert f"{best['l2']:.4g}: {best['eval_accuracy']:.4f}" in chosen["because"]
    assert result["validation"]["accuracy"] == pytest.approx(best["eval_accuracy"])
    assert result["validation"]["loss"] == pytest.approx(best["eval_loss"], abs=1e-5)
    [fitted] = [event for event in run.directory.events() if event["event"] == "log"]
    assert fitted["l2"] == best["l2"]
    assert fitted["largest_gradient"] <= closed_form.MAX_GRADIENT
    assert run.evaluate(quiet=True)["metrics"] == pytest.approx(result["validation"])
    assert {row["label"] for row in run.predict(["the good film", "a dull story"])} <= {"bad", "good"}


@pytest.mark.usefixtures("in_process_proof")
def test_the_saved_model_is_scikit_learns_on_its_own_features(checkpoint: Path, tmp_path: Path) -> None:
    run = train(spec_for(checkpoint, tmp_path, L2, data={"train": str(tmp_path / "rows.jsonl"), "validation": "none"}), tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(run.path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    texts, labels = tiny_models.texts_and_labels(150)
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        features, logits = model.bert(**batch).pooler_output.double().numpy(), model(**batch).logits
    standard = StandardScaler().fit_transform(features)
    peer = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(standard, labels)
    np.testing.assert_allclose(logits.softmax(-1).numpy(), peer.predict_proba(standard), atol=1e-4)


@pytest.mark.usefixtures("in_process_proof")
def test_only_the_head_is_changed_and_two_runs_give_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    base = load_file(checkpoint / "model.safetensors")
    first, second = (load_file(train(spec_for(checkpoint, tmp_path), tmp_path, name).path / "model" / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    body = {name: first[f"bert.{name}"] for name in base if f"bert.{name}" in first}
    assert len(body) >= len(base) - 1
    assert all(torch.equal(base[name], value) for name, value in body.items())


@pytest.mark.usefixtures("in_process_proof")
def test_without_a_validation_set_l2_is_chosen_on_folds(checkpoint: Path, tmp_path: Path) -> None:
    tiny_models.write_jsonl(tmp_path / "rows.jsonl", 60)
    spec = spec_for(checkpoint, tmp_path, data={"train": str(tmp_path / "rows.jsonl"), "validation": "none"})
    run = train(spec, tmp_path)
    decisions = {item["field"]: item for item in json.loads((run.path / "decisions.json").read_text())}
    assert decisions["method.l2"]["value"] == "cross_validation"
    assert decisions["train.metric_for_best_model"]["value"] == "loss"
    assert "5 folds" in decisions["l2"]["because"]
    tried = [event for event in run.directory.events() if event["event"] == "evaluation"]
    assert min(tried, key=lambda event: event["eval_loss"])["l2"] == decisions["l2"]["value"]
    assert run.result["split"] is None


@pytest.mark.usefixtures("in_process_proof")
def test_an_interrupted_run_starts_again_and_ends_the_same(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(spec_for(checkpoint, tmp_path), tmp_path, "straight")

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(closed_form, "targets_of", stop)
        with pytest.raises(RunError, match="SIGINT stopped the run"):
            train(spec_for(checkpoint, tmp_path), tmp_path, "stopped")
    assert not (tmp_path / "stopped" / "result.json").exists()
    resumed = tunesmith.resume(tmp_path / "stopped", quiet=True)
    assert resumed.result["validation"] == straight.result["validation"]
    first, second = (load_file(run.path / "model" / "model.safetensors") for run in (straight, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("in_process_proof")
def test_several_labels_get_thresholds_and_numbers_a_ridge(checkpoint: Path, tmp_path: Path) -> None:
    texts, labels = tiny_models.texts_and_labels(150)
    several, numbers = tmp_path / "several.jsonl", tmp_path / "numbers.jsonl"
    cells = [[label] + (["long"] if len(text.split()) > 8 else []) for text, label in zip(texts, labels, strict=True)]
    several.write_text("\n".join(json.dumps({"text": text, "label": cell}) for text, cell in zip(texts, cells, strict=True)))
    numbers.write_text("\n".join(json.dumps({"text": text, "label": len(text.split()) + 0.5}) for text in texts))
    run = train(spec_for(checkpoint, tmp_path, data={"train": str(several), "validation": "20%"}), tmp_path, "several")
    assert len(json.loads((run.path / "model" / "thresholds.json").read_text())["thresholds"]) == 3
    assert set(run.predict(["a long long story of the good film"])[0]["scores"]) == {"bad", "good", "long"}
    run = train(spec_for(checkpoint, tmp_path, data={"train": str(numbers), "validation": "20%"}), tmp_path, "numbers")
    assert run.result["validation"]["spearman"] > 0.5
    found = [row["value"] for row in run.predict(texts)]
    assert np.corrcoef(found, [len(text.split()) for text in texts])[0, 1] > 0.5


SETTINGS = {
    "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "max_steps": 5, "warmup_steps": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine", "save_steps": 4, "eval_steps": "epoch", "gradient_accumulation_steps": 2, "early_stopping_patience": 2,
    "load_best_model_at_end": False, "logging_steps": 1, "extra": {"optim": "sgd"}, "pack": True, "adam_beta1": 0.9,
}  # fmt: skip


def test_settings_of_steps_have_no_effect_and_each_is_named(checkpoint: Path, tmp_path: Path) -> None:
    error = refused(spec_for(checkpoint, tmp_path, train=SETTINGS), tmp_path)
    assert {problem.code for problem in error.problems} == {"spec.no_effect"}
    assert {problem.where.rpartition(".")[2] for problem in error.problems} == set(SETTINGS)
    assert all("leave it out" in problem.fix for problem in error.problems)


@pytest.mark.parametrize(
    ("method", "train", "data", "where", "code"),
    [
        (L2, {"metric_for_best_model": "macro_f1"}, {}, "train.metric_for_best_model", "spec.no_effect"),
        ("linear_probe", {"metric_for_best_model": "bleu"}, {}, "train.metric_for_best_model", "spec.value"),
        ({"name": "linear_probe", "l2": "validation"}, {}, {"validation": "none"}, "method.l2", "spec.conflict"),
    ],
)
def test_contradictions_are_refused(
    method: Any, train: dict[str, Any], data: dict[str, Any], where: str, code: str, checkpoint: Path, tmp_path: Path
) -> None:
    spec = spec_for(checkpoint, tmp_path, method, train=train)
    spec["data"] = {**spec["data"], **data}
    [problem] = refused(spec, tmp_path).problems
    assert (problem.where, problem.code) == (where, code)


def test_smoothing_of_numbers_has_no_effect(checkpoint: Path, tmp_path: Path) -> None:
    texts, _ = tiny_models.texts_and_labels(60)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text, "label": len(text) / 8}) for text in texts))
    [problem] = refused(spec_for(checkpoint, tmp_path, train={"label_smoothing_factor": 0.1}), tmp_path).problems
    assert (problem.where, problem.code) == ("train.label_smoothing_factor", "spec.no_effect")


def test_one_class_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    texts, _ = tiny_models.texts_and_labels(40)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text, "label": "good"}) for text in texts))
    spec = spec_for(checkpoint, tmp_path)
    assert refused(spec, tmp_path).code == "data.one_class"
    # With the classes named nothing is wrong with the rows until the head is to be fitted.
    with pytest.raises(tunesmith.InputError) as caught:
        train({**spec, "task": {"name": "text_classification", "labels": ["bad", "good"]}}, tmp_path)
    assert caught.value.code == "data.one_class"


def test_one_row_leaves_nothing_to_choose_on(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "the good film", "label": 1.5}))
    spec = spec_for(checkpoint, tmp_path, data={"train": str(tmp_path / "rows.jsonl"), "validation": "none"})
    with pytest.raises(tunesmith.InputError) as caught:
        train({**spec, "task": {"name": "text_classification", "problem_type": "regression"}}, tmp_path)
    assert caught.value.code == "data.too_small"
    assert caught.value.problems[0].where == "method.l2"


def test_another_task_is_refused(tmp_path: Path) -> None:
    model = tiny_models.save_tiny("llama", tmp_path / "llama", "AutoModelForCausalLM")
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": f"the film was fine {index}"}) for index in range(40)))
    spec = {**spec_for(model, tmp_path), "task": "causal_lm", "data": {"train": str(tmp_path / "text.jsonl"), "validation": "20%"}}
    error = refused(spec, tmp_path)
    assert error.code == "spec.conflict"
    assert "text_classification" in str(error)
