"""With accelerations a model computes what it computes without: losses, gradients, and afterwards it is as it was."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny_models
from tunesmith.methods.freeze import FREEZE, FreezeSpec
from tunesmith.models.load import LoadedModel
from tunesmith.native.products import has_products
from tunesmith.registry import ACCELERATIONS
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts

LENGTHS = (23, 17, 17, 5, 2)
VOCABULARY = 64
NEEDED = {"last_block": ("end_to_end",), "encoder_blocks": ("end_to_end", "linear"), "decoder_blocks": ("end_to_end", "linear")}
"""What an acceleration is made of."""


def batch() -> dict[str, torch.Tensor]:
    """Rows of several lengths, padded to a multiple of 8."""
    width = -(-max(LENGTHS) // 8) * 8
    mask = torch.arange(width)[None, :] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, 30, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def classifier(kind: str, folder: Path) -> Any:
    """A tiny classifier of that kind in training mode, without dropout."""
    tiny_models.save_tiny(kind, folder, "AutoModelForSequenceClassification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = model.config.pad_token_id or 0
    return without_dropout(model).train()


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def facts_of(model: Any, bf16: bool = False) -> Facts:
    facts = Facts(model, bf16)
    facts.token_ids = lambda: np.unique(batch()["input_ids"].numpy())
    return facts


def gradients(model: Any, bf16: bool = False) -> dict[str, torch.Tensor]:
    """Those of a sum over the logits of real tokens (or of rows) times fixed weights, by name; the sum as `loss`."""
    model.zero_grad()
    inputs = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(**inputs).logits.float()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    if logits.dim() == 3:
        weights *= inputs["attention_mask"][..., None]
    loss = (logits * weights).sum()
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), **found}


def whole(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients in the shapes of the others: those of embedding rows in use in the places of the whole matrix."""
    used = np.unique(batch()["input_ids"].numpy())
    result = dict(found)
    for name, gradient in found.items():
        if gradient.shape != expected[name].shape:
            result[name] = torch.zeros_like(expected[name])
            result[name][used[: len(gradient)]] = gradient
    return result


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest element (or the largest of all, by a thousandth)."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for name, gradient in expected.items() if name != "loss")
    return max(
        float((found[name] - gradient).abs().max()) / max(float(gradient.abs().max()), 1e-3 * largest)
        for name, gradient in expected.items()
    )


def assert_same(model: Any, off: list[str] | None = None, bf16: bool = False) -> list[str]:
    """Holds the accelerated model to the plain one, in fp32 even where it is made faster for `bf16`; returns what accelerated it."""
    facts = facts_of(model, bf16)
    names, _ = choose(facts, off or [])
    expected = gradients(model)
    with accelerated(facts, names):
        found = whole(gradients(model), expected)
    assert apart(found, expected) < 2e-4
    assert apart(gradients(model), expected) == 0.0  # as it was
    assert not any("forward" in module.__dict__ for module in model.modules())
    return names


@pytest.mark.parametrize("kind", sorted(tiny_models.ENCODERS))
def test_encoders(kind: str, tmp_path: Path) -> None:
    names = assert_same(classifier(kind, tmp_path))
    assert ("end_to_end" in names) == (kind != "deberta-v2")
    assert ("last_block" in names) == (kind not in ("albert", "deberta-v2", "modernbert"))


@pytest.mark.parametrize("kind", sorted(tiny_models.LANGUAGE_MODELS))
def test_decoders(kind: str) -> None:
    names = assert_same(without_dropout(tiny_models.tiny_decoder(kind, VOCABULARY)).train())
    assert ("end_to_end" in names) == (kind != "gemma2")


