"""What kernels write and read where rows lie apart is what it is where they do not, and nothing beside it is touched."""

from __future__ import annotations

import pytest
import torch

from tunesmith.native import passes

ROWS, WIDTH, ROOM = 37, 80, 96


def apart(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(a matrix of ones, its first columns)."""
    whole = torch.ones(ROWS, ROOM, dtype=dtype)
    return whole, whole[:, :WIDTH]


def moved(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in rows that lie apart."""
    place = torch.empty(ROWS, ROOM, dtype=x.dtype)[:, :WIDTH]
    return place.copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["gelu", "gelu_tanh", "silu"])
def test_activations(kernel: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, up, grad = (torch.randn(ROWS, WIDTH).to(dtype) for _ in range(3))
    whole, place = apart(dtype)
    assert passes.activate(x, kernel, place) is place
    assert torch.equal(place, passes.activate(x, kernel))
    assert bool((whole[:, WIDTH:] == 1).all())
    whole, place = apart(dtype)
    assert passes.activate_backward(x, moved(grad), kernel, place) is place
    assert torch.equal(place, passes.activate_backward(x, grad, kernel))
    assert bool((whole[:, WIDTH:] == 1).all())
    whole, place = apart(dtype)
    assert passes.multiply_by_gate(moved(x), moved(up), kernel, place) is place
    assert torch.equal(place, passes.multiply_by_gate(x, up, kernel))
    assert bool((whole[:, WIDTH:] == 1).all())
    both, (whole, place) = torch.ones(ROWS, 2 * WIDTH + 8, dtype=dtype), apart(dtype)
    found = passes.multiply_by_gate_backward(moved(x), moved(up), moved(grad), kernel, both[:, : 2 * WIDTH], place)
    assert torch.equal(found, passes.multiply_by_gate_backward(x, up, grad, kernel))
    assert torch.equal(place, passes.multiply_by_gate(x, up, kernel))
    assert bool((whole[:, WIDTH:] == 1).all())
    over = moved(grad)
    assert torch.equal(passes.multiply_by_gate_backward(moved(x), moved(up), over, kernel, out=over), found)
    assert torch.equal(over, place)
    assert bool((both[:, 2 * WIDTH :] == 1).all())


@pytest.mark.parametrize("given", [True, False])
def test_norms(given: bool) -> None:
    torch.manual_seed(1)
    residual, weight, bias = torch.randn(ROWS, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)
    x = torch.randn(ROWS, WIDTH).bfloat16()
    plain = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16)
    whole, place = apart(torch.bfloat16)
    expected = passes.add_rms_norm(x if given else None, residual, weight, 1e-5, plain)
    found = passes.add_rms_norm(x if given else None, residual, weight, 1e-5, place)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(place, plain)
    assert bool((whole[:, WIDTH:] == 1).all())
    whole, place = apart(torch.bfloat16)
    out, *_ = passes.normalise(x, residual, weight, bias, 1e-5, 0.1, 7, place)
    assert torch.equal(place, out.bfloat16())
    assert bool((whole[:, WIDTH:] == 1).all())


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_made_again_with_its_gradient(given: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    residual, more, weight = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH), torch.randn(WIDTH)
    x, grad = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(ROWS, WIDTH).to(dtype)
    first = torch.empty(ROWS, WIDTH, dtype=dtype)
    total, rstd = passes.add_rms_norm(x if given else None, residual, weight, 1e-5, first)
    plain = passes.add_rms_norm_backward(grad, more, None, total, weight, rstd, True)
    (whole, place), (whole_again, again) = apart(dtype), apart(dtype)
    found = passes.add_rms_norm_backward(moved(grad), more, x if given else None, residual, weight, rstd, True, place, again)
    assert all(map(torch.equal, found, plain))
    assert torch.equal(place, found[0].to(dtype))
    assert torch.equal(again, first)
    assert bool((whole[:, WIDTH:] == 1).all() and (whole_again[:, WIDTH:] == 1).all())
    over = moved(grad)
    assert torch.equal(passes.add_rms_norm_backward(over, more, x if given else None, residual, weight, rstd, True, out=over)[0], found[0])
    assert torch.equal(over, first)
