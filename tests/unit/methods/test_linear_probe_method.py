from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import load

import tiny_models
from tunesmith.errors import InputError
from tunesmith.methods.linear_probe import LINEAR_PROBE, LinearProbeSpec, find_head
from tunesmith.models.load import LoadedModel, load_model
from tunesmith.strict import load_spec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

TASK = TextClassificationSpec(problem_type="single_label_classification", labels=["bad", "good"], label_separator="none")
HEADS = {"roberta": "classifier.out_proj", "xlm-roberta": "classifier.out_proj", "electra": "classifier.out_proj"}


def classifier(kind: str, folder: Path) -> LoadedModel:
    return load_model(tiny_models.save_tiny(kind, folder), TEXT_CLASSIFICATION, TEXT_CLASSIFICATION.head(TASK), 0)


@pytest.mark.parametrize("kind", [*tiny_models.ENCODERS, *tiny_models.DECODERS])
def test_only_the_last_layer_is_fitted_in_every_architecture(kind: str, tmp_path: Path) -> None:
    loaded = classifier(kind, tmp_path)
    head = HEADS.get(kind, "classifier" if kind in tiny_models.ENCODERS else "score")
    assert find_head(loaded.model)[0] == head
    model = LINEAR_PROBE.attach(LinearProbeSpec(), loaded, "SEQ_CLS")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(f"{head}.")}


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("bert", ""), ("llama", ""), ("distilbert", "pre_classifier"), ("roberta", "classifier.dense"), ("deberta-v2", "pooler.dense")],
)
def test_new_layers_before_the_head_are_said_to_be_random(kind: str, layers: str, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path).model
    decisions = LINEAR_PROBE.decide(LinearProbeSpec(), model)
    assert [decision.value for decision in decisions] == ([f"{layers}.weight, {layers}.bias"] if layers else [])
    assert all("features are random" in decision.because for decision in decisions)
    if layers:
        torch.nn.init.normal_(dict(model.named_parameters())[f"{layers}.bias"])
        assert "kept as loaded" in LINEAR_PROBE.decide(LinearProbeSpec(), model)[0].because


def test_a_language_model_is_refused(language_model: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as caught:
        LINEAR_PROBE.decide(LinearProbeSpec(), load(language_model("llama")).model)
    assert caught.value.code == "spec.conflict"
    assert "text_classification" in str(caught.value)


def test_a_model_without_a_linear_head_is_refused(tmp_path: Path) -> None:
    loaded = classifier("bert", tmp_path)
    loaded.model.classifier = torch.nn.Identity()
    with pytest.raises(InputError) as caught:
        LINEAR_PROBE.decide(LinearProbeSpec(), loaded.model)
    assert caught.value.code == "method.no_target"


@pytest.mark.parametrize("l2", [0, -1, "best", True, None, float("inf")])
def test_penalties_that_mean_nothing_are_refused(l2: Any) -> None:
    spec = {"task": "text_classification", "model": "minilm", "data": "a.csv", "method": {"name": "linear_probe", "l2": l2}}
    with pytest.raises(InputError) as caught:
        load_spec(spec)
    assert caught.value.code == "spec.value"
    assert "method.l2" in str(caught.value)