@pytest.mark.parametrize("name", [name for name in ACCELERATIONS.names() if name != "liger"])  # which is for GPUs: test_liger.py
def test_each_alone(name: str, tmp_path: Path) -> None:
    needed = {name, *NEEDED.get(name, ())}
    others = [other for other in ACCELERATIONS.names() if other not in needed]
    decoders = [tiny_models.tiny_decoder("llama", VOCABULARY, tie_word_embeddings=tied) for tied in (False, True)]
    models = [classifier("bert", tmp_path), *(without_dropout(decoder).train() for decoder in decoders)]
    used = [assert_same(model, others, bf16=name.endswith("_blocks")) for model in models]
    unseen = name in ("dropout", "frozen_weights", "frozen_features") or (name.endswith("_blocks") and not has_products())
    assert unseen or needed in map(set, used)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}])
def test_adapters(settings: dict[str, Any]) -> None:
    model = without_dropout(tiny_models.tiny_decoder("llama", VOCABULARY))
    assert "end_to_end" in assert_same(tiny_models.adapted(model, **settings))


def test_dropout_of_adapters_is_the_same_forward_and_backward() -> None:
    """The gradient along a direction is the slope of the loss: forward and backward draw one mask."""
    model = tiny_models.adapted(without_dropout(tiny_models.tiny_decoder("llama", VOCABULARY)), lora_dropout=0.5)
    facts = facts_of(model)
    names, _ = choose(facts, [])
    assert "linear" in names

    def loss_at_one_seed() -> torch.Tensor:
        torch.manual_seed(3)
        return gradients(model)["loss"]

    with accelerated(facts, names):
        weight = next(parameter for name, parameter in model.named_parameters() if "layers.0.self_attn.k_proj.lora_A" in name)
        loss_at_one_seed()
        direction = torch.sign(weight.grad)
        slope = float((weight.grad * direction).sum())
        ends = []
        for step in (1e-3, -2e-3):
            with torch.no_grad():
                weight += step * direction
            ends.append(float(loss_at_one_seed()))
        torch.manual_seed(4)
        assert float(gradients(model)["loss"]) != ends[1]
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("make", [lambda model: model, tiny_models.adapted], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_bf16_is_no_further_from_fp32(kind: str, make: Callable[[Any], Any]) -> None:
    """On average: of one model either may be twice as far, by luck."""

    def error(of: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
        return float(sum(((of[name] - gradient) / gradient.abs().max()).pow(2).mean() for name, gradient in exact.items()) ** 0.5)

    ratios = []
    for seed in range(16):
        model = make(without_dropout(tiny_models.tiny_decoder(kind, VOCABULARY, seed))).train()
        exact, plain = gradients(model), gradients(model, bf16=True)
        facts = facts_of(model, bf16=True)
        names, _ = choose(facts, [])
        with accelerated(facts, names):
            found = whole(gradients(model, bf16=True), exact)
        ratios.append(error(found, exact) / error(plain, exact))
    assert statistics.geometric_mean(ratios) < 1.25, ratios


def test_a_changed_weight_is_seen(tmp_path: Path) -> None:
    model = classifier("bert", tmp_path)
    facts = facts_of(model)
    names, _ = choose(facts, [])
    with accelerated(facts, names):
        gradients(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        found = gradients(model)["loss"]
    assert float(found) == pytest.approx(float(gradients(model)["loss"]), rel=1e-4)


def test_all_can_be_switched_off(tmp_path: Path) -> None:
    names, decisions = choose(facts_of(classifier("bert", tmp_path)), "all")
    assert names == []
    assert {decision.because for decision in decisions} == {"switched off in speed.off"}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_nothing_is_differentiated_below_the_first_trained_block(kind: str, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path)
    loaded = LoadedModel(model, frozenset(), [])
    FREEZE.attach(FreezeSpec(num_blocks=1, train_head=True), loaded, "SEQ_CLS")
    facts = facts_of(model)
    assert facts.blocks is not None
    seen: list[bool] = []
    for block in facts.blocks[1]:
        block.register_forward_hook(
            lambda module, inputs, output: seen.append((output if torch.is_tensor(output) else output[0]).requires_grad)
        )
    names, _ = choose(facts, [])
    with accelerated(facts, names):
        seen.clear()
        gradients(model)
    assert seen == [False, True]
