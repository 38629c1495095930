"""Dropout's masks: how many, how independent, and the same wherever they are drawn."""

from __future__ import annotations

import pytest
import torch

from tunesmith.native import functions as native


def kept(count: int, p: float, seed: int, offset: int = 0) -> torch.Tensor:
    return native.dropout(torch.ones(count), p, seed, offset) != 0


def philox(counter: int, seed: int) -> list[int]:
    """Philox4x32-10 as Salmon et al. write it down."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter & mask, counter >> 32, 0, 0
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [c0, c1, c2, c3]


def test_the_generator_is_philox() -> None:
    # known answer of the authors' test vectors: all zeros
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seed, p = 0x123456789ABCDEF, 0.5
    words = [philox(8 * group + lane, seed) for group in range(3) for lane in range(8)]
    uniforms: list[int] = []
    for group in range(3):
        for pair in (0, 2):
            for lane in range(8):
                for word in words[8 * group + lane][pair : pair + 2]:
                    uniforms += [word & 0xFFFF, word >> 16]
    assert kept(192, p, seed).tolist() == [uniform >= 32768 for uniform in uniforms]


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_and_the_scale(p: float) -> None:
    count = 1 << 20
    for seed in range(4):
        out = native.dropout(torch.ones(count), p, seed)
        share = (out == 0).double().mean().item()
        assert abs(share - p) < 4.5 * (p * (1 - p) / count) ** 0.5 + 2**-17
        assert out.unique().tolist() == [0.0, torch.tensor(1 / (1 - p)).item()]


def test_bytes_of_the_masks_are_uniform() -> None:
    mask = kept(1 << 21, 0.5, 77).view(-1, 8).long()
    counts = (mask << torch.arange(8)).sum(1).bincount(minlength=256).double()
    expected = mask.shape[0] / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 255 - 4.5 * 510**0.5 < chi_square < 255 + 4.5 * 510**0.5


def test_masks_of_other_seeds_offsets_and_neighbours_are_independent() -> None:
    count, p = 1 << 20, 0.1
    first = kept(count, p, 1).double() - (1 - p)
    others = [kept(count, p, 2), kept(count, p, 1 << 32 | 1), kept(count, p, 1, offset=count), kept(count + 64, p, 1)[64:]]
    others += [kept(count + distance, p, 1)[distance:] for distance in (1, 2, 3, 4, 8, 32)]
    for other in others:
        correlation = (first * (other.double() - (1 - p))).mean().item() / (p * (1 - p))
        assert abs(correlation) < 4.5 / count**0.5


def test_an_offset_continues_the_stream() -> None:
    whole = kept(5000, 0.3, 9)
    for offset in (1, 63, 64, 1000, 1025):
        assert torch.equal(kept(5000 - offset, 0.3, 9, offset), whole[offset:])


def test_threads_and_types_share_the_mask() -> None:
    x = torch.ones(99_991)
    torch.set_num_threads(1)
    one = native.dropout(x, 0.1, 4)
    torch.set_num_threads(2)
    assert torch.equal(native.dropout(x, 0.1, 4), one)
    assert torch.equal(native.dropout(x.bfloat16(), 0.1, 4) != 0, one != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_draws_the_same_mask(dtype: torch.dtype) -> None:
    x = torch.ones(3, 501, dtype=dtype, requires_grad=True)
    out = native.dropout(x, 0.25, 8, offset=7)
    out.backward(torch.ones_like(out))
    assert torch.equal(x.grad, out.detach())  # type: ignore[arg-type]
    assert 0.2 < (out == 0).float().mean() < 0.3


def test_none_and_all() -> None:
    x = torch.randn(100)
    assert torch.equal(native.dropout(x, 0.0, 1), x)
    assert torch.equal(native.dropout(x, 1.0, 1), torch.zeros(100))
    assert native.dropout(torch.empty(0, 4), 0.5, 1).shape == (0, 4)
