"""What kernels write and read where rows lie apart is what it is where they do not, and nothing beside it is touched."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tunesmith.native.library import call, library
from tunesmith.native.products import has_products
from tunesmith.native.structs import DecoderPass, EncoderPass
from tunesmith.native.tensors import NAMES

ROWS, WIDTH, ROOM = 37, 80, 96


def apart(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(a matrix of ones, its first columns)."""
    whole = torch.ones(ROWS, ROOM, dtype=dtype)
    return whole, whole[:, :WIDTH]


def moved(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in rows that lie apart."""
    place = torch.empty(ROWS, ROOM, dtype=x.dtype)[:, :WIDTH]
    return place.copy_(x)


def beside_is_untouched(*wholes: torch.Tensor) -> bool:
    """Whether all columns that were not to be written still are ones."""
    return all(bool((whole[:, WIDTH:] == 1).all()) for whole in wholes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["gelu", "gelu_tanh", "silu"])
def test_activations(kernel: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    name = f"{kernel}_{NAMES[dtype]}"
    x, up, grad, end_to_end = (torch.randn(ROWS, WIDTH).to(dtype) for _ in range(4))
    whole, place = apart(dtype)
    call(name, moved(x), place, ROWS, WIDTH, ROOM, ROOM)
    call(name, x, end_to_end, ROWS, WIDTH, WIDTH, WIDTH)
    assert torch.equal(place, end_to_end)
    assert beside_is_untouched(whole)
    whole, place = apart(dtype)
    call(f"backward_{name}", moved(x), moved(grad), place, ROWS, WIDTH, ROOM, ROOM, ROOM)
    call(f"backward_{name}", x, grad, end_to_end, ROWS, WIDTH, WIDTH, WIDTH, WIDTH)
    assert torch.equal(place, end_to_end)
    assert beside_is_untouched(whole)
    whole, place = apart(dtype)
    place.copy_(x)
    call(f"backward_{name}", place, moved(grad), place, ROWS, WIDTH, ROOM, ROOM, ROOM)  # over what it is of
    assert torch.equal(place, end_to_end)
    assert beside_is_untouched(whole)
    whole, place = apart(dtype)
    call(f"times_{name}", moved(x), moved(up), place, ROWS, WIDTH, ROOM, ROOM)
    call(f"times_{name}", x, up, end_to_end, ROWS, WIDTH, WIDTH, WIDTH)
    assert torch.equal(place, end_to_end)
    assert beside_is_untouched(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["gelu", "gelu_tanh", "silu"])
def test_a_gated_activation_is_made_again_with_its_gradients(kernel: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    name = f"{kernel}_{NAMES[dtype]}"
    x, up, grad, product, of_x, of_up = (torch.randn(ROWS, WIDTH).to(dtype) for _ in range(6))
    call(f"times_{name}", x, up, product, ROWS, WIDTH, WIDTH, WIDTH)
    call(f"times_backward_{name}", x, up, grad, of_x, of_up, None, ROWS, WIDTH, WIDTH, WIDTH, WIDTH, 0)
    wholes, (first, second, again) = zip(*(apart(dtype) for _ in range(3)), strict=True)
    call(f"times_backward_{name}", moved(x), moved(up), moved(grad), first, second, again, ROWS, WIDTH, *[ROOM] * 4)
    assert all(map(torch.equal, (first, second, again), (of_x, of_up, product)))
    assert beside_is_untouched(*wholes)
    first, second, again = moved(x), moved(up), moved(grad)
    call(f"times_backward_{name}", first, second, again, first, second, again, ROWS, WIDTH, *[ROOM] * 4)
    assert all(map(torch.equal, (first, second, again), (of_x, of_up, product)))
    over = moved(grad)
    call(f"times_backward_{name}", moved(x), moved(up), over, first, second, over, ROWS, WIDTH, *[ROOM] * 4)
    assert all(map(torch.equal, (first, second, over), (of_x, of_up, product)))


def test_a_layer_norm_is_rounded_too() -> None:
    torch.manual_seed(1)
    x, residual = torch.randn(ROWS, WIDTH).bfloat16(), torch.randn(ROWS, WIDTH)
    weight, bias, total, out, mean, rstd = torch.randn(WIDTH), torch.randn(WIDTH), *torch.empty(2, ROWS, WIDTH), *torch.empty(2, ROWS)
    whole, place = apart(torch.bfloat16)
    call("layer_norm_bf16_fp32", x, residual, weight, bias, total, out, place, ROOM, mean, rstd, ROWS, WIDTH, 1e-5, 0.1, 7)
    assert torch.equal(place, out.bfloat16())
    assert beside_is_untouched(whole)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_of_a_sum_is_made_again_with_its_gradient(given: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    residual, more, weight = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH), torch.randn(WIDTH)
    (some, grad), sizes = torch.randn(2, ROWS, WIDTH).to(dtype), (ROWS, WIDTH)
    x, forward, backward = some if given else None, f"add_rms_norm_{NAMES[dtype]}", f"add_rms_norm_backward_{NAMES[dtype]}"
    first, total, rstd = torch.empty(ROWS, WIDTH, dtype=dtype), residual.clone(), torch.empty(ROWS)
    call(forward, x, residual, weight, total, first, WIDTH, rstd, *sizes, 1e-5)
    assert torch.equal(total, residual + some.float() if given else residual)
    whole, place = apart(dtype)
    call(forward, x, residual, weight, total, place, ROOM, rstd, *sizes, 1e-5)
    assert torch.equal(place, first)
    assert beside_is_untouched(whole)
    (of_total, found), (of_weight, other) = torch.empty(2, ROWS, WIDTH), torch.zeros(2, WIDTH)
    call(backward, None, total, weight, rstd, grad, WIDTH, more, of_total, None, 0, None, 0, of_weight, *sizes)
    wholes, (rounded, again) = zip(*(apart(dtype) for _ in range(2)), strict=True)
    call(backward, x, residual, weight, rstd, moved(grad), ROOM, more, found, rounded, ROOM, again, ROOM, other, *sizes)
    assert all(map(torch.equal, (found, other, rounded, again), (of_total, of_weight, of_total.to(dtype), first)))
    assert beside_is_untouched(*wholes)
    over = moved(grad)
    call(backward, x, residual, weight, rstd, over, ROOM, more, found, None, 0, over, ROOM, other, *sizes)
    assert torch.equal(found, of_total)
    assert torch.equal(over, first)


def test_structs_are_those_of_the_kernels() -> None:
    native = library()
    assert native is not None
    if has_products():
        assert native.encoder_pass_size() == ctypes.sizeof(EncoderPass)
        assert native.decoder_pass_size() == ctypes.sizeof(DecoderPass)
