"""The kernel of the loss, on rows that lie apart, beside fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tunesmith.native.loss import token_loss

ROWS, COLUMNS = 5, 700


@pytest.mark.parametrize("room", [COLUMNS, COLUMNS + 32])
@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, 30.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient(room: int, spread: float, scale: float, softcap: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = (torch.randn(ROWS, room) * spread).to(dtype)
    rest, logits = whole[:, COLUMNS:].clone(), whole[:, :COLUMNS]
    targets = torch.tensor([0, 3, COLUMNS - 1, 5, int(logits[4].argmax())])
    plain = logits.double().requires_grad_()
    bent = plain * scale if softcap is None else softcap * torch.tanh(plain * scale / softcap)
    expected = F.cross_entropy(bent, targets, reduction="none")
    expected.sum().backward()
    losses, correct = token_loss(logits, targets, scale, softcap, with_grad=True)
    assert torch.allclose(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert correct.tolist() == (bent.argmax(-1) == targets).tolist()
    assert plain.grad is not None
    assert torch.allclose(logits.double(), plain.grad, rtol=0, atol=1e-5 if dtype == torch.float32 else 4e-3)
    assert torch.equal(whole[:, COLUMNS:], rest)


def test_what_is_far_below_the_largest_counts_nothing_and_nan_stays() -> None:
    logits = torch.tensor([[0.0, -1e4, -torch.inf, -3e38], [0.0, torch.nan, 1.0, 2.0]])
    losses, correct = token_loss(logits, torch.tensor([0, 0]), 1.0, None, with_grad=True)
    assert losses[0] == 0
    assert bool(correct[0])
    assert logits[0].abs().max() < 1e-30
    assert bool(losses[1].isnan())
