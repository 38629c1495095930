from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_models
from tunesmith.errors import InputError
from tunesmith.methods.full import FULL, FullSpec
from tunesmith.methods.lora import LORA, LoraSpec, linear_modules, modules_of
from tunesmith.models.load import LoadedModel, count_parameters, load_trained

HEAD = frozenset({"classifier.weight", "classifier.bias"})
INPUTS = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("bert", tmp_path_factory.mktemp("lora") / "bert")


def classifier(checkpoint: Path, num_labels: int = 3) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=num_labels, ignore_mismatched_sizes=True)


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(model, HEAD, [])


def resolved(model: Any, **settings: Any) -> LoraSpec:
    section = LoraSpec(**settings)
    return section.model_copy(update={"target_modules": LORA.decide(section, model)[0].value})


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**INPUTS).logits


def disturb(model: Any) -> None:
    """What training would change."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)


def test_auto_is_every_linear_layer_of_the_body(checkpoint: Path) -> None:
    model = classifier(checkpoint)
    [decision] = LORA.decide(LoraSpec(), model)
    assert decision.field == "method.target_modules"
    assert decision.value == sorted(
        [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
            "bert.pooler.dense",
        ]
    )
    assert len(linear_modules(model)) == 13
    attached = LORA.attach(LoraSpec(target_modules=decision.value, rank=2), loaded(model), "SEQ_CLS")
    adapted = {name for name, _ in attached.named_modules() if name.endswith("lora_A")}
    assert len(adapted) == 13


def test_a_target_that_does_not_exist_is_named_with_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(InputError) as caught:
        LORA.decide(LoraSpec(target_modules=["query", "vallue"]), classifier(checkpoint))
    [problem] = caught.value.problems
    assert (problem.code, problem.found, problem.fix) == ("method.no_target", "vallue", "did you mean value?")


@pytest.mark.parametrize("targets", [["query"], ["self.query"], ["bert.encoder.layer.0.attention.self.query", "value"]])
def test_targets_may_be_names_or_ends_of_names(checkpoint: Path, targets: list[str]) -> None:
    model = classifier(checkpoint)
    assert LORA.decide(LoraSpec(target_modules=targets), model) == []
    attached = LORA.attach(LoraSpec(target_modules=targets), loaded(model), "SEQ_CLS")
    assert any("lora_A" in name for name, _ in attached.named_modules())


def test_only_adapters_and_new_weights_are_trained(checkpoint: Path) -> None:
    model = classifier(checkpoint)
    attached = LORA.attach(resolved(model, rank=4), loaded(model), "SEQ_CLS")
    trained = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    trainable, every = count_parameters(attached)
    assert 0 < trainable < every


def test_rank_alpha_and_scaling_arrive(checkpoint: Path) -> None:
    model = classifier(checkpoint)
    attached = LORA.attach(resolved(model, rank=4, alpha=8, use_rslora=True, dropout=0.25, bias="all"), loaded(model), "SEQ_CLS")
    config = attached.peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_dropout, config.bias) == (4, 8, True, 0.25, "all")
    layer = attached.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    assert layer.scaling["default"] == 4.0
    assert layer.base_layer.bias.requires_grad
    assert not layer.base_layer.weight.requires_grad


def test_before_training_the_adapters_change_nothing(checkpoint: Path) -> None:
    model = classifier(checkpoint)
    before = logits(model)
    attached = LORA.attach(resolved(model), loaded(model), "SEQ_CLS")
    torch.testing.assert_close(logits(attached), before, atol=0, rtol=0)


def test_new_modules_are_whole_outside_the_body_and_single_inside_it(checkpoint: Path) -> None:
    new = frozenset({"classifier.weight", "classifier.out_proj.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"})
    assert modules_of(classifier(checkpoint), new) == ["bert.pooler.dense", "classifier"]


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_saved_folder_is_complete_without_the_base(checkpoint: Path, tmp_path: Path, bias: str) -> None:
    base = shutil.copytree(checkpoint, tmp_path / "base")
    model = classifier(base)
    attached = LORA.attach(resolved(model, rank=2, bias=bias), loaded(model), "SEQ_CLS")
    disturb(attached)
    LORA.save(attached, tmp_path / "saved", base)
    shutil.rmtree(base)
    moved = shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = load_trained(Path(moved), "AutoModelForSequenceClassification")
    torch.testing.assert_close(logits(again), logits(attached))


def test_a_base_whose_own_head_has_another_shape_is_written_anew(checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    classifier(checkpoint, num_labels=5).save_pretrained(base)
    model = classifier(base, num_labels=2)
    attached = LORA.attach(resolved(model, rank=2), loaded(model), "SEQ_CLS")
    disturb(attached)
    LORA.save(attached, tmp_path / "saved", base)
    again = load_trained(tmp_path / "saved", "AutoModelForSequenceClassification")
    assert logits(again).shape == (1, 2)
    torch.testing.assert_close(logits(again), logits(attached))


def test_the_base_is_not_changed_by_training_or_saving(checkpoint: Path, tmp_path: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    model = classifier(checkpoint)
    attached = LORA.attach(resolved(model, rank=2), loaded(model), "SEQ_CLS")
    disturb(attached)
    for _ in range(2):  # a run that is killed after it has saved does so again
        LORA.save(attached, tmp_path / "saved", checkpoint)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["r"] == 2


def test_full_trains_and_saves_every_weight(checkpoint: Path, tmp_path: Path) -> None:
    model = classifier(checkpoint)
    model.bert.embeddings.requires_grad_(False)
    assert FULL.decide(FullSpec(), model) == []
    attached = FULL.attach(FullSpec(), loaded(model), "SEQ_CLS")
    assert count_parameters(attached)[0] == count_parameters(attached)[1]
    disturb(attached)
    FULL.save(attached, tmp_path, checkpoint)
    torch.testing.assert_close(logits(load_trained(tmp_path, "AutoModelForSequenceClassification")), logits(attached))
