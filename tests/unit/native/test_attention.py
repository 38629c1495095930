from __future__ import annotations

import pytest
import torch

from tunesmith.native import attention
from tunesmith.native.attention import Shape

LENGTHS = [3, 70, 1, 300, 32]
TOKENS, HEADS, KV_HEADS = sum(LENGTHS), 6, 3


def run(
    d: int, dtype: torch.dtype, dropout: float = 0.0, sequences: tuple[int, ...] = (3, 1, 4, 0, 2), over: bool = False, **ranges: int
) -> list[torch.Tensor]:
    """The output, and the gradients in one matrix of all heads, in which they lie as q, k and v do (with `over` in that of q, k and v itself);
    -7 where nothing was written."""
    generator = torch.Generator().manual_seed(d)
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    shape = Shape(boundaries, boundaries, ranges.get("left", 2**30), ranges.get("right", 2**30), d**-0.5, dropout, seed=5)
    sizes = [HEADS, KV_HEADS, KV_HEADS]
    matrix = torch.randn(TOKENS, HEADS + 2 * KV_HEADS, d + 3, generator=generator).to(dtype)[..., :d]
    grads = matrix if over else torch.full((TOKENS, HEADS + 2 * KV_HEADS, d), -7.0, dtype=dtype)
    out = torch.full((TOKENS, HEADS, d), -7.0, dtype=dtype)
    upstream = torch.randn(HEADS, TOKENS, d, generator=generator).to(dtype).transpose(0, 1)
    row_sums = torch.zeros(TOKENS, HEADS, 2)
    chosen = torch.tensor(sequences, dtype=torch.int32)
    inputs = list(matrix.split(sizes, 1))
    attention.forward(*inputs, out, row_sums, shape, chosen)
    attention.backward([*inputs, out], upstream, row_sums, shape, chosen, list(grads.split(sizes, 1)))
    return [out, grads]


def by_hand(d: int, dtype: torch.dtype, left: int, right: int) -> list[torch.Tensor]:
    """What `run` computes, in fp64 and on one dense matrix of scores."""
    generator = torch.Generator().manual_seed(d)
    matrix = torch.randn(TOKENS, HEADS + 2 * KV_HEADS, d + 3, generator=generator)[..., :d].to(dtype).double().requires_grad_()
    upstream = torch.randn(HEADS, TOKENS, d, generator=generator).transpose(0, 1).to(dtype).double()
    q, k, v = (part.transpose(0, 1) for part in matrix.split([HEADS, KV_HEADS, KV_HEADS], 1))
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 0) for part in (k, v))
    owner = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    visible = (owner[:, None] == owner) & (distance <= left) & (-distance <= right)
    out = ((q @ k.mT * d**-0.5).masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    out.backward(upstream)
    assert matrix.grad is not None
    return [out.detach(), matrix.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [32, 80])
def test_gradients_may_be_written_over_what_they_are_of(d: int, dtype: torch.dtype) -> None:
    apart, over = (run(d, dtype, dropout=0.1, right=0, over=over) for over in (False, True))
    assert all(map(torch.equal, apart, over))


@pytest.mark.parametrize("d", [1, 7, 16, 32, 64, 80, 96, 128])
@pytest.mark.parametrize(("left", "right"), [(2**30, 2**30), (2**30, 0), (9, 0), (40, 40)])
def test_agrees_with_dense_attention(d: int, left: int, right: int) -> None:
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 5e-3)):
        for value, reference in zip(run(d, dtype, left=left, right=right), by_hand(d, dtype, left, right), strict=True):
            assert float((value.double() - reference).norm() / reference.norm()) < tolerance


def test_writes_the_sequences_that_were_asked_for_and_no_others() -> None:
    whole = run(32, torch.float32)
    for value, reference in zip(run(32, torch.float32, sequences=(1, 4)), whole, strict=True):
        asked = torch.zeros(TOKENS, dtype=torch.bool)
        asked[3:73] = asked[-32:] = True
        assert torch.equal(value[asked], reference[asked])
        assert bool((value[~asked] == -7).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_depend_on_neither_threads_nor_order(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(64, dtype, dropout=0.2)
        torch.set_num_threads(2)
        two = run(64, dtype, dropout=0.2, sequences=(0, 1, 2, 3, 4))
    finally:
        torch.set_num_threads(threads)
    for value, reference in zip(one, two, strict=True):
        assert torch.equal(value, reference)


def test_large_scores_and_what_is_not_finite() -> None:
    boundaries, chosen = torch.tensor([0, 2, 4], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    q = torch.full((4, 1, 32), 100.0)
    q[2, 0, 0] = torch.nan
    v = torch.arange(4.0)[:, None, None].expand(4, 1, 32).contiguous()
    out, row_sums = torch.empty(4, 1, 32), torch.empty(4, 1, 2)
    attention.forward(q, torch.full((4, 1, 32), 100.0), v, out, row_sums, Shape(boundaries, boundaries, 2**30, 0, 1.0, 0.0, 0), chosen)
    assert out[:2, 0, 0].tolist() == [0.0, 0.5]
    assert bool(out[2].isnan().all())
    assert out[3, 0, 0] == 2.5
