"""Each kernel beside torch's own operations: values and gradients, in fp32 and bf16, for sizes that fill no vector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tunesmith.native import functions as native

TYPES = (torch.float32, torch.bfloat16)
SHAPES = ((5, 33), (2, 3, 16), (70, 384), (1, 1), (0, 16), (3, 1031))
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def assert_near(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """To a few units in the last place of the type, measured by the largest value."""
    assert got.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=TOLERANCE[dtype] * scale)


def compare(function: Callable[..., torch.Tensor], reference: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """Values and all gradients of a function of tensors beside those of the reference, which computes in double."""
    dtype = torch.bfloat16 if any(x.dtype == torch.bfloat16 for x in inputs) else torch.float32
    given = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    got, expected = function(*given), reference(*exact)
    assert_near(got.detach(), expected.detach(), dtype)
    grad = torch.randn(expected.shape).to(got.dtype)
    got.backward(grad)
    expected.backward(grad.double())
    for mine, theirs in zip(given, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == mine.dtype
        assert_near(mine.grad, theirs.grad, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_its_gradient(dtype: torch.dtype, shape: tuple[int, ...], approximate: str) -> None:
    compare(lambda x: native.gelu(x, approximate), lambda x: F.gelu(x, approximate=approximate), 3 * torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_activations(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate, up = (2 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    compare(native.silu_mul, lambda g, u: F.silu(g) * u, gate, up)
    compare(native.gelu_mul, lambda g, u: F.gelu(g) * u, gate, up)
    compare(lambda g, u: native.gelu_mul(g, u, "tanh"), lambda g, u: F.gelu(g, approximate="tanh") * u, gate, up)


def test_gate_and_up_may_be_halves_of_one_product() -> None:
    both = torch.randn(4, 7, 66)
    compare(lambda x: native.silu_mul(*x.chunk(2, -1)), lambda x: F.silu(x[..., :33]) * x[..., 33:], both)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_over_the_whole_range(approximate: str) -> None:
    x = torch.linspace(-12, 12, 100_001)
    exact = F.gelu(x.double(), approximate=approximate)
    error = (native.gelu(x, approximate).double() - exact).abs()
    assert error[x.abs() < 1].max() < 2e-7
    assert (error / x.abs().clamp(min=1)).max() < 2e-7


def test_gelu_of_each_bf16_is_correctly_rounded() -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    x = x[x.isfinite()]
    exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2  # F.gelu's 1 + erf is 0 far below 0
    difference = (native.gelu(x).double() - exact).abs()
    assert (difference <= exact.abs() * 2**-8 + 1e-40).all()


@pytest.mark.parametrize("function", [native.gelu, lambda x: native.gelu(x, "tanh"), lambda x: native.silu_mul(x, torch.ones_like(x))])
def test_what_is_not_finite_stays_so(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    out = function(torch.tensor([float("nan"), float("inf"), 1e30, -1e30]))
    assert out[0].isnan()
    assert out[1] == float("inf")
    assert out[2] == torch.tensor(1e30)
    assert out[3] == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_a_norm_of_what_is_not_finite_is_not_finite(dtype: torch.dtype) -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.ones(2, 20, dtype=dtype)
        x[1, 3] = bad
        out = native.rms_norm(x, torch.ones(20), 1e-6), native.layer_norm(x, torch.ones(20), torch.zeros(20), 1e-6)
        assert all(y[0].isfinite().all() and not y[1].isfinite().all() for y in out)
        assert not native.dropout(x, 0.0, 1)[1, 3].isfinite()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("weight_dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(dtype: torch.dtype, weight_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    width = shape[-1]
    weight, bias = (1 + torch.randn(width) / 4).to(weight_dtype), torch.randn(width).to(weight_dtype)
    x = (torch.randn(shape) + 0.5).to(dtype)
    compare(lambda x, w, b: native.layer_norm(x, w, b, 1e-5), lambda x, w, b: F.layer_norm(x, (width,), w, b, 1e-5), x, weight, bias)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("residual_dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_dropout_add_layer_norm(dtype: torch.dtype, residual_dtype: torch.dtype, shape: tuple[int, ...], p: float) -> None:
    width = shape[-1]
    weight, bias = 1 + torch.randn(width) / 4, torch.randn(width)
    mask = native.dropout(torch.ones(shape), p, 11).double()

    def fused(x: torch.Tensor, residual: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return native.dropout_add_layer_norm(x, residual, w, b, 1e-5, p, 11)

    def reference(x: torch.Tensor, residual: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(residual + x * mask, (width,), w, b, 1e-5)

    inputs = torch.randn(shape).to(dtype), torch.randn(shape).to(residual_dtype), weight, bias
    if width > 1:
        compare(fused, reference, *inputs)


def llama_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def gemma_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * (1.0 + weight.float())).type_as(x)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("weight_dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(dtype: torch.dtype, weight_dtype: torch.dtype, shape: tuple[int, ...], offset: float) -> None:
    x, weight = torch.randn(shape).to(dtype), (1 - offset + torch.randn(shape[-1]) / 4).to(weight_dtype)

    def reference(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (offset + w)

    compare(lambda x, w: native.rms_norm(x, w, 1e-5, offset), reference, x, weight)
    upstream = (gemma_rms_norm if offset else llama_rms_norm)(x, weight, 1e-5)
    got = native.rms_norm(x, weight, 1e-5, offset)
    assert got.dtype == upstream.dtype
    if dtype == torch.bfloat16 and got.numel():
        assert (got == upstream).double().mean() > 0.998


def test_a_frozen_weight_has_no_gradient() -> None:
    x, weight = torch.randn(40, 48, requires_grad=True), torch.randn(48)
    native.rms_norm(x, weight, 1e-5).square().sum().backward()
    assert weight.grad is None
    exact = x.detach().double().requires_grad_()
    (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()).square().sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def upstream_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos.unsqueeze(1) + torch.cat((-x[..., half:], x[..., :half]), -1) * sin.unsqueeze(1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("angle_dtype", TYPES)
@pytest.mark.parametrize("angles", [1, 2])
@pytest.mark.parametrize("width", [6, 64])
def test_rotary(dtype: torch.dtype, angle_dtype: torch.dtype, angles: int, width: int) -> None:
    cos, sin = torch.randn(angles, 5, width).to(angle_dtype), torch.randn(angles, 5, width).to(angle_dtype)
    q, k = torch.randn(2, 5, 3, width).to(dtype), torch.randn(2, 5, 1, width).to(dtype)
    for number, x in ((0, q), (1, k)):
        other = (k if number == 0 else q).transpose(1, 2)

        def rotated(x: torch.Tensor, number: int = number, other: torch.Tensor = other) -> torch.Tensor:
            pair = (x.transpose(1, 2), other) if number == 0 else (other, x.transpose(1, 2))
            return native.rotary(*pair, cos, sin)[number]

        compare(rotated, lambda x: upstream_rotary(x.transpose(1, 2), cos.double(), sin.double()), x)


def test_rotary_reads_parts_of_a_product_and_no_tokens() -> None:
    product, angle = torch.randn(2, 5, 8 * 16), torch.randn(1, 5, 16)
    q, k = (part.unflatten(-1, (-1, 16)).transpose(1, 2) for part in product.split([6 * 16, 2 * 16], -1))
    for got, expected in zip(native.rotary(q, k, angle.cos(), angle.sin()), (q, k), strict=True):
        torch.testing.assert_close(got, upstream_rotary(expected, angle.cos(), angle.sin()))
        assert got.transpose(1, 2).is_contiguous()
    assert native.rotary(q[:, :, :0], k[:, :, :0], angle[:, :0], angle[:, :0])[0].shape == (2, 6, 0, 16)


def test_autocast_changes_nothing() -> None:
    x, weight = torch.randn(20, 32), torch.randn(32)

    def outputs() -> list[torch.Tensor]:
        return [
            native.gelu(x),
            native.silu_mul(x, x),
            native.layer_norm(x, weight, weight, 1e-5),
            native.rms_norm(x, weight, 1e-5),
            native.dropout(x, 0.5, 3),
        ]

    plain = outputs()
    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs()
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_the_same_bits_whatever_the_threads() -> None:
    x, residual, weight = torch.randn(701, 384).bfloat16(), torch.randn(701, 384), torch.randn(384)

    def everything() -> list[torch.Tensor]:
        given = [t.clone().requires_grad_() for t in (x, residual, weight, weight)]
        out = native.dropout_add_layer_norm(*given, 1e-5, 0.1, 5)
        native.gelu(out).sum().backward()
        rms = x.clone().requires_grad_(), weight.clone().requires_grad_()
        native.rms_norm(*rms, 1e-5).sum().backward()
        return [out.detach(), *(t.grad for t in (*given, *rms) if t.grad is not None)]

    torch.set_num_threads(1)
    one = everything()
    torch.set_num_threads(2)
    two, again = everything(), everything()
    assert len(one) == 7
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(one, two, again, strict=True))


def test_what_a_kernel_cannot_read_is_refused() -> None:
    for call in (
        lambda: native.gelu(torch.randn(4, 6).t()),
        lambda: native.gelu(torch.randn(4, dtype=torch.float64)),
        lambda: native.dropout(torch.randn(4, 6).half(), 0.1, 1),
        lambda: native.layer_norm(torch.randn(4, 6), torch.ones(5), torch.ones(5), 1e-5),
        lambda: native.silu_mul(torch.randn(4, 6), torch.randn(4, 6).bfloat16()),
        lambda: native.dropout_add_layer_norm(torch.randn(4, 6), torch.randn(6), torch.ones(6), torch.ones(6), 1e-5, 0.1, 1),
    ):
        with pytest.raises(AssertionError):
            call()
