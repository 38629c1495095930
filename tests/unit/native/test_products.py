"""Products of the own kernels, beside the same in fp64, from every layout in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunesmith.native.products import has_products, has_tiles, product

with_kernel = pytest.mark.skipif(not has_products(), reason="there is no kernel for this processor")

SIZES = [
    (1, 1, 1),
    (16, 32, 32),
    (33, 47, 65),
    (100, 200, 320),
    (7, 300, 2100),
    (500, 17, 40),
    (130, 1200, 1300),
    (64, 64, 3008),
    (288, 31, 33),
    (20, 40, 9000),
]
"""m, n, k: tails of tiles, one chunk of k and several, one group of panels and several, each operand the larger one, and k in parts."""
TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


def rows(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous()


def rows_apart(x: torch.Tensor) -> torch.Tensor:
    """Among NaNs, of which a product must read none."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 5), torch.nan, dtype=x.dtype)
    wide[1:-1, 2:-3] = x
    return wide[1:-1, 2:-3]


def columns(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()


def columns_apart(x: torch.Tensor) -> torch.Tensor:
    return rows_apart(x.t()).t()


LAYOUTS = [rows, rows_apart, columns, columns_apart]
Layout = Callable[[torch.Tensor], torch.Tensor]


def operands(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a, b, and their product in fp64, scaled so that its numbers are about 1."""
    generator = torch.Generator().manual_seed(m + n + k)
    a = (torch.randn(m, k, generator=generator) / max(k, 1) ** 0.5).bfloat16()
    b = torch.randn(k, n, generator=generator).bfloat16()
    return a, b, a.double() @ b.double()


def test_tiles_are_what_the_processor_says_it_has() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert not has_tiles() or "amx_bf16" in flags
    assert not has_products() or "avx512_bf16" in flags


@with_kernel
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("a_layout", "b_layout"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_agrees_with_fp64(size: tuple[int, int, int], a_layout: Layout, b_layout: Layout) -> None:
    a, b, expected = operands(*size)
    for dtype, tolerance in TYPES:
        out = product(a_layout(a), b_layout(b), out_dtype=dtype)
        assert out.dtype == dtype
        assert float((out.double() - expected).abs().max()) < tolerance * (1 + float(expected.abs().max()))


@with_kernel
@pytest.mark.parametrize("size", SIZES)
def test_bias_and_accumulation_are_rounded_once_and_stay_in_their_place(size: tuple[int, int, int]) -> None:
    a, b, expected = operands(*size)
    m, n, _ = size
    bias = torch.linspace(-2, 2, n)
    for dtype, _ in TYPES:
        whole = torch.full((m + 2, n + 7), -7.0, dtype=dtype)
        out = whole[1:-1, 3:-4]
        start = torch.randn(m, n).to(dtype)
        for layout in LAYOUTS:
            out.copy_(start)
            assert product(layout(a), columns(b), bias, out, accumulate=True) is out
            exact = expected + bias + start
            error = 2e-5 + (2**-8 * exact.abs() if dtype == torch.bfloat16 else 0)
            assert bool(((out.double() - exact).abs() <= error).all())
            product(layout(a), b, bias.bfloat16(), out)
            exact = expected + bias.bfloat16()
            error = 2e-5 + (2**-8 * exact.abs() if dtype == torch.bfloat16 else 0)
            assert bool(((out.double() - exact).abs() <= error).all())
        out.fill_(-7)
        assert bool((whole == -7).all())


@with_kernel
@pytest.mark.parametrize("size", [*SIZES, (48, 576, 1024), (1024, 48, 576), (700, 384, 1152)])
@pytest.mark.parametrize("layout", [rows, columns])
def test_the_bits_depend_neither_on_threads_nor_on_layouts(size: tuple[int, int, int], layout: Layout) -> None:
    a, b, _ = operands(*size)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = product(a, b, out_dtype=torch.float32)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(product(layout(a), columns(b), out_dtype=torch.float32), one)
    finally:
        torch.set_num_threads(threads)


@with_kernel
def test_empty_products() -> None:
    bias, start = torch.arange(5.0), torch.ones(3, 5)
    empty = torch.empty(3, 0, dtype=torch.bfloat16), torch.empty(0, 5, dtype=torch.bfloat16)
    assert torch.equal(product(*empty, bias, start, accumulate=True), (bias + 1).expand(3, 5))
    assert torch.equal(product(*empty), torch.zeros(3, 5, dtype=torch.bfloat16))
    some = torch.ones(4, 3, dtype=torch.bfloat16)
    assert product(some, empty[0]).shape == (4, 0)
    assert product(empty[1], torch.ones(5, 2, dtype=torch.bfloat16)).shape == (0, 2)


@with_kernel
@pytest.mark.parametrize("layout", [rows, columns])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_reaches_its_row_and_no_other(layout: Layout, value: float) -> None:
    a, b = torch.ones(70, 40, dtype=torch.bfloat16), torch.ones(40, 50, dtype=torch.bfloat16)
    a[37, 39] = value
    expected = torch.full((70, 50), 40.0)
    expected[37] = value
    for other in (rows, columns):
        assert torch.equal(product(layout(a), other(b), out_dtype=torch.float32).nan_to_num(1.5), expected.nan_to_num(1.5))


@with_kernel
def test_large_operands_after_small_ones_and_small_ones_after_large() -> None:
    for size in [(40, 40, 40), (600, 500, 700), (40, 40, 40)]:
        a, b, expected = operands(*size)
        assert float((product(a, b, out_dtype=torch.float32) - expected).abs().max()) < 1e-4


@with_kernel
def test_operands_of_another_type_or_layout_are_refused() -> None:
    a = torch.ones(8, 8, dtype=torch.bfloat16)
    for wrong in (a.float(), torch.ones(16, 16, dtype=torch.bfloat16)[::2, ::2], torch.ones(9, 8, dtype=torch.bfloat16)):
        with pytest.raises(AssertionError):
            product(a, wrong)
    with pytest.raises(AssertionError):
        product(a, a, out=torch.ones(8, 8, dtype=torch.float64))
    with pytest.raises(AssertionError):
        product(a, a, out=torch.ones(8, 8).t()[:, :])
