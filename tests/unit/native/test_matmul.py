"""Products by tiles and by torch, whole and in parts, agree with fp64."""

from __future__ import annotations

import pytest
import torch

from tunesmith.native import matmul, products

SIZES = ((7, 40, 33), (300, 512, 700))
"""(m, k, n): one that stays whole, and one large enough for parts and tiles."""


@pytest.fixture(params=["as_it_is", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest way of this machine, and torch's in three parts."""
    if request.param == "torch":
        monkeypatch.setattr(products, "has_tiles", lambda: False)
        monkeypatch.setattr(products, "has_products", lambda: False)
        monkeypatch.setattr(matmul, "num_parts", lambda: 3)


def operands(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(m)
    left, right = (torch.randn(m, k) / k**0.5).to(dtype), torch.randn(k, n).to(dtype)
    return left, right, left.double() @ right.double()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found.double(), expected, rtol=0, atol=4e-5 if found.dtype == torch.float32 else 4e-2)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_bias_and_layouts(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    left, right, expected = operands(*size, dtype)
    bias = torch.linspace(-1, 1, size[2]).to(dtype)
    found = matmul.product(left, right)
    assert found.dtype == dtype
    assert close(found, expected)
    assert close(matmul.product(left.t().contiguous().t(), right.t().contiguous().t(), bias), expected + bias.double())
    assert matmul.product(left, right, out_dtype=torch.float32).dtype == torch.float32


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [*SIZES, (40, 9000, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_goes_where_it_is_wanted(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    left, right, expected = operands(*size, dtype)
    whole = torch.ones(size[0], size[2] + 5, dtype=dtype)
    place = whole[:, : size[2]]
    assert matmul.product(left, right, out=place) is place
    assert close(place, expected)
    assert bool((whole[:, size[2] :] == 1).all())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_a_multiple_of_a_page_long_may_lie_apart(dtype: torch.dtype) -> None:
    left, right, expected = operands(40, 96, 2048, dtype)
    found = matmul.product(left, right, apart=True)
    assert (found.shape, found.stride(1)) == (expected.shape, 1)
    assert close(found, expected)
    if dtype == torch.bfloat16 and products.has_products():
        assert found.stride(0) * found.element_size() % matmul.PAGE
    narrow = matmul.product(left, right[:, :1000], apart=True)
    assert narrow.is_contiguous()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_added_in_its_place(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    left, right, expected = operands(*size, dtype)
    whole = torch.ones(size[0], size[2] + 9, dtype=dtype)
    out = matmul.add_product(whole[:, : size[2]], left, right)
    assert out.data_ptr() == whole.data_ptr()
    assert close(out, expected + 1)
    assert bool((whole[:, size[2] :] == 1).all())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("left_dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_added_in_fp32(left_dtype: torch.dtype) -> None:
    left, right, expected = operands(300, 512, 700, left_dtype)
    found = matmul.add_product(torch.ones(300, 700), left, right)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected + 1, rtol=0, atol=4e-2)


def test_the_number_of_parts_is_one_that_can_be() -> None:
    assert matmul.num_parts() in matmul.PARTS
