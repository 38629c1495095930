"""What kernels compute of a stack is what products one by one make of it, whatever memory holds before it is written."""

from __future__ import annotations

import pytest
import torch

from tunesmith.native.products import has_products
from tunesmith.speed.stack_products import ByKernels, ByTorch, Products, Seeds
from tunesmith.speed.stacks import Layer, Stack

pytestmark = pytest.mark.skipif(not has_products(), reason="there is no kernel for this processor")

BF16 = torch.bfloat16
ALL = frozenset(("weight", "bias", "lora_a", "lora_b"))


def made(ranks: list[int], has_bias: bool = True) -> Stack:
    torch.manual_seed(0)
    layers = []
    for size, rank, scale in zip((100, 24, 64), ranks, (2.0, 0.5, 1.5), strict=True):
        plain = torch.nn.Linear(96, size, bias=has_bias)
        lora_a, lora_b = torch.nn.Parameter(torch.randn(rank, 96)), torch.nn.Parameter(torch.randn(size, rank))
        layers.append(Layer(plain, plain.weight, plain.bias, *((lora_a, lora_b) if rank else (None, None)), scale, torch.nn.Dropout(0.25)))
    return Stack(layers, BF16)


def both(stack: Stack) -> tuple[Products, Products]:
    """By kernels and by torch, each from matrices of its own."""
    found = []
    for kind in (ByKernels, ByTorch):
        weight = stack.weight(BF16).clone()
        products: Products = kind(stack, weight, stack.bias(BF16))
        products.place_adapters()
        found.append((products, weight))
    (kernels, first), (by_torch, second) = found
    assert torch.equal(first, second)
    stack.kept = found  # type: ignore[attr-defined]  # kernels know where the matrix lies, not that it is theirs
    return kernels, by_torch


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Two roundings of sums in another order apart, at most."""
    return float((found.double() - expected.double()).abs().max()) <= 2**-6 * float(expected.abs().max())


def room_of(values: torch.Tensor, between: int) -> torch.Tensor:
    return torch.cat([values, torch.full((len(values), between), torch.nan, dtype=BF16)], 1)


@pytest.mark.parametrize("rows", [1, 37, 130])
@pytest.mark.parametrize("seeds", [None, [11, None, 13]])
@pytest.mark.parametrize("ranks", [[4, 4, 4], [3, 0, 8], [16, 16, 16], [0, 0, 0]])
@pytest.mark.parametrize("has_bias", [True, False])
def test_kernels_are_products_one_by_one(
    rows: int, seeds: Seeds, ranks: list[int], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = made(ranks, has_bias)
    kernels, by_torch = both(stack)
    x, grad = torch.randn(rows, 96, dtype=BF16), torch.randn(rows, 188, dtype=BF16)
    seeds, needs = seeds if any(ranks) else None, ALL - (set() if any(ranks) else {"lora_a", "lora_b"}) - (set() if has_bias else {"bias"})
    monkeypatch.setattr(torch, "empty", lambda *sizes, **named: torch.zeros(*sizes, **named).fill_(torch.nan))
    found = []
    with torch.no_grad():
        for products in (kernels, by_torch):
            room, grad_room = room_of(x, stack.between), room_of(grad, stack.between)
            outputs, of_input = products.multiply(room, seeds), products.differentiate(grad_room, seeds, True)
            assert of_input is not None
            gradients = products.of_parameters(room, grad_room, seeds, needs)
            found.append((outputs, of_input, room, grad_room, gradients))
    for mine, theirs in zip(found[0][:4], found[1][:4], strict=True):
        assert close(mine, theirs)
    mine, theirs = found[0][4], found[1][4]
    assert mine.keys() == theirs.keys() == needs
    for name, parts in mine.items():
        for part, other in zip(parts, theirs[name], strict=True):
            assert part.shape == other.shape
            assert not part.numel() or close(part, other)


@pytest.mark.parametrize("needs", [{"bias"}, {"weight"}, {"lora_a"}, {"lora_b"}, {"weight", "lora_b"}])
def test_what_is_not_needed_is_not_made(needs: set[str]) -> None:
    stack = made([4, 4, 4])
    for products in both(stack):
        room, grad_room = torch.randn(9, 128, dtype=BF16), torch.randn(9, 220, dtype=BF16)
        found = products.of_parameters(room, grad_room, None, needs)
        assert found.keys() == needs | ({"lora_a", "lora_b"} if needs & {"lora_a", "lora_b"} else set())


def test_the_gradient_of_an_input_nobody_needs_is_not_made() -> None:
    stack = made([4, 4, 4])
    grad_room = room_of(torch.randn(9, 188, dtype=BF16), stack.between)
    for products in both(stack):
        assert products.differentiate(grad_room.clone(), None, False) is None


def test_bits_do_not_depend_on_threads() -> None:
    stack = made([4, 4, 4])
    kernels, _ = both(stack)
    x, grad = torch.randn(700, 96, dtype=BF16), torch.randn(700, 188, dtype=BF16)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            room, grad_room = room_of(x, stack.between), room_of(grad, stack.between)
            outputs, of_input = kernels.multiply(room, [1, 2, 3]), kernels.differentiate(grad_room, [1, 2, 3], True)
            gradients = kernels.of_parameters(room, grad_room, [1, 2, 3], ALL)
            assert of_input is not None
            found.append([outputs, of_input, *(part for name in sorted(ALL) for part in gradients[name])])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


def test_a_room_of_another_width_or_type_is_refused() -> None:
    kernels, _ = both(made([4, 4, 4]))
    for wrong in (torch.randn(3, 96, dtype=BF16), torch.randn(3, 128), torch.randn(128, 3, dtype=BF16).t()):
        with pytest.raises(AssertionError):
            kernels.multiply(wrong, None)
