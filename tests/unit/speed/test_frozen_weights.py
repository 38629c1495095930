"""Frozen weights are in memory once while a run is accelerated, and afterwards what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from tunesmith.models.mapped import PRESENT, pages_of
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts
from tunesmith.speed.stacks import STACKS

CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}


def saved(folder: Path, dtype: torch.dtype) -> Path:
    """A decoder whose weights are several pages each, saved in that type."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, pad_token_id=0, **CONFIG)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Any:
    """It in fp32, with adapters that do something."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted.train()


def bases(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "base_layer" in name}


def gradients(model: Any) -> list[torch.Tensor]:
    """Of the adapters, after one step of bf16."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=torch.arange(1, 25).view(2, 12), attention_mask=torch.ones(2, 12)).logits.float().square().sum()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def run_with_and_without(model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients as all accelerations but the one make them, then with it too; asserts that the weights are afterwards what they were."""
    facts = Facts(
        model, bf16=True, token_ids=lambda: np.arange(25)
    )  # else rows of embeddings are read from the file, with what stands near
    names, _ = choose(facts, [])
    assert names[-1] == "frozen_weights"
    before = {name: parameter.detach().clone() for name, parameter in bases(model).items()}
    with accelerated(facts, names[:-1]):
        without = gradients(model)
    with accelerated(facts, names):
        with_it = gradients(model)
        check_once(model)
    after = bases(model)
    assert all(torch.equal(parameter, before[name]) and parameter.dtype == torch.float32 for name, parameter in after.items())
    assert all(parameter.is_contiguous() for parameter in after.values())
    assert model not in STACKS
    return with_it, without


def check_once(model: Any) -> None:
    """A frozen weight is no page in memory, or part of a matrix that products read."""
    parts = {place.data_ptr() for stack in STACKS[model] for _, place in stack.frozen()}
    for parameter in bases(model).values():
        assert not (pages_of(parameter)[1] & PRESENT).any() or parameter.data_ptr() in parts


def test_weights_of_an_fp32_file_are_given_back(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path, torch.float32))
    with_it, without = run_with_and_without(model)
    assert all(map(torch.equal, with_it, without))


def test_weights_of_a_bf16_file_are_held_in_bf16(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path, torch.bfloat16))
    facts = Facts(model, bf16=True)
    with accelerated(facts, choose(facts, [])[0]):
        assert {parameter.dtype for parameter in bases(model).values()} == {torch.bfloat16}
    with_it, without = run_with_and_without(model)
    assert all(map(torch.equal, with_it, without))


def test_in_fp32_too(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path, torch.bfloat16))
    facts = Facts(model, bf16=False)
    with accelerated(facts, choose(facts, [])[0]):
        check_once(model)
        assert {parameter.dtype for parameter in bases(model).values()} == {torch.float32}


def test_weights_that_were_changed_stay_and_it_is_said(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path, torch.float32))
    with torch.no_grad():
        for parameter in bases(model).values():
            parameter *= 1.01
    names, decisions = choose(Facts(model, bf16=True), [])
    assert "frozen_weights" not in names
    assert "not what the model's file holds" in next(decision.because for decision in decisions if decision.field == "speed.frozen_weights")


@pytest.mark.parametrize(("off", "reason"), [([], "no weight is frozen"), (["linear"], "`linear` holds no copy of a frozen weight")])
def test_why_not(tmp_path: Path, off: list[str], reason: str) -> None:
    model = loaded(saved(tmp_path, torch.float32))
    if not off:
        model.requires_grad_(True)
    _, decisions = choose(Facts(model, bf16=True), off)
    assert next(decision.because for decision in decisions if decision.field == "speed.frozen_weights") == reason


def test_matrices_of_a_trial_are_not_kept(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path, torch.float32))
    facts = Facts(model, bf16=True)
    with accelerated(facts, choose(facts, [])[0]):
        facts.outputs()  # in fp32
        gradients(model)
        kept = {matrix.dtype for stack in STACKS[model] for _, matrix in stack._made.values()}
    assert kept == {torch.bfloat16}


def test_a_frozen_block_is_saved_while_it_is_held(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(saved(tmp_path / "base", torch.bfloat16), dtype=torch.float32)
    model.model.layers[0].requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    facts = Facts(model.train(), bf16=True)
    with accelerated(facts, choose(facts, [])[0]):
        assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
        model.save_pretrained(tmp_path / "checkpoint")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    assert all(torch.equal(parameter, before[name]) for name, parameter in again.named_parameters())
