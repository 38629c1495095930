"""Stacks of linear layers with adapters are the layers and adapters one by one, whatever memory holds before it is written."""

from __future__ import annotations

import pytest
import torch

from tunesmith.speed import stacks
from tunesmith.speed.stacks import Layer, Stack


def layers(ranks: list[int], scaling: list[float]) -> list[Layer]:
    made = []
    for size, rank, scale in zip((24, 8, 16), ranks, scaling, strict=True):
        plain = torch.nn.Linear(40, size)
        lora_a, lora_b = torch.nn.Parameter(torch.randn(rank, 40)), torch.nn.Parameter(torch.randn(size, rank))
        adapter = (lora_a, lora_b) if rank else (None, None)
        made.append(Layer(plain, plain.weight, plain.bias, *adapter, scale))
    return made


def one_by_one(x: torch.Tensor, found: list[Layer]) -> torch.Tensor:
    outputs = []
    for layer in found:
        y = torch.nn.functional.linear(x, layer.weight, layer.bias)
        if layer.lora_a is not None and layer.lora_b is not None:
            y = y + x @ layer.lora_a.t() @ layer.lora_b.t() * layer.scaling
        outputs.append(y)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("ranks", [[4, 4, 4], [3, 0, 8], [8, 8, 8], [0, 0, 0]])
def test_outputs_and_gradients(ranks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = layers(ranks, [2.0, 0.5, 1.5])
    stack = Stack(found, torch.float32)
    x = torch.randn(10, 40, requires_grad=True)
    expected, grad = one_by_one(x, found), torch.randn(10, 48)
    wanted = torch.autograd.grad(expected, [x, *stack.parameters], grad)
    monkeypatch.setattr(stacks.torch, "empty", lambda *sizes, **named: torch.full(sizes, torch.nan, **named))
    with torch.no_grad():
        room = stack.placed(x.detach())
        products, wants = stack.products(torch.float32), [True] * len(stack.parameters)
        outputs = products.multiply(room, None)
        room_of_grad = stack.placed_grads(stack.split(grad), len(grad), grad.dtype)
        of_input = products.differentiate(room_of_grad, None, True)
        of_each = stack.of_each(products.of_parameters(room, room_of_grad, None, stack.kinds_of(wants)), wants)
    assert room.shape[1] == 40 + stack.between
    assert room_of_grad.shape[1] == 48 + stack.between
    assert torch.allclose(outputs, expected, rtol=1e-5, atol=1e-4)
    for got, want in zip([of_input, *of_each], wanted, strict=True):
        assert got is not None
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-3)


def test_a_scale_that_stands_with_a_follows_what_is_trained() -> None:
    found = layers([4, 4, 4], [2.0, 2.0, 2.0])
    stack = Stack(found, torch.float32)
    x = torch.randn(5, 40)
    with torch.no_grad():
        stack.products(torch.float32).multiply(stack.placed(x), None)
        for layer in found:
            assert layer.lora_a is not None
            assert layer.lora_b is not None
            layer.lora_a.mul_(0.5)
            layer.lora_b.add_(1)
        assert torch.allclose(stack.products(torch.float32).multiply(stack.placed(x), None), one_by_one(x, found), rtol=1e-5, atol=1e-4)
