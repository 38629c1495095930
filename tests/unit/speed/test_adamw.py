from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

import tiny_models
from tunesmith.native.products import has_products
from tunesmith.speed.choose import accelerated
from tunesmith.speed.facts import Facts
from tunesmith.speed.optimizer import AdamW
from tunesmith.speed.stacks import STACKS

SHAPES = ((7, 5), (33,), (1,), (64, 64))


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def groups(of: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": of[:2], "weight_decay": 0.1, "lr": 1e-2}, {"params": of[2:], "weight_decay": 0.0, "lr": 3e-3}]


def draw_grads(of: list[torch.nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in of:
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("max_norm", [1.0, 1e9, float("inf")])
def test_steps_and_clipping_are_torchs(max_norm: float) -> None:
    mine, theirs = parameters(), parameters()
    ours, torchs = AdamW(groups(mine)), torch.optim.AdamW(groups(theirs))
    for step in range(5):
        draw_grads(mine, step)
        draw_grads(theirs, step)
        norm = ours.clip(max_norm)
        assert float(norm) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)), rel=1e-6)
        ours.step()
        torchs.step()
    for found, expected in zip(mine, theirs, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_scale_is_of_one_step() -> None:
    mine, theirs = parameters(), parameters()
    ours, torchs = AdamW(groups(mine)), torch.optim.AdamW(groups(theirs))
    for step, clips in enumerate((True, False)):
        draw_grads(mine, step)
        draw_grads(theirs, step)
        if clips:
            ours.clip(0.5)
            torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        ours.step()
        torchs.step()
    assert all(torch.allclose(found, expected, rtol=1e-5, atol=1e-6) for found, expected in zip(mine, theirs, strict=True))


def test_state_goes_from_one_to_the_other() -> None:
    mine, theirs = parameters(), parameters()
    ours, torchs = AdamW(groups(mine)), torch.optim.AdamW(groups(theirs))
    draw_grads(mine, 0)
    ours.step()
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    with torch.no_grad():
        for target, source in zip(theirs, mine, strict=True):
            target.copy_(source)
    for step in (1, 2):
        draw_grads(mine, step)
        draw_grads(theirs, step)
        ours.step()
        torchs.step()
    assert all(torch.allclose(found, expected, rtol=1e-5, atol=1e-6) for found, expected in zip(mine, theirs, strict=True))


def test_a_parameter_without_a_gradient_stays() -> None:
    mine = parameters()
    ours = AdamW(groups(mine))
    draw_grads(mine, 0)
    mine[1].grad = None
    before = mine[1].detach().clone()
    ours.step()
    assert torch.equal(mine[1], before)
    assert mine[1] not in ours.state
    draw_grads(mine, 1)
    ours.step()
    assert (int(ours.state[mine[0]]["step"]), int(ours.state[mine[1]]["step"])) == (2, 1)


def test_gradients_that_are_not_finite_stay_so() -> None:
    mine = parameters()
    ours = AdamW(groups(mine))
    draw_grads(mine, 0)
    mine[0].grad[0, 0] = float("nan")
    assert torch.isnan(ours.clip(1.0))
    ours.step()
    assert torch.isnan(mine[0][0, 0])


@pytest.mark.skipif(not has_products(), reason="no products of bf16")
def test_the_weights_in_bf16_are_written_too(tmp_path: Path) -> None:
    tiny_models.save_tiny("bert", tmp_path, "AutoModelForSequenceClassification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).train()
    ids = torch.arange(5, 29).view(2, 12)
    with accelerated(Facts(model, bf16=True), ["end_to_end", "linear"]):
        ours = AdamW(model.parameters(), model)
        for group in ours.param_groups:
            group["lr"] = 0.1
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().sum().backward()
            ours.step()
            ours.zero_grad()
        stacks = STACKS[model]
        for stack in stacks:
            weight, bias = torch.cat([layer.weight for layer in stack.layers]), torch.cat([layer.bias for layer in stack.layers])
            kept = {name: (list(states), matrix.clone()) for name, (states, matrix) in stack._made.items()}
            assert torch.equal(kept["weight"][1], weight.bfloat16())
            assert torch.equal(kept["bias"][1], bias.bfloat16())
            assert stack.weight(torch.bfloat16).data_ptr() == stack._made["weight"][1].data_ptr()
            assert {name: states for name, (states, _) in stack._made.items()} == {name: states for name, (states, _) in kept.items()}
        with torch.no_grad():
            stacks[0].layers[0].weight.mul_(2)  # by somebody else
        assert torch.equal(stacks[0].weight(torch.bfloat16)[: stacks[0].out_sizes[0]], stacks[0].layers[0].weight.bfloat16())
        for layer in stacks[0].layers:
            layer.weight.grad = torch.ones_like(layer.weight)
        ours.step()
        states, matrix = stacks[0]._made["weight"]
        assert states == [(layer.weight.data_ptr(), layer.weight._version) for layer in stacks[0].layers]  # written, and known to be
        assert torch.equal(matrix, torch.cat([layer.weight for layer in stacks[0].layers]).bfloat16())
