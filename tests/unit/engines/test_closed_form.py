from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import tiny_models
from tunesmith.engines import closed_form
from tunesmith.engines.closed_form import Head, Targets, compute_features, heads_of, targets_of
from tunesmith.errors import InputError, RunError
from tunesmith.pipeline import build_job
from tunesmith.prepare import Prepared, prepare
from tunesmith.runs.directory import RunDirectory
from tunesmith.strict import load_spec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
KINDS = [*tiny_models.ENCODERS, *tiny_models.DECODERS]


def section(problem_type: str, classes: int = 2, weights: list[float] | None = None) -> TextClassificationSpec:
    names = [f"class {index}" for index in range(classes)]
    more: dict[str, Any] = {"class_weights": dict(zip(names, weights, strict=True))} if weights else {}
    return TextClassificationSpec(problem_type=problem_type, labels=names if classes > 1 else [], label_separator="none", **more)


def correlated(rows: int = 300, size: int = 12) -> np.ndarray:
    """Features of very different sizes, each mixed with the others."""
    draw = np.random.default_rng(0)
    mixed = draw.normal(size=(rows, size)) @ draw.normal(size=(size, size))
    return (mixed * np.logspace(-3, 3, size) + draw.normal(size=size)).astype(np.float32)


def labels_for(problem_type: str, features: np.ndarray, classes: int) -> torch.Tensor:
    """Labels that depend on the features, but not wholly."""
    draw = np.random.default_rng(1)
    scores = StandardScaler().fit_transform(features) @ draw.normal(size=(features.shape[1], classes))
    scores += 2 * draw.normal(size=scores.shape)
    if problem_type == SINGLE:
        return torch.tensor(scores.argmax(1))
    return torch.tensor(scores[:, 0] if problem_type == REGRESSION else scores > 1, dtype=torch.float32)


def head_for(features: np.ndarray, targets: Targets, l2: float, intercept: bool = True) -> Head:
    return next(heads_of(features, targets, (l2,), intercept))


@pytest.mark.parametrize("l2", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("weights", [None, [0.3, 2.0, 1.0]])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_those_of_scikit_learn(classes: int, weights: list[float] | None, l2: float) -> None:
    features = correlated()
    labels = labels_for(SINGLE, features, classes)
    weights = weights and weights[:classes]
    head = head_for(features, targets_of(section(SINGLE, classes, weights), labels), l2)
    balance = dict(enumerate(weights)) if weights else None
    scaler = StandardScaler().fit(features.astype(np.float64))
    peer = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=20_000, class_weight=balance, solver="newton-cg")
    peer.fit(scaler.transform(features.astype(np.float64)), labels.numpy())
    shares = torch.from_numpy(head.logits(features)).softmax(-1).numpy()
    np.testing.assert_allclose(shares, peer.predict_proba(scaler.transform(features)), atol=1e-5)
    assert head.gradient <= closed_form.MAX_GRADIENT
    assert head.iterations < 200


def test_several_labels_are_a_logistic_regression_each() -> None:
    features = correlated()
    labels = labels_for(MULTI, features, 3)
    weights = [5.0, 1.0, 0.5]
    head = head_for(features, targets_of(section(MULTI, 3, weights), labels), 2.0)
    scaler = StandardScaler().fit(features.astype(np.float64))
    for index, weight in enumerate(weights):
        has = labels[:, index].numpy()
        peer = LogisticRegression(C=0.5, tol=1e-7, max_iter=1000, solver="newton-cholesky")
        peer.fit(scaler.transform(features), has, sample_weight=np.where(has == 1, weight, 1.0))
        expected = peer.decision_function(scaler.transform(features))
        np.testing.assert_allclose(head.logits(features)[:, index], expected, atol=1e-3)


@pytest.mark.parametrize("intercept", [True, False])
def test_numbers_are_ridge_regression(intercept: bool) -> None:
    features = correlated()
    labels = labels_for(REGRESSION, features, 1) + 7
    head = head_for(features, targets_of(section(REGRESSION, 1), labels), 30.0, intercept)
    scaler = StandardScaler(with_mean=intercept)
    exact = features.astype(np.float64)
    spread = exact.std(0) if intercept else np.sqrt(np.square(exact).mean(0))
    scaled = (exact - exact.mean(0) * intercept) / spread
    assert not intercept or np.allclose(scaled, scaler.fit_transform(exact))
    expected = Ridge(alpha=30.0, fit_intercept=intercept).fit(scaled, labels.numpy()).predict(scaled)
    np.testing.assert_allclose(head.logits(features)[:, 0], expected, atol=1e-6)
    assert (head.bias != 0).any() == intercept


