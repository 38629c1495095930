"""Fits a linear head on a frozen body: features are computed once, and a convex solver finds the one optimum.

The head is the linear layer whose weight requires a gradient. Features are standardised and turned to their principal axes, where
penalty and curvature are diagonal: L-BFGS then converges in tens of iterations however correlated the features are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import qr, svd
from scipy.optimize import minimize
from scipy.special import expit
from transformers import TrainerControl, TrainerState

from tunesmith.data.encode import Encoded
from tunesmith.data.lint import text_hashes
from tunesmith.engines.job import Job, Outcome
from tunesmith.errors import InputError, RunError
from tunesmith.registry import Decision

NUM_PENALTIES = 15
"""At most so many are tried, from about ten times the rows down, each half a power of ten below the one before."""
PATIENCE = 3
"""Weaker penalties that may fail to lower the loss before the rest, which fits the training rows alone, is left out."""
NUM_FOLDS = 5
MAX_ITERATIONS = 1000
MAX_GRADIENT = 1e-6
"""Largest entry of the gradient of the mean loss, in coordinates where its curvature is about 1."""
CONSTANT = 1e-6
"""A feature that varies by less, relative to its size, only holds rounding errors."""
LEAST_CURVATURE = 1e-3
"""Of a class, however rare."""
SHOWN_ROWS = 8


@dataclass(frozen=True)
class Targets:
    """What the head learns: the loss of a row is softmax cross-entropy, a sum of sigmoid ones, or half a squared error."""

    kind: str
    """`softmax`, `sigmoid`, `pair` (two classes, of whose logits only the difference counts: one sigmoid) or `squares`."""
    positive: np.ndarray
    """Weight of each class [rows, classes], of each label where the row has it [rows, labels], or the number [rows, 1]."""
    negative: np.ndarray
    """Weight of each label where the row lacks it [rows, labels]; zeros but for `sigmoid` and `pair`."""

    def __getitem__(self, rows: Any) -> Targets:
        return Targets(self.kind, self.positive[rows], self.negative[rows])


@dataclass(frozen=True)
class Head:
    """A linear head, and how it was found."""

    weight: np.ndarray
    """[outputs, features] in fp64, for features as the model gives them."""
    bias: np.ndarray
    """[outputs]"""
    l2: float
    iterations: int
    gradient: float
    """Its largest entry at the end, as MAX_GRADIENT; 0 where the solution is a formula."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[rows, outputs] in fp64."""
        logits: np.ndarray = features @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class Fitted(Outcome):
    """An outcome, and what was decided while fitting."""

    decisions: tuple[Decision, ...] = ()


def fit(job: Job) -> Fitted:
    """Fits the head of the job's model to the optimum; `job.advance_evaluation` hears of rows whose features are computed.

    Raises InputError when there is nothing to fit, RunError when features are not finite.
    """
    start = time.perf_counter()
    method: Any = job.spec.method
    linear = _head_of(job.model)
    intercept = linear.bias is not None
    labels = _labels_of(job, job.train)
    targets = targets_of(job.spec.task, labels, float(job.spec.train.label_smoothing_factor))
    features = compute_features(job, linear, job.train)
    best_metric, decisions = None, []
    if isinstance(method.l2, str):
        head, best_metric, because = _choose(job, linear, features, targets, labels)
        decisions.append(Decision("l2", head.l2, because))
    else:
        head = next(heads_of(features, targets, (method.l2,), intercept))
    train_loss = _loss(job, head.logits(features), labels, job.spec.train.label_smoothing_factor)
    _log(job, {"l2": head.l2, "iterations": head.iterations, "largest_gradient": head.gradient, "loss": train_loss})
    if head.gradient > MAX_GRADIENT:
        because = f"the gradient still has {head.gradient:.1e} after {head.iterations:,} iterations; with a greater l2 it would converge"
        decisions.append(Decision("converged", False, because))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight))
        if intercept:
            linear.bias.copy_(torch.from_numpy(head.bias))
    return Fitted(0, time.perf_counter() - start, train_loss, best_metric, None, decisions=tuple(decisions))


