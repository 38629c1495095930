"""Adapters on language models: what is saved computes what was trained, however it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from method_models import ARCHITECTURES, disturb, load, logits, near, resolved
from pydantic import ValidationError

from tunesmith.errors import InputError
from tunesmith.methods.full import FULL
from tunesmith.methods.lora import LORA, LoraSpec, idle_adapters
from tunesmith.models.load import LoadedModel, load_tokenizer, load_trained
from tunesmith.models.save import card_code, save_model

Save = Callable[..., Path]


def train(folder: Path, new_tokens: int = 0, **settings: Any) -> tuple[Any, LoadedModel, list[int]]:
    """A model with disturbed adapters, and token ids to compute with."""
    loaded, ids = load(folder), [5, 6, 7, 8, 9]
    if new_tokens:
        known = len(load_tokenizer(folder))
        loaded.model.resize_token_embeddings(known + new_tokens)
        loaded.new_token_ids = tuple(range(known, known + new_tokens))
        ids += loaded.new_token_ids
    model = LORA.attach(resolved(LORA, loaded.model, **{"rank": 2, "alpha": 4, **settings}), loaded, "CAUSAL_LM")
    disturb(model)
    return model, loaded, ids


def save(model: Any, base: Path, folder: Path, new_tokens: int = 0) -> Path:
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens([f"<new{index}>" for index in range(new_tokens)], special_tokens=True)
    save_model(model, tokenizer, LORA, folder, base, "a card")
    return folder


def run_card(folder: Path, **settings: Any) -> Any:
    names: dict[str, Any] = {"folder": str(folder)}
    exec(card_code("AutoModelForCausalLM", adapters=True, **settings), names)
    return names["model"]


def plain(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


SETTINGS: list[dict[str, Any]] = [{}, {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}]


def has_bias(model: Any) -> bool:
    return any(name.endswith(".bias") for name, _ in model.named_parameters())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_way_of_loading_computes_what_was_trained(kind: str, settings: dict[str, Any], language_model: Save, tmp_path: Path) -> None:
    base = language_model(kind)
    if "bias" in settings and not has_bias(plain(base)):
        with pytest.raises(InputError) as caught:
            train(base, **settings)
        assert caught.value.code == "spec.no_effect"
        return
    model, _, _ = train(base, **settings)
    expected = logits(model)
    assert (expected - logits(plain(base))).abs().max() > 0.1
    folder = save(model, base, tmp_path / "saved")
    near(logits(run_card(folder)), expected)
    near(logits(load_trained(folder, "AutoModelForCausalLM")), expected)
    near(logits(peft.PeftModel.from_pretrained(plain(base), folder)), expected)
    near(logits(peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)), expected)
    assert LORA.merge is not None
    merged = LORA.merge(plain(base), folder)
    near(logits(merged), expected)
    merged.save_pretrained(tmp_path / "merged")
    near(logits(plain(tmp_path / "merged")), expected)


def test_the_base_is_named_and_not_copied(language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama")
    loaded = load(base)
    loaded.model.name_or_path = "org/base"
    model = LORA.attach(resolved(LORA, loaded.model, rank=2), loaded, "CAUSAL_LM")
    folder = save(model, base, tmp_path / "saved")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert not (folder / "config.json").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


def test_a_saved_model_generates_with_its_cache(language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama")
    loaded = load(base)
    assert loaded.model.config.use_cache is False
    save_model(loaded.model, load_tokenizer(base), FULL, tmp_path / "saved", base, "a card")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "saved").use_cache is True
    assert loaded.model.config.use_cache is False


def test_adapters_whose_base_is_gone_say_which(language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama")
    folder = save(train(base)[0], base, tmp_path / "saved")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        load_trained(folder, "AutoModelForCausalLM")
    assert caught.value.code == "model.load"
    assert str(base) in caught.value.problems[0].fix


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "mica", "pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["model.norm"]}], ids=str)
def test_adapters_of_every_start_fit_the_unchanged_base(start: str, settings: dict[str, Any], language_model: Save, tmp_path: Path) -> None:
    if start == "mica" and "use_dora" in settings:
        with pytest.raises(ValidationError, match="exclude"):
            LoraSpec(init_lora_weights=start, **settings)
        return
    base = language_model("llama")
    model, _, ids = train(base, 2, init_lora_weights=start, **settings)
    expected = logits(model, ids)
    folder = save(model, base, tmp_path / "saved", 2)
    near(logits(load_trained(folder, "AutoModelForCausalLM"), ids), expected)
    assert LORA.merge is not None
    near(logits(LORA.merge(plain(base), folder), ids), expected)
    assert json.loads((folder / "adapter_config.json").read_text())["init_lora_weights"] is True


@pytest.mark.parametrize("start", [True, "gaussian", "mica", "pissa", "pissa_niter_4", "olora"])
def test_before_training_no_start_changes_the_model(start: Any, language_model: Save) -> None:
    loaded = load(language_model("llama"))
    before = logits(loaded.model)
    near(logits(LORA.attach(resolved(LORA, loaded.model, rank=2, init_lora_weights=start), loaded, "CAUSAL_LM")), before)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gpt2", {}),
        ("gemma", {}),
        ("phi", {}),
    ],
    ids=str,
)
def test_new_tokens_train_their_rows_alone(kind: str, config: dict[str, Any], language_model: Save, tmp_path: Path) -> None:
    base = language_model(kind, **config)
    model, _, ids = train(base, 2)
    rows = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad and "trainable_tokens" in name}
    assert rows
    assert {parameter.shape[0] for parameter in rows.values()} == {2}
    expected = logits(model, ids)
    folder = save(model, base, tmp_path / "saved", 2)
    near(logits(load_trained(folder, "AutoModelForCausalLM"), ids), expected)
    near(logits(run_card(folder, new_tokens=True), ids), expected)
    assert LORA.merge is not None
    merged = LORA.merge(plain(base), folder)
    near(logits(merged, ids), expected)
    merged.save_pretrained(tmp_path / "merged")
    near(logits(plain(tmp_path / "merged"), ids), expected)
    if kind != "phi":  # its head has a bias, and is saved whole
        assert (folder / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize("tied", [True, False])
def test_modules_to_save_are_trained_and_come_back(tied: bool, language_model: Save, tmp_path: Path) -> None:
    base = language_model("llama", tie_word_embeddings=tied)
    model, _, _ = train(base, modules_to_save=["lm_head", "model.norm"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("norm.modules_to_save" in name for name in trained)
    expected = logits(model)
    folder = save(model, base, tmp_path / "saved")
    near(logits(load_trained(folder, "AutoModelForCausalLM")), expected)
    assert LORA.merge is not None
    LORA.merge(plain(base), folder).save_pretrained(tmp_path / "merged")
    near(logits(plain(tmp_path / "merged")), expected)


def test_no_language_model_head_of_a_checkpoint_is_new(language_model: Save) -> None:
    for tied in (True, False):
        assert load(language_model("llama", tie_word_embeddings=tied)).head_parameters == frozenset()


@pytest.mark.parametrize(
    ("settings", "code", "fix"),
    [
        ({"target_modules": ["q_porj"]}, "method.no_target", "did you mean q_proj?"),
        ({"modules_to_save": ["nrom"]}, "method.no_target", "did you mean norm?"),
        ({"bias": "lora_only"}, "spec.no_effect", "leave it out"),
        ({"init_lora_weights": "pissa", "rank": 64}, "spec.conflict", "method.rank=8"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: dict[str, Any], code: str, fix: str, language_model: Save) -> None:
    with pytest.raises(InputError) as caught:
        LORA.decide(LoraSpec(**settings), load(language_model("llama")).model)
    assert caught.value.code == code
    assert fix in caught.value.problems[0].fix


def test_olora_is_refused_on_gpt2(language_model: Save) -> None:
    with pytest.raises(InputError, match=r"spec\.conflict"):
        LORA.decide(LoraSpec(init_lora_weights="olora", rank=2), load(language_model("gpt2")).model)


@pytest.mark.parametrize(
    "settings", [{"init_lora_weights": "eva"}, {"init_lora_weights": False}, {"init_lora_weights": "orthogonal", "rank": 3}]
)
def test_starts_that_need_more_than_a_spec_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraSpec(**settings)


def test_adapters_that_no_gradient_reaches_are_named(language_model: Save) -> None:
    loaded = load(language_model("llama"))
    model = LORA.attach(resolved(LORA, loaded.model, rank=2), loaded, "CAUSAL_LM")
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert idle_adapters(model) == []
    cut = "base_model.model.model.layers.1.self_attn.q_proj"
    for name, parameter in model.named_parameters():
        if name.startswith(cut) and parameter.requires_grad:
            parameter.grad = None
    assert idle_adapters(model) == [f"{cut}.lora_A.default.weight", f"{cut}.lora_B.default.weight"]