@pytest.mark.parametrize(
    ("problem_type", "classes", "weights", "smoothing"),
    [
        (SINGLE, 2, None, 0.1), (SINGLE, 2, [0.5, 3.0], 0.2), (SINGLE, 4, None, 0.0), (SINGLE, 4, [1.0, 2.0, 0.2, 5.0], 0.1),
        (MULTI, 3, [4.0, 1.0, 2.0], 0.0), (REGRESSION, 1, None, 0.0),
    ],
)  # fmt: skip
def test_the_solution_is_where_the_tasks_own_loss_and_the_penalty_balance(
    problem_type: str, classes: int, weights: list[float] | None, smoothing: float
) -> None:
    features, l2, task_section = correlated(), 3.0, section(problem_type, classes, weights)
    labels = labels_for(problem_type, features, classes)
    head = head_for(features, targets_of(task_section, labels, smoothing), l2)
    scaler = StandardScaler().fit(features.astype(np.float64))
    standard = torch.from_numpy(scaler.transform(features.astype(np.float64)))
    weight = torch.tensor(head.weight * scaler.scale_, requires_grad=True)
    bias = torch.tensor(head.bias + head.weight @ scaler.mean_, requires_grad=True)
    share = {SINGLE: 1.0, MULTI: float(classes), REGRESSION: 0.5}[problem_type]
    loss = share * TEXT_CLASSIFICATION.loss(task_section, standard @ weight.T + bias, labels, smoothing)
    penalised = (weight[1] - weight[0]) if problem_type == SINGLE and classes == 2 else weight
    (loss + l2 / 2 * penalised.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.abs().max() < 2e-3
    assert bias.grad.abs().max() < 2e-3


def test_more_features_than_rows() -> None:
    features = correlated(20, 50)
    labels = labels_for(SINGLE, features, 2)
    head = head_for(features, targets_of(section(SINGLE), labels), 1.0)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    peer = LogisticRegression(tol=1e-10, max_iter=20_000).fit(standard, labels.numpy())
    np.testing.assert_allclose(np.diff(head.logits(features))[:, 0], peer.decision_function(standard), atol=1e-4)


@pytest.mark.parametrize("problem_type", [SINGLE, REGRESSION])
def test_features_that_never_change_get_no_weight(problem_type: str) -> None:
    features = correlated()
    features[:, 0] = 0
    features[:, 1] = 1e4
    features[:, 2] = 100 * (1 + 1e-7 * np.random.default_rng(0).normal(size=len(features)))
    labels = labels_for(problem_type, features, 2)
    head = head_for(features, targets_of(section(problem_type), labels), 0.1)
    assert not head.weight[:, :3].any()
    assert head.weight[:, 3:].all()
    constant = np.ones((len(features), 4), dtype=np.float32)
    empty = head_for(constant, targets_of(section(problem_type), labels), 0.1)
    assert not empty.weight.any()
    if problem_type == SINGLE:
        share = torch.from_numpy(empty.logits(constant)).softmax(-1)[0, 1]
        assert float(share) == pytest.approx(float(labels.double().mean()), abs=1e-5)


def test_a_feature_that_stands_twice_shares_its_weight() -> None:
    features = correlated()
    twice = np.concatenate([features, features], 1)
    labels = labels_for(SINGLE, features, 3)
    head = head_for(twice, targets_of(section(SINGLE, 3), labels), 2.0)
    once = head_for(features, targets_of(section(SINGLE, 3), labels), 1.0)
    np.testing.assert_allclose(head.weight[:, :12], head.weight[:, 12:], rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(head.logits(twice), once.logits(features), atol=1e-3)


def test_a_class_without_a_row_is_never_expected() -> None:
    features = correlated()
    labels = labels_for(SINGLE, features, 3) % 2
    head = head_for(features, targets_of(section(SINGLE, 3), labels), 1.0)
    shares = torch.from_numpy(head.logits(features)).softmax(-1)
    assert float(shares[:, 2].max()) < 1e-3
    assert np.isfinite(head.weight).all()


def test_rows_of_one_class_teach_nothing() -> None:
    with pytest.raises(InputError) as caught:
        targets_of(section(SINGLE, 3), torch.ones(5, dtype=torch.long))
    assert caught.value.code == "data.one_class"
    assert "class 1" in str(caught.value)


def test_each_penalty_of_a_path_gives_what_it_gives_alone() -> None:
    features = correlated()
    targets = targets_of(section(SINGLE, 3), labels_for(SINGLE, features, 3))
    path = list(heads_of(features, targets, (100.0, 1.0, 0.01), True))
    assert [head.l2 for head in path] == [100.0, 1.0, 0.01]
    sizes = [float(np.square(head.weight * features.std(0)).sum()) for head in path]
    assert sizes == sorted(sizes)
    for head in path:
        alone = head_for(features, targets, head.l2)
        np.testing.assert_allclose(alone.logits(features), head.logits(features), atol=1e-3)


def test_penalties_begin_where_little_is_learnt_and_follow_the_rows() -> None:
    few, many = closed_form.penalties(100), closed_form.penalties(10_000)
    assert (few[0], few[-1]) == (1e3, 1e-4)
    assert (many[0], many[-1]) == (1e5, 1e-2)
    assert few[:3] == [1000.0, 316.2, 100.0]


def test_what_has_not_converged_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "MAX_ITERATIONS", 1)
    features = correlated()
    head = head_for(features, targets_of(section(SINGLE, 3), labels_for(SINGLE, features, 3)), 1.0)
    assert head.gradient > closed_form.MAX_GRADIENT


def prepared_with(kind: str, folder: Path, method: Any = "linear_probe", world_size: int = 1, **more: Any) -> Prepared:
    checkpoint = tiny_models.save_tiny(kind, folder / "checkpoint")
    data = tiny_models.write_jsonl(folder / "rows.jsonl", 60)
    spec = {"task": "text_classification", "model": str(checkpoint), "data": {"train": str(data)}, "method": method}
    return prepare(load_spec({**spec, "train": {"precision": "fp32"}, **more}), use_cache=False, world_size=world_size)


def job_of(prepared: Prepared, folder: Path) -> Any:
    return build_job(prepared, RunDirectory.create(folder / "run", "text_classification"))


def test_what_is_solved_for_wants_one_process(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepared_with("bert", tmp_path, world_size=2)
    assert caught.value.problems[0].code == "spec.conflict"
    assert caught.value.problems[0].found == "2 processes"


@pytest.mark.parametrize("kind", KINDS)
def test_features_times_the_head_are_the_logits_of_every_architecture(kind: str, tmp_path: Path) -> None:
    prepared = prepared_with(kind, tmp_path, {"name": "linear_probe", "l2": 0.5})
    job = job_of(prepared, tmp_path)
    outcome = closed_form.fit(job)
    assert outcome.steps == 0
    head = closed_form._head_of(job.model)
    features = compute_features(job, head, job.train)
    assert features.shape == (len(job.train), 16)
    expected = np.empty((len(features), 2))
    for indices, logits, _ in job.scorer.outputs(job.train):
        expected[indices] = logits
    with torch.no_grad():
        np.testing.assert_allclose(head(torch.from_numpy(features)).numpy(), expected, atol=1e-5)
    own = targets_of(job.spec.task, torch.tensor(job.train.dataset["labels"]))
    solution = head_for(features, own, 0.5, head.bias is not None)
    np.testing.assert_allclose(expected, solution.logits(features), atol=1e-3)
    assert outcome.train_loss < 0.69


def test_features_that_are_not_finite_are_named_by_their_rows(tmp_path: Path) -> None:
    prepared = prepared_with("bert", tmp_path)
    job = job_of(prepared, tmp_path)
    word = int(prepared.tokenizer.convert_tokens_to_ids("lovely"))
    with torch.no_grad():
        job.model.get_input_embeddings().weight[word] = float("nan")
    rows = [row for row in range(len(job.train)) if word in job.train.dataset[row]["input_ids"]]
    with pytest.raises(RunError) as caught:
        closed_form.fit(job)
    assert caught.value.code == "run.non_finite"
    assert f"{len(rows)} of {len(job.train)} rows: {job.train.place(rows[0])}" in str(caught.value)


def test_a_model_that_changes_what_its_head_gives_is_refused(tmp_path: Path) -> None:
    job = job_of(prepared_with("bert", tmp_path), tmp_path)

    def cap(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits.tanh()
        return output

    job.model.register_forward_hook(cap)
    with pytest.raises(InputError) as caught:
        closed_form.fit(job)
    assert caught.value.code == "method.no_target"
    assert "BertForSequenceClassification" in str(caught.value)


def test_folds_keep_identical_texts_together_and_classes_apart(tmp_path: Path) -> None:
    data = tmp_path / "twice.jsonl"
    lines = tiny_models.write_jsonl(tmp_path / "rows.jsonl", 60).read_text()
    data.write_text(lines + lines)
    prepared = prepared_with("bert", tmp_path, data={"train": str(data), "validation": "none"})
    job = job_of(prepared, tmp_path)
    labels = torch.tensor(job.train.dataset["labels"])
    folds = closed_form._folds(job, labels)
    assert np.bincount(folds).tolist() == [24] * 5
    texts = job.train.sources(range(120))["text"]
    assert len({(text, fold) for text, fold in zip(texts, folds.tolist(), strict=True)}) == 60
    assert all(0.4 <= float(labels[folds == fold].double().mean()) <= 0.6 for fold in range(5))
    assert (folds == closed_form._folds(job, labels)).all()
