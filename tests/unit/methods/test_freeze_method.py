from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from method_models import disturb, load, logits, resolved

import tiny_models
from tunesmith.errors import InputError
from tunesmith.methods.freeze import FREEZE, FreezeSpec, blocks_of
from tunesmith.models.load import LoadedModel, load_model, load_trained
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

Save = Callable[..., Path]
TASK = TextClassificationSpec(problem_type="single_label_classification", labels=["bad", "good"], label_separator="none")


def classifier(kind: str, folder: Path) -> LoadedModel:
    return load_model(tiny_models.save_tiny(kind, folder), TEXT_CLASSIFICATION, TEXT_CLASSIFICATION.head(TASK), 0)


def freeze(loaded: LoadedModel, task_type: str = "CAUSAL_LM", **settings: Any) -> set[str]:
    """Names of what is trained."""
    model = FREEZE.attach(resolved(FREEZE, loaded.model, **settings), loaded, task_type)
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}


@pytest.mark.parametrize("kind", [*tiny_models.ENCODERS, *tiny_models.DECODERS])
def test_the_last_block_and_what_follows_are_trained_in_every_classifier(kind: str, tmp_path: Path) -> None:
    loaded = classifier(kind, tmp_path)
    blocks, modules = blocks_of(loaded.model)
    assert len(modules) == (1 if kind == "albert" else 2)
    trained = freeze(loaded, num_blocks=1)
    last = f"{blocks}.{len(modules) - 1}."
    of_blocks = {name for name in trained if name.startswith(f"{blocks}.")}
    assert of_blocks == {name for name, _ in loaded.model.named_parameters() if name.startswith(last)}
    assert loaded.head_parameters <= trained
    assert not any("embed" in name or ".wte." in name or ".wpe." in name for name in trained)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_zero_blocks_train_the_last_norm_and_the_head(kind: str, language_model: Save) -> None:
    trained = freeze(load(language_model(kind, tie_word_embeddings=False)), num_blocks=0)
    norm = {"gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"}}.get(kind, {"model.norm.weight"})
    assert trained == norm | {"lm_head.weight"}


def test_a_tied_head_stays_frozen_with_its_embeddings_and_that_is_said(language_model: Save) -> None:
    loaded = load(language_model("gpt2"))
    [decision] = FREEZE.decide(FreezeSpec(), loaded.model)
    assert (decision.field, decision.value) == ("method.train_head", False)
    assert "embedding matrix" in decision.because
    trained = freeze(loaded, num_blocks=1)
    assert not {"transformer.wte.weight", "lm_head.weight"} & trained


def test_a_tied_head_that_is_to_be_trained_takes_the_embeddings_along(language_model: Save) -> None:
    loaded = load(language_model("gpt2"))
    [decision] = FREEZE.decide(FreezeSpec(train_head=True), loaded.model)
    assert (decision.field, decision.value) == ("embeddings", "trained")
    trained = freeze(loaded, train_head=True, num_blocks=1)
    assert {"transformer.wte.weight", "lm_head.weight"} <= trained
    assert "transformer.wpe.weight" not in trained


def test_embeddings_are_trained_when_asked(language_model: Save) -> None:
    trained = freeze(load(language_model("gpt2")), train_embeddings=True, num_blocks=0)
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= trained


@pytest.mark.parametrize(
    ("kind", "settings", "code"),
    [
        ("llama", {"num_blocks": 3}, "method.no_target"),
        ("gpt2", {"train_embeddings": True, "train_head": False}, "spec.conflict"),
    ],
)
def test_what_cannot_be_is_refused(kind: str, settings: dict[str, Any], code: str, language_model: Save) -> None:
    with pytest.raises(InputError) as caught:
        freeze(load(language_model(kind)), **settings)
    assert caught.value.code == code


def test_new_weights_are_never_frozen(tmp_path: Path, language_model: Save) -> None:
    with pytest.raises(InputError) as caught:
        freeze(classifier("bert", tmp_path / "bert"), train_head=False)
    assert caught.value.problems[0].fix == "method.train_head=true"
    loaded = load(language_model("llama", tie_word_embeddings=False))
    loaded.new_token_ids = (7,)
    with pytest.raises(InputError) as caught:
        freeze(loaded)
    assert caught.value.problems[0].fix == "method.train_embeddings=true"


def test_what_was_trained_is_saved_with_the_rest(language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama")
    loaded = load(base)
    model = FREEZE.attach(resolved(FREEZE, loaded.model, num_blocks=1), loaded, "CAUSAL_LM")
    disturb(model)
    FREEZE.save(model, tmp_path / "saved", base)
    again = load_trained(tmp_path / "saved", "AutoModelForCausalLM")
    assert torch.equal(logits(again), logits(model))
    before = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(again.model.layers[1].mlp.up_proj.weight, before.model.layers[1].mlp.up_proj.weight)
