from __future__ import annotations

import copy

import pytest
import torch

from tunesmith.speed.optimizer import AdamW

SHAPES = ((7, 5), (33,), (1,), (64, 64))


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def groups(of: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": of[:2], "weight_decay": 0.1, "lr": 1e-2}, {"params": of[2:], "weight_decay": 0.0, "lr": 3e-3}]


def draw_grads(of: list[torch.nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in of:
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("max_norm", [1.0, 1e9, float("inf")])
def test_steps_and_clipping_are_torchs(max_norm: float) -> None:
    mine, theirs = parameters(), parameters()
    ours, torchs = AdamW(groups(mine)), torch.optim.AdamW(groups(theirs))
    for step in range(5):
        draw_grads(mine, step)
        draw_grads(theirs, step)
        norm = ours.clip(max_norm)
        assert float(norm) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)), rel=1e-6)
        ours.step()
        torchs.step()
    for found, expected in zip(mine, theirs, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_scale_is_of_one_step() -> None:
    mine, theirs = parameters(), parameters()
    ours, torchs = AdamW(groups(mine)), torch.optim.AdamW(groups(theirs))
    for step, clips in enumerate((True, False)):
        draw_grads(mine, step)
        draw_grads(theirs, step)
        if clips:
            ours.clip(0.5)
            torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        ours.step()
        torchs.step()
    assert all(torch.allclose(found, expected, rtol=1e-5, atol=1e-6) for found, expected in zip(mine, theirs, strict=True))


def test_state_goes_from_one_to_the_other() -> None:
    mine, theirs = parameters(), parameters()
    ours, torchs = AdamW(groups(mine)), torch.optim.AdamW(groups(theirs))
    draw_grads(mine, 0)
    ours.step()
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    with torch.no_grad():
        for target, source in zip(theirs, mine, strict=True):
            target.copy_(source)
    for step in (1, 2):
        draw_grads(mine, step)
        draw_grads(theirs, step)
        ours.step()
        torchs.step()
    assert all(torch.allclose(found, expected, rtol=1e-5, atol=1e-6) for found, expected in zip(mine, theirs, strict=True))


def test_a_parameter_without_a_gradient_stays() -> None:
    mine = parameters()
    ours = AdamW(groups(mine))
    draw_grads(mine, 0)
    mine[1].grad = None
    before = mine[1].detach().clone()
    ours.step()
    assert torch.equal(mine[1], before)
    assert mine[1] not in ours.state
    draw_grads(mine, 1)
    ours.step()
    assert (int(ours.state[mine[0]]["step"]), int(ours.state[mine[1]]["step"])) == (2, 1)


def test_gradients_that_are_not_finite_stay_so() -> None:
    mine = parameters()
    ours = AdamW(groups(mine))
    draw_grads(mine, 0)
    mine[0].grad[0, 0] = float("nan")
    assert torch.isnan(ours.clip(1.0))
    ours.step()
    assert torch.isnan(mine[0][0, 0])
