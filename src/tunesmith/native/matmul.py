"""Matrix products: by own kernels where the processor multiplies bf16, otherwise torch's in as many parts as is fastest here.

For some shapes oneDNN leaves all but one thread idle; the same product in two to four parts, each a range of the result's columns, then
takes half the time. Each element is the sum that it was.
"""

from __future__ import annotations

import statistics
import time

import torch

from tunesmith.native import products as tiles
from tunesmith.runs.environment import measured

PARTS = (1, 2, 3, 4)
SHAPES = ((768, 1536, 384), (1152, 576, 960), (1152, 3072, 576), (1152, 576, 1536), (736, 384, 1536), (1536, 384, 736))
"""(m, k, n) of products as models of a hundred million weights have them."""
FEWEST_OPERATIONS = 1 << 26
"""Products below it stay whole."""
FEWEST_FOR_TILES = 1 << 22
"""Products below it cost more to share among threads than to compute."""
SHALLOW = 64
"""Up to this k, torch's products are faster where there are no tile registers: too little is summed for copies of operands to pay."""
PAGE = 4096
APART = 32
"""Columns between rows that lie apart: as many as the kernel reads at once."""
REPEATS = 15


def product(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    apart: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """left [m, k] @ right [k, n] + bias [n] of one type, in that type or in `out_dtype`; or in `out`, whose rows may lie apart.

    Where it may have rows that lie `apart`, they do if they would otherwise, a multiple of a page from each other, push each other out of
    the cache.
    """
    assert out is None or not (apart or out_dtype), "a place has a type and a layout of its own"
    parts, out_dtype = 1, out_dtype or left.dtype
    if left.device.type == "cpu" and left.dtype == torch.bfloat16:
        operations = left.shape[0] * left.shape[1] * right.shape[1]
        if operations >= FEWEST_FOR_TILES and _has_kernel(left.shape[1]):
            out = _rows_apart(left.shape[0], right.shape[1], out_dtype) if apart else out
            return tiles.product(left, right, bias, out, out_dtype)
        if operations >= FEWEST_OPERATIONS:
            parts = num_parts()
    return _placed(_in_parts(left, right, bias, parts), out_dtype, out)


def add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """out [m, n], its rows apart or not, with left @ right added to it; in the type of these, or fp32."""
    if out.device.type == "cpu" and left.dtype == torch.bfloat16 and _has_kernel(left.shape[1]):
        return tiles.product(left, right, out=out, accumulate=True)
    return out.addmm_(left, right) if out.dtype == left.dtype else out.add_(left @ right)


def _placed(found: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> torch.Tensor:
    return found.to(dtype) if out is None else out.copy_(found)


def _rows_apart(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    room = columns if columns * dtype.itemsize % PAGE else columns + APART
    return torch.empty(rows, room, dtype=dtype)[:, :columns]


def _has_kernel(depth: int) -> bool:
    return tiles.has_tiles() or (depth > SHALLOW and tiles.has_products())


def _in_parts(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, parts: int) -> torch.Tensor:
    if parts == 1:
        return left @ right if bias is None else torch.addmm(bias, left, right)
    result = left.new_empty(left.shape[0], right.shape[1])
    width = -(-right.shape[1] // parts // 16) * 16
    for start in range(0, right.shape[1], width):
        part = slice(start, start + width)
        if bias is None:
            torch.mm(left, right[:, part], out=result[:, part])
        else:
            torch.addmm(bias[part], left, right[:, part], out=result[:, part])
    return result


def num_parts() -> int:
    """The number of parts that is fastest over all."""
    return int(measured("product_parts", measure=_measure_parts))


def _measure_parts() -> float:
    pairs = [(torch.ones(m, k, dtype=torch.bfloat16), torch.ones(n, k, dtype=torch.bfloat16).t()) for m, k, n in SHAPES]
    seconds: dict[tuple[int, int], list[float]] = {(parts, number): [] for parts in PARTS for number in range(len(SHAPES))}
    for _ in range(REPEATS):
        for (parts, number), times in seconds.items():
            start = time.perf_counter()
            _in_parts(*pairs[number], None, parts)
            times.append(time.perf_counter() - start)
    # Of the median: the same product takes one time or twice that, as its result happens to lie.
    return float(min(PARTS, key=lambda parts: sum(statistics.median(seconds[parts, number]) for number in range(len(SHAPES)))))
