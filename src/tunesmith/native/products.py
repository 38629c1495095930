"""Matrix products in bf16, on the processor's tile registers (AMX) or by its instruction for pairs of bf16 (AVX512-BF16)."""

from __future__ import annotations

import functools

import torch

from tunesmith.native.library import call, library


@functools.cache
def has_tiles() -> bool:
    """Whether there are kernels, and the processor and the operating system give them tile registers."""
    native = library()
    return native is not None and bool(native.has_tiles())


@functools.cache
def has_products() -> bool:
    """Whether there is a kernel for this processor; without, nothing else here works."""
    native = library()
    return native is not None and bool(native.has_products())


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: bool = False,
) -> torch.Tensor:
    """a [m, k] @ b [k, n] (+ bias [n]) (+ out), summed in fp32 and rounded once, in bf16 or fp32.

    a and b are bf16 and have a stride of 1, in either dimension; the rows of `out` may lie apart, and its type counts, not `out_dtype`.
    The bits do not depend on the number of threads.
    """
    m, k = a.shape
    depth, n = b.shape
    assert k == depth, (k, depth)
    if out is None:
        assert not accumulate
        out = torch.empty(m, n, dtype=out_dtype)
    assert out.shape == (m, n), (out.shape, m, n)
    assert out.dtype in (torch.bfloat16, torch.float32), out.dtype
    assert out.stride(1) == 1 or n <= 1, out.stride()
    assert bias is None or bias.shape == (n,), bias
    values = None if bias is None else bias.float().contiguous()
    call("product", a, b, out, values, m, n, k, *_strides(a), *_strides(b), out.stride(0), out.dtype == torch.bfloat16, accumulate)
    return out


def _strides(x: torch.Tensor) -> tuple[int, int]:
    """Those of a bf16 matrix, of which one is 1."""
    assert (x.device.type, x.dtype) == ("cpu", torch.bfloat16), (x.device, x.dtype)
    rows, columns = x.stride()
    if x.shape[1] <= 1 and rows != 1:
        columns = 1
    elif x.shape[0] <= 1 and columns != 1:
        rows = 1
    assert 1 in (rows, columns), x.stride()
    return rows, columns
