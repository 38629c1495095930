from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.errors import InputError
from tunesmith.registry import METHODS, Decision
from tunesmith.resolve import (
    Resolved,
    autos,
    check_training,
    decide_max_length,
    decide_training,
    rows_per_step,
    set_value,
    steps_per_epoch,
    total_steps,
)
from tunesmith.spec import RunSpec
from tunesmith.strict import load_spec


def spec_of(method: str = "full", problem_type: str = "single_label_classification", **train: Any) -> RunSpec:
    task = {"name": "text_classification", "problem_type": problem_type}
    return load_spec({"task": task, "model": "minilm", "data": "a.csv", "method": method, "train": train})


def decided(spec: RunSpec, num_rows: int = 1000, has_validation: bool = True) -> tuple[RunSpec, dict[str, str]]:
    decisions = decide_training(spec, num_rows, has_validation)
    return Resolved(spec).decide(decisions).spec, {decision.field: decision.because for decision in decisions}


# decisions


def test_a_decision_changes_its_setting_and_is_kept() -> None:
    spec = spec_of()
    resolved = Resolved(spec).decide([Decision("train.learning_rate", 1e-3, "why"), Decision("pad token", "x", "not a setting")])
    assert resolved.spec.train.learning_rate == 1e-3
    assert spec.train.learning_rate == "auto"
    assert [decision.field for decision in resolved.decisions] == ["train.learning_rate", "pad token"]


@pytest.mark.parametrize("path", [["nothing"], ["train", "nothing"], ["model files"], ["train", "epochs", "deep"]])
def test_a_path_that_is_no_setting_changes_nothing(path: list[str]) -> None:
    spec = spec_of()
    assert set_value(spec, path, 5) == spec


def test_autos_are_found_with_their_dotted_names() -> None:
    assert {"train.learning_rate", "task.labels", "data.columns"} <= set(autos(spec_of()))
    assert "train.epochs" not in autos(spec_of())


def test_what_is_left_undecided_is_said() -> None:
    with pytest.raises(AssertionError, match="undecided") as caught:
        Resolved(spec_of()).assert_decided()
    assert "train.learning_rate" in str(caught.value)
    assert "data.format" not in str(caught.value)


def test_training_leaves_nothing_automatic() -> None:
    spec, reasons = decided(spec_of())
    assert [name for name in autos(spec) if name.startswith("train.")] == []
    assert all(reasons.values())
    assert spec.train.learning_rate == METHODS.get("full").learning_rate
    assert (spec.train.eval_steps, spec.train.save_steps, spec.train.load_best_model_at_end) == ("epoch", "epoch", True)
    assert spec.train.metric_for_best_model == "accuracy"
    check_training(spec, True, 100)


def test_what_the_spec_says_is_not_decided() -> None:
    spec, reasons = decided(spec_of(learning_rate=1e-3, precision="fp32", eval_steps=10, logging_steps=3))
    assert (spec.train.learning_rate, spec.train.precision, spec.train.logging_steps) == (1e-3, "fp32", 3)
    assert (spec.train.eval_steps, spec.train.save_steps) == (10, 10)
    assert not {"train.learning_rate", "train.precision", "train.eval_steps", "train.logging_steps"} & set(reasons)
    check_training(spec, True, 100)


def test_without_validation_rows_nothing_is_evaluated() -> None:
    spec, _ = decided(spec_of(precision="fp32"), has_validation=False)
    assert (spec.train.eval_steps, spec.train.save_steps, spec.train.load_best_model_at_end) == ("none", "epoch", False)
    check_training(spec, False, 100)


@pytest.mark.parametrize("settings", [{"eval_steps": "none"}, {"save_steps": "none"}])
def test_the_best_is_kept_only_when_it_is_evaluated_and_saved(settings: dict[str, Any]) -> None:
    spec, _ = decided(spec_of(precision="fp32", **settings))
    assert spec.train.load_best_model_at_end is False
    check_training(spec, True, 100)


def test_each_method_has_its_learning_rate() -> None:
    spec, reasons = decided(spec_of("lora", precision="fp32"))
    assert spec.train.learning_rate == METHODS.get("lora").learning_rate
    assert "lora" in reasons["train.learning_rate"]


def test_max_steps_overrides_epochs_and_says_so() -> None:
    _, reasons = decided(spec_of(precision="fp32", max_steps=10, epochs=4), 320)
    assert "overrides train.epochs" in reasons["epochs seen"]
    assert "epochs seen" not in decided(spec_of(precision="fp32", max_steps=10))[1]


