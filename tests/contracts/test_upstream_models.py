"""What tunesmith relies on in transformers' and PEFT's loading and saving. Each test says what breaks when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import tiny_models

INPUTS = {"input_ids": torch.tensor([[2, 6, 7, 3]])}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**INPUTS).logits


def test_the_loading_report_names_new_and_misshapen_weights(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    """What is new is drawn from the seed, trained by every method, and said: a weight left out would stay random."""
    _, info = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    model.save_pretrained(tmp_path)
    _, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    names = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    assert names == {"classifier.weight", "classifier.bias"}


def test_the_loading_report_names_weights_that_are_not_used(tmp_path: Path) -> None:
    """`check` says which weights of the checkpoint are left out."""
    folder = tiny_models.save_tiny("bert", tmp_path, "AutoModelForMaskedLM")
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert any(key.startswith("cls.predictions") for key in info["unexpected_keys"])
    assert "bert.pooler.dense.weight" in info["missing_keys"]


def test_head_arguments_reach_the_configuration_and_the_file(checkpoint: Path, tmp_path: Path) -> None:
    """The label names in config.json are what every user of the saved model sees."""
    names = {0: "no", 1: "yes"}
    head = {"num_labels": 2, "problem_type": "single_label_classification", "id2label": names, "label2id": {"no": 0, "yes": 1}}
    AutoModelForSequenceClassification.from_pretrained(checkpoint, **head).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["id2label"] == {"0": "no", "1": "yes"}
    assert saved["problem_type"] == "single_label_classification"
    assert (tmp_path / "model.safetensors").exists()


def test_the_same_seed_draws_the_same_head(checkpoint: Path) -> None:
    """A run, its resumption and its proof start from the same weights."""
    import transformers

    drawn = []
    for _ in range(2):
        transformers.set_seed(5)
        drawn.append(AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2).classifier.weight)
    torch.testing.assert_close(drawn[0], drawn[1], atol=0, rtol=0)
    assert drawn[0].abs().sum() > 0


def test_pickled_weights_are_refused_when_safetensors_are_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    """No pickle is ever unpickled."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def test_a_tokenizer_comes_back_as_it_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    """The proof compares tokens: padding side, pad token and pairs must survive the folder."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    pair = tokenizer(["the good film"], ["a dull day"])
    assert dict(again(["the good film"], ["a dull day"])) == dict(pair)
    assert pair["token_type_ids"][0] == [0] * 5 + [1] * 4
    assert again.pad_token_id == tokenizer.pad_token_id == 0


def adapted(model: Any, modules_to_save: list[str]) -> peft.PeftModel:
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["attention.self.query", "output.dense"], modules_to_save=modules_to_save
    )
    return peft.get_peft_model(model, config)


def test_peft_takes_ends_of_names_as_targets(model: Any) -> None:
    """`target_modules: auto` names kinds of layers by the end that they share."""
    names = {name for name, _ in adapted(model, ["classifier"]).named_modules() if name.endswith("lora_A")}
    layers = {name.removeprefix("base_model.model.").removesuffix(".lora_A") for name in names}
    kinds = ("attention.self.query", "attention.output.dense", "output.dense")
    assert layers == {f"bert.encoder.layer.{layer}.{kind}" for layer in (0, 1) for kind in kinds}


def test_peft_saves_modules_by_their_full_path(tmp_path: Path) -> None:
    """A new layer inside the body, such as BERT's pooler, is trained in full and saved beside the head."""
    model = adapted(
        BertForSequenceClassification(AutoConfig.from_pretrained(tiny_models.save_tiny("bert", tmp_path))),
        ["bert.pooler.dense", "classifier"],
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert trained == {
        f"base_model.model.{name}.modules_to_save.default.{kind}"
        for name in ("bert.pooler.dense", "classifier")
        for kind in ("weight", "bias")
    }
    saved = peft.get_peft_model_state_dict(model)
    assert {"base_model.model.bert.pooler.dense.weight", "base_model.model.classifier.weight"} <= set(saved)


def test_an_adapter_with_its_base_and_configuration_in_one_folder_is_loaded_by_transformers_alone(checkpoint: Path, tmp_path: Path) -> None:
    """The model card of a LoRA run is one line: `from_pretrained(folder)`."""
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    model = adapted(base, ["classifier"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    base.config.save_pretrained(tmp_path)
    shutil.copyfile(checkpoint / "model.safetensors", tmp_path / "model.safetensors")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model))
    with model.disable_adapter():
        assert (logits(loaded) - logits(model)).abs().max() > 1e-3


def test_peft_alone_loads_an_adapter_onto_a_base_with_the_saved_configuration(checkpoint: Path, tmp_path: Path) -> None:
    """Other tools load adapters by PeftModel."""
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    model = adapted(base, ["classifier"])
    model.save_pretrained(tmp_path / "adapter")
    base.config.save_pretrained(tmp_path / "adapter")
    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint, config=config, ignore_mismatched_sizes=True)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(model))


def test_writing_over_a_linked_file_leaves_the_other_name_alone(tmp_path: Path) -> None:
    """A LoRA run links its base's weights: writing a merged model over the link must not change the base."""
    from safetensors.torch import load_file, save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "base.safetensors")
    (tmp_path / "linked.safetensors").hardlink_to(tmp_path / "base.safetensors")
    save_file({"weight": torch.ones(3)}, tmp_path / "linked.safetensors")
    assert load_file(tmp_path / "base.safetensors")["weight"].sum() == 0