def num_feature_rows(job: Job) -> int:
    """Rows whose features `fit` computes."""
    method: Any = job.spec.method
    return len(job.train) + (len(job.validation) if job.validation is not None and method.l2 == "validation" else 0)


def _head_of(model: torch.nn.Module) -> torch.nn.Linear:
    return next(module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.weight.requires_grad)


def compute_features(job: Job, linear: torch.nn.Linear, encoded: Encoded) -> np.ndarray:
    """What enters the head for each row, [rows, features] in fp32, in eval mode and the precision of the run.

    Where the head reads every token (as a decoder's), it is what enters at the row's last token.
    Raises InputError when the model's answer is not what the head gives, RunError when features are not finite.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = linear.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    features = np.empty((len(encoded), linear.in_features), dtype=np.float32)
    try:
        for indices, logits, _ in job.scorer.outputs(encoded, job.advance_evaluation):
            entering, leaving = seen.pop() if seen else (logits, logits[:0])
            if entering.ndim == 3:
                last = (torch.arange(len(indices)), torch.from_numpy(encoded.lengths[indices] - 1).long())
                entering, leaving = entering[last], leaving[last]
            if not torch.equal(leaving.float().nan_to_num(), logits.nan_to_num()):
                problem, found = "what the model answers is not what its last linear layer gives", type(job.model).__name__
                raise InputError("method.no_target", problem, where="method", found=found, fix="method: full, lora or freeze")
            features[indices] = entering.float().cpu().numpy()
    finally:
        handle.remove()
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if len(wrong):
        places = ", ".join(encoded.place(row) for row in wrong[:SHOWN_ROWS]) + (", ..." if len(wrong) > SHOWN_ROWS else "")
        found, fix = f"{len(wrong):,} of {len(features):,} rows: {places}", "train.precision=fp32, or another model"
        raise RunError("run.non_finite", "the model's features are not finite", where="features", found=found, fix=fix)
    return features


def targets_of(section: Any, labels: torch.Tensor, label_smoothing: float = 0.0) -> Targets:
    """The targets of labels [rows] or [rows, labels] as the task makes them, weighted as in the task's loss.

    Raises InputError when all rows have one class.
    """
    values = labels.numpy()
    if section.problem_type == "regression":
        numbers = values.astype(np.float64)[:, None]
        return Targets("squares", numbers, np.zeros_like(numbers))
    weights = np.ones(len(section.labels))
    if isinstance(section.class_weights, dict):
        weights = np.array([section.class_weights[label] for label in section.labels])
    if section.problem_type == "multi_label_classification":
        return Targets("sigmoid", values * weights, 1.0 - values)
    if (values == values[0]).all():
        fix = "a classifier needs two classes or more: add rows of another"
        found = section.labels[int(values[0])]
        raise InputError("data.one_class", "every training row has the same label", where="data.train", found=found, fix=fix)
    positive = np.tile(label_smoothing / len(weights) * weights, (len(values), 1))
    positive[np.arange(len(values)), values] += (1 - label_smoothing) * weights[values]
    return Targets("pair", positive[:, 1:], positive[:, :1]) if len(weights) == 2 else Targets("softmax", positive, np.zeros_like(positive))


def heads_of(features: np.ndarray, targets: Targets, l2s: Sequence[float], intercept: bool) -> Iterator[Head]:
    """The optimum for each penalty: least of the summed losses plus l2 / 2 times the squared weights of standardised features.

    The bias is not penalised. So l2 is 1 / C of scikit-learn's LogisticRegression, and alpha of its Ridge.
    """
    mean = features.mean(0, dtype=np.float64) if intercept else np.zeros(features.shape[1])
    standard = features - mean
    spread = np.sqrt(np.square(standard).mean(0))
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > CONSTANT * np.abs(features).max(0))
    standard *= inverse
    num_rows, num_features = standard.shape
    factor = qr(standard, mode="r", check_finite=False)[0][:num_features] if num_rows > num_features else standard
    _, singular, axes = svd(factor, full_matrices=False, check_finite=False)
    solve = _squares if targets.kind == "squares" else _logistic
    solutions = solve(standard @ axes.T, np.square(singular), targets, l2s, intercept)
    del standard, factor
    for l2, (weights, bias, iterations, gradient) in zip(l2s, solutions, strict=True):
        weight = (inverse[:, None] * (axes.T @ weights)).T
        bias = bias - weight @ mean
        if targets.kind == "pair":
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        yield Head(weight, bias, l2, iterations, gradient)


Solution = tuple[np.ndarray, np.ndarray, int, float]
"""Weights [axes, outputs], bias [outputs], iterations, and the gradient's largest entry."""