@pytest.mark.parametrize(("has_bf16", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_gpu_that_only_emulates_bf16_is_given_fp32(has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.resolve.compute_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation)
    assert decided(spec_of())[0].train.precision == precision


@pytest.mark.parametrize(("speedup", "precision"), [(0.8, "fp32"), (3.0, "bf16")])
def test_precision_follows_the_measurement(speedup: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("tunesmith.resolve.bf16_speedup", lambda: speedup)
    assert decided(spec_of())[0].train.precision == precision


# lengths


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([10, 20, 30], 512, 512),
        ([10, 20, 30], 64, 64),
        ([10, 600], 512, 512),
        ([10, 20, 30], 8192, 512),
        ([2000] * 200, 8192, 2048),
        ([2000] * 200 + [9000], 8192, 2048),
        ([100] * 500 + [5000], 8192, 512),
        ([9000] * 10, 8192, 8192),
    ],
)
def test_the_longest_text_read(lengths: list[int], limit: int, expected: int) -> None:
    decision = decide_max_length(np.asarray(lengths), limit)
    assert (decision.field, decision.value) == ("task.max_length", expected)
    assert decision.because


# steps


@pytest.mark.parametrize(
    ("settings", "num_rows", "per_epoch", "total"),
    [
        ({"batch_size": 32, "epochs": 3}, 100, 4, 12),
        ({"batch_size": 32, "epochs": 0.5}, 100, 4, 2),
        ({"batch_size": 32, "epochs": 0.01}, 100, 4, 1),
        ({"batch_size": 32, "gradient_accumulation_steps": 2, "epochs": 1}, 100, 2, 2),
        ({"batch_size": 32, "max_steps": 7, "epochs": 1}, 100, 4, 7),
        ({"batch_size": 1000, "epochs": 2}, 10, 1, 2),
    ],
)
def test_how_many_steps(settings: dict[str, Any], num_rows: int, per_epoch: int, total: int) -> None:
    spec = spec_of(**settings)
    assert steps_per_epoch(spec, num_rows) == per_epoch
    assert total_steps(spec, num_rows) == total
    assert rows_per_step(spec) == settings["batch_size"] * settings.get("gradient_accumulation_steps", 1)


# contradictions


@pytest.mark.parametrize(
    ("settings", "code", "field"),
    [
        ({"metric_for_best_model": "acuracy"}, "spec.value", "metric_for_best_model"),
        ({"eval_steps": 10, "save_steps": 15}, "spec.conflict", "save_steps"),
        ({"eval_steps": 10, "save_steps": "epoch"}, "spec.conflict", "save_steps"),
        ({"eval_steps": "none", "load_best_model_at_end": True}, "spec.conflict", "load_best_model_at_end"),
        ({"early_stopping_patience": 2, "load_best_model_at_end": False}, "spec.conflict", "early_stopping_patience"),
        ({"early_stopping_threshold": 0.1}, "spec.no_effect", "early_stopping_threshold"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 10}, "spec.no_effect", "warmup_steps"),
    ],
)
def test_contradictions_are_refused_where_they_stand(settings: dict[str, Any], code: str, field: str) -> None:
    spec, _ = decided(spec_of(precision="fp32", **settings))
    with pytest.raises(InputError) as caught:
        check_training(spec, True, 100)
    assert (caught.value.code, caught.value.problems[0].where) == (code, f"train.{field}")


@pytest.mark.parametrize("settings", [{"early_stopping_patience": 2}, {"eval_steps": 10}, {"load_best_model_at_end": True}])
def test_what_needs_validation_rows_is_refused_without(settings: dict[str, Any]) -> None:
    spec, _ = decided(spec_of(precision="fp32", **settings), has_validation=False)
    with pytest.raises(InputError) as caught:
        check_training(spec, False, 100)
    assert caught.value.code in ("spec.no_effect", "spec.conflict")


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_label_smoothing_is_for_classes(problem_type: str) -> None:
    spec, _ = decided(spec_of(problem_type=problem_type, precision="fp32", label_smoothing_factor=0.1))
    with pytest.raises(InputError) as caught:
        check_training(spec, True, 100)
    assert caught.value.problems[0].where == "train.label_smoothing_factor"


@pytest.mark.parametrize(
    "settings", [{"eval_steps": 10, "save_steps": 20}, {"metric_for_best_model": "loss"}, {"early_stopping_patience": 1}]
)
def test_what_fits_together_passes(settings: dict[str, Any]) -> None:
    spec, _ = decided(spec_of(precision="fp32", **settings))
    check_training(spec, True, 100)
    assert spec.train.load_best_model_at_end is True
