"""QLoRA: the quantised base computes the same whenever it is loaded, before and after it was evaluated."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from method_models import disturb, load, logits, near, resolved
from pydantic import ValidationError

import tiny_models
from tunesmith.errors import InputError
from tunesmith.methods.full import FULL
from tunesmith.methods.lora import LORA, QLORA, QLoraSpec, idle_adapters
from tunesmith.models.load import load_model, load_tokenizer, load_trained
from tunesmith.models.save import card_code, save_model
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

Save = Callable[..., Path]
BITS = pytest.mark.parametrize("bits", [4, 8])


def train(folder: Path, **settings: Any) -> tuple[Any, Any]:
    section = QLoraSpec(rank=2, **settings)
    loaded = load(folder, QLORA.quantization(section))
    model = QLORA.attach(resolved(QLORA, loaded.model, rank=2, **settings), loaded, "CAUSAL_LM")
    return model, QLORA.quantization(section)


def backward(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    ids = torch.tensor([[5, 6, 7, 8]])
    model.train()(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@BITS
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_only_the_body_is_quantised_and_adapters_learn(kind: str, bits: int, language_model: Save) -> None:
    model, _ = train(language_model(kind, tie_word_embeddings=False), bits=bits, dropout=0.0)
    whole = {parameter.dtype for name, parameter in model.named_parameters() if "base_layer.weight" not in name}
    packed = {parameter.dtype for name, parameter in model.named_parameters() if "base_layer.weight" in name}
    assert whole == {torch.float32}
    assert packed == {torch.uint8 if bits == 4 else torch.int8}
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    backward(model)
    assert idle_adapters(model) == []


@BITS
def test_an_evaluation_changes_neither_results_nor_gradients(bits: int, language_model: Save) -> None:
    model, _ = train(language_model("llama"), bits=bits, dropout=0.0)
    disturb(model)
    before = backward(model)
    first = logits(model)
    again = backward(model)
    assert torch.equal(logits(model), first)
    assert before.keys() == again.keys()
    assert all(torch.equal(before[name], again[name]) for name in before)


@pytest.mark.parametrize(
    "settings", [{"bits": 4}, {"bits": 4, "quant_type": "fp4", "double_quant": False}, {"bits": 8}, {"bits": 4, "use_dora": True}], ids=str
)
def test_what_is_saved_computes_the_same_to_the_bit_on_a_base_quantised_anew(
    settings: dict[str, Any], language_model: Save, tmp_path: Path
) -> None:
    base = language_model("llama")
    model, quantization = train(base, **settings)
    disturb(model)
    expected, folder = logits(model), tmp_path / "saved"
    save_model(model, load_tokenizer(base), QLORA, folder, base, "a card")
    assert [path.name for path in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert torch.equal(logits(load_trained(folder, "AutoModelForCausalLM", quantization)), expected)
    names: dict[str, Any] = {"folder": str(folder)}
    exec(card_code("AutoModelForCausalLM", adapters=True, quantization=quantization), names)
    assert torch.equal(logits(names["model"]), expected)
    # Without the quantisation it is another model, if a near one.
    assert not torch.equal(logits(load_trained(folder, "AutoModelForCausalLM")), expected)


def test_adapters_merge_into_the_whole_base_and_not_into_the_quantised(language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama")
    model, quantization = train(base)
    disturb(model)
    QLORA.save(model, tmp_path / "saved", base)
    assert QLORA.merge is not None
    with pytest.raises(InputError) as caught:
        QLORA.merge(load(base, quantization).model, tmp_path / "saved")
    assert caught.value.code == "spec.conflict"
    whole = load_trained(tmp_path / "saved", "AutoModelForCausalLM")
    near(logits(QLORA.merge(load(base).model, tmp_path / "saved")), logits(whole))


@BITS
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifier_keeps_its_head_and_biases_whole(kind: str, bits: int, tmp_path: Path) -> None:
    base = tiny_models.save_tiny(kind, tmp_path / "base")
    task = TextClassificationSpec(problem_type="single_label_classification", labels=["bad", "good", "fair"], label_separator="none")
    quantization = QLORA.quantization(QLoraSpec(rank=2, bits=bits))
    plain = transformers.AutoModel.from_pretrained(base)
    for name, parameter in plain.named_parameters():
        if name.endswith("dense.bias"):
            torch.nn.init.constant_(parameter, 0.1)  # which bf16 does not have
    plain.save_pretrained(base)
    loaded = load_model(base, TEXT_CLASSIFICATION, TEXT_CLASSIFICATION.head(task), 0, quantization)
    model = QLORA.attach(resolved(QLORA, loaded.model, rank=2, bits=bits), loaded, "SEQ_CLS")
    disturb(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits(model)  # as in training
    expected = logits(model)
    save_model(model, load_tokenizer(base), QLORA, tmp_path / "saved", base, "a card")
    again = load_trained(tmp_path / "saved", "AutoModelForSequenceClassification", quantization)
    assert torch.equal(logits(again), expected)
    assert again.config.id2label == {0: "bad", 1: "good", 2: "fair"}
    assert not hasattr(transformers.AutoConfig.from_pretrained(tmp_path / "saved"), "quantization_config")


def quantised_checkpoint(base: Path, folder: Path) -> Path:
    load(base, QLORA.quantization(QLoraSpec())).model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def test_a_checkpoint_that_is_quantised_already_is_trained_as_it_is(language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama")
    checkpoint = quantised_checkpoint(base, tmp_path / "4bit")
    model, quantization = train(checkpoint)
    disturb(model)
    expected = logits(model)
    QLORA.save(model, tmp_path / "saved", checkpoint)
    assert torch.equal(logits(load_trained(tmp_path / "saved", "AutoModelForCausalLM", quantization)), expected)


@pytest.mark.parametrize(
    ("method", "settings", "fix"),
    [(FULL, {}, "method: qlora"), (LORA, {}, "method: qlora"), (QLORA, {"bits": 8}, "method.bits=4"), (QLORA, {"quant_type": "fp4"}, "method.quant_type=nf4")],
    ids=lambda value: getattr(value, "name", None) or str(value),
)  # fmt: skip
def test_a_quantised_checkpoint_is_refused_with_what_would_do(
    method: Any, settings: dict[str, Any], fix: str, language_model: Save, tmp_path: Path
) -> None:
    checkpoint = quantised_checkpoint(language_model("llama"), tmp_path / "4bit")
    with pytest.raises(InputError) as caught:
        load(checkpoint, method.quantization(method.spec(**settings)))
    assert caught.value.code == "spec.conflict"
    assert fix in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 8, "quant_type": "fp4"}, "no effect"),
        ({"bits": 8, "double_quant": False}, "no effect"),
        ({"bits": 8, "compute_dtype": "bf16"}, "no effect"),
        ({"init_lora_weights": "pissa"}, "quantise the base anew"),
        ({"bits": 2}, "4 or 8"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QLoraSpec(**settings)


def test_every_auto_is_decided_and_the_resolved_section_is_valid(language_model: Save) -> None:
    for bits in (4, 8):
        loaded = load(language_model("llama"), QLORA.quantization(QLoraSpec(bits=bits)))
        section = resolved(QLORA, loaded.model, bits=bits)
        assert section.compute_dtype == "fp32"
        assert QLoraSpec(**copy.deepcopy(section.model_dump())) == section


def test_layers_that_are_skipped_stay_whole(language_model: Save) -> None:
    base = language_model("llama")
    model, _ = train(base, skip_modules=["down_proj"])
    dtypes = {name.split(".")[-3]: parameter.dtype for name, parameter in model.named_parameters() if "base_layer.weight" in name}
    assert dtypes["down_proj"] == torch.float32
    assert dtypes["up_proj"] == torch.uint8
    with pytest.raises(InputError) as caught:
        train(base, skip_modules=["no_such"])
    assert caught.value.code == "method.no_target"


def test_a_module_that_is_trained_whole_must_be_skipped(language_model: Save) -> None:
    base = language_model("llama")
    settings = {"modules_to_save": ["model.layers.0.mlp.down_proj"], "target_modules": ["q_proj"]}
    with pytest.raises(InputError) as caught:
        train(base, **settings)
    assert "method.skip_modules" in caught.value.problems[0].fix
    model, _ = train(base, skip_modules=["layers.0.mlp.down_proj"], **settings)
    assert any("down_proj.modules_to_save" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError) as caught:
        QLORA.quantization(QLoraSpec())
    assert caught.value.code == "usage.missing_extra"
    assert caught.value.problems[0].fix == "pip install 'tunesmith[quant]'"