def _squares(turned: np.ndarray, curvature: np.ndarray, targets: Targets, l2s: Sequence[float], intercept: bool) -> Iterator[Solution]:
    """Ridge regression: a formula on each axis."""
    bias = targets.positive.mean(0) * intercept
    product = turned.T @ (targets.positive - bias)
    for l2 in l2s:
        yield product / (curvature + l2)[:, None], bias, 0, 0.0


def _logistic(turned: np.ndarray, curvature: np.ndarray, targets: Targets, l2s: Sequence[float], intercept: bool) -> Iterator[Solution]:
    """Logistic regressions by L-BFGS, in coordinates whose curvature is that of the classes' shares: about 1 all round."""
    num_rows, num_axes = turned.shape
    if intercept:
        turned = np.concatenate([turned, np.ones((num_rows, 1))], 1)
        curvature = np.append(curvature, num_rows)
    total = targets.positive + targets.negative
    mass = total.sum() / num_rows if targets.kind == "softmax" else total.mean(0)
    share = targets.positive.mean(0) / mass
    curvature = curvature[:, None] * mass * np.maximum(share * (1 - share), LEAST_CURVATURE)
    losses = _softmax_losses if targets.kind == "softmax" else _sigmoid_losses
    solution = np.zeros(curvature.shape)
    for l2 in l2s:
        penalty = np.full((len(solution), 1), l2)
        penalty[num_axes:] = 0
        scale = np.sqrt(num_rows / (curvature + penalty))

        def objective(flat: np.ndarray, penalty: np.ndarray = penalty, scale: np.ndarray = scale) -> tuple[float, np.ndarray]:
            weights = flat.reshape(scale.shape) * scale
            loss, slopes = losses(turned @ weights, targets)
            gradient = (turned.T @ slopes + penalty * weights) * scale
            return (loss + float((penalty * weights**2).sum()) / 2) / num_rows, gradient.ravel() / num_rows

        options = {"maxiter": MAX_ITERATIONS, "maxfun": 10 * MAX_ITERATIONS, "gtol": MAX_GRADIENT, "ftol": 0.0, "maxcor": 20}
        found = minimize(objective, (solution / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
        solution = found.x.reshape(scale.shape) * scale
        if targets.kind == "softmax":  # what all classes share changes no answer, and is nothing at the optimum
            solution -= solution.mean(1, keepdims=True)
        bias = solution[num_axes] if intercept else np.zeros(solution.shape[1])
        yield solution[:num_axes], bias, int(found.nit), float(np.abs(found.jac).max())


def _softmax_losses(logits: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """Sum of the losses, and its slopes [rows, classes]."""
    shifted = logits - logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(1, keepdims=True))
    log_shares = shifted - log_sum
    slopes = np.exp(log_shares) * targets.positive.sum(1, keepdims=True) - targets.positive
    return -float((targets.positive * log_shares).sum()), slopes


def _sigmoid_losses(logits: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """Sum of the losses, and its slopes [rows, labels]."""
    loss = targets.positive * np.logaddexp(0, -logits) + targets.negative * np.logaddexp(0, logits)
    return float(loss.sum()), (targets.positive + targets.negative) * expit(logits) - targets.positive


def _choose(job: Job, linear: torch.nn.Linear, features: np.ndarray, targets: Targets, labels: torch.Tensor) -> tuple[Head, float, str]:
    """(head, metric, why): the penalty that is best by `train.metric_for_best_model`, then by loss, on rows it was not fitted to."""
    method: Any = job.spec.method
    if method.l2 == "validation":
        assert job.validation is not None
        held, held_labels = compute_features(job, linear, job.validation), _labels_of(job, job.validation)
        parts: list[tuple[Any, Any]] = [(slice(None), slice(None))]
        what = f"{len(held):,} validation rows"
    else:
        held, held_labels = features, labels
        folds = _folds(job, labels)
        parts = [(folds != fold, folds == fold) for fold in range(folds.max() + 1)]
        what = f"{len(parts)} folds of the training rows, identical texts kept together"
    metric = str(job.spec.train.metric_for_best_model)
    sign = 1 if {**job.task.metrics(job.spec.task), "loss": False}[metric] else -1
    intercept, l2s = linear.bias is not None, penalties(len(features))
    paths = [heads_of(features[rows], targets[rows], l2s, intercept) for rows, _ in parts]
    logits = np.empty((len(held), linear.out_features))
    tried: list[tuple[float, float, Head]] = []
    for heads in zip(*paths, strict=True):
        for head, (_, rows) in zip(heads, parts, strict=True):
            logits[rows] = head.logits(held[rows])
        scores = _scores(job, logits, held_labels)
        tried.append((scores[metric], scores["loss"], heads[0]))
        shown = {f"eval_{name}": scores[name] for name in dict.fromkeys((metric, "loss"))}
        _log(job, {"l2": heads[0].l2, "iterations": max(head.iterations for head in heads), **shown})
        losses = [loss for _, loss, _ in tried]
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    best, _, head = max(tried, key=lambda item: (sign * item[0], -item[1]))
    if len(parts) > 1:
        head = next(heads_of(features, targets, (head.l2,), intercept))
    listed = ", ".join(f"{head.l2:.4g}: {score:.4f}" for score, _, head in tried)
    return head, best, f"{metric} on {what}, by l2: {listed}"


def penalties(num_rows: int) -> list[float]:
    """Those to try, from one so strong that next to nothing is learnt."""
    strongest = math.ceil(2 * math.log10(10 * num_rows))
    return [float(f"{10 ** ((strongest - step) / 2):.4g}") for step in range(NUM_PENALTIES)]


def _folds(job: Job, labels: torch.Tensor) -> np.ndarray:
    """The fold of each training row: shares of classes (or sizes of numbers) alike in all, identical texts in one.

    Raises InputError when there is a single text.
    """
    _, first, group = np.unique(text_hashes(job.train.rows)[job.train.row], return_index=True, return_inverse=True)
    if len(first) < 2:
        found, fix = f"{len(first)} text", "give more rows, or a number for method.l2"
        raise InputError("data.too_small", "there is nothing to choose l2 on", where="method.l2", found=found, fix=fix)
    shuffled = np.random.default_rng(job.spec.train.seed).random(len(first))
    order = np.lexsort((shuffled, *labels.numpy()[first].reshape(len(first), -1).T))
    folds = np.empty(len(first), dtype=np.int64)
    folds[order] = np.arange(len(first)) % NUM_FOLDS
    return folds[group]


def _labels_of(job: Job, encoded: Encoded) -> torch.Tensor:
    return job.task.label_tensor(job.spec.task, encoded.dataset["labels"], (len(encoded), 0))


def _loss(job: Job, logits: np.ndarray, labels: torch.Tensor, label_smoothing: float = 0.0) -> float:
    """The task's mean loss."""
    section = job.spec.task
    loss = job.task.loss(section, torch.from_numpy(logits), labels, label_smoothing)
    return float(loss) / job.task.loss_weight(section, labels.tolist())


def _scores(job: Job, logits: np.ndarray, labels: torch.Tensor) -> dict[str, float]:
    """The task's metrics and its mean loss."""
    meter = job.task.meter(job.spec.task)
    meter.update(torch.from_numpy(logits).float(), labels, None)
    return {**meter.compute(intervals=False)["metrics"], "loss": _loss(job, logits, labels)}


def _log(job: Job, values: dict[str, Any]) -> None:
    """Tells the job's callbacks, as Trainer does when it logs."""
    for callback in job.callbacks:
        callback.on_log(job.arguments, TrainerState(), TrainerControl(), logs=values)
