"""AdamW in one pass beside torch's, and the norm of gradients."""

from __future__ import annotations

import pytest
import torch

from tunesmith.native import functions as native

SHAPES = ((7,), (1000, 33), (0,), (1,), (130, 257))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("grad_scale", [1.0, 0.25])
def test_twenty_steps_are_those_of_torch(weight_decay: float, grad_scale: float) -> None:
    settings = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": weight_decay}
    params = [torch.randn(shape) for shape in SHAPES]
    theirs = [param.clone().requires_grad_() for param in params]
    optimizer = torch.optim.AdamW(theirs, foreach=False, **settings)  # type: ignore[arg-type]
    moments = [torch.zeros_like(param) for param in params], [torch.zeros_like(param) for param in params]
    for step in range(1, 21):
        grads = [torch.randn(shape) for shape in SHAPES]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad * grad_scale
        optimizer.step()
        native.adamw_step(params, grads, *moments, **settings, step=step, grad_scale=grad_scale)  # type: ignore[arg-type]
    for mine, param, first, second in zip(params, theirs, *moments, strict=True):
        torch.testing.assert_close(mine, param.detach(), rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(first, optimizer.state[param]["exp_avg"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(second, optimizer.state[param]["exp_avg_sq"], rtol=1e-6, atol=1e-9)


def test_threads_do_not_matter_and_versions_count() -> None:
    grads = [torch.randn(shape) for shape in SHAPES]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        params = [torch.ones(shape) for shape in SHAPES]
        versions = [param._version for param in params]
        zeros = [torch.zeros(shape) for shape in SHAPES], [torch.zeros(shape) for shape in SHAPES]
        native.adamw_step(params, grads, *zeros, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, step=1)
        assert [param._version for param in params] == [version + 1 for version in versions]
        results.append([*params, native.grad_norm(grads)])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*results, strict=True))


def test_the_norm_of_gradients() -> None:
    grads = [torch.randn(shape) for shape in SHAPES]
    exact = torch.cat([grad.double().flatten() for grad in grads]).norm().item()
    assert native.grad_norm(grads) == pytest.approx(exact, rel=1e-12)
    low = [grad.bfloat16() for grad in grads]
    exact = torch.cat([grad.double().flatten() for grad in [*low, *grads]]).norm().item()
    assert native.grad_norm([low[0], *grads, *low[1:]]) == pytest.approx(exact, rel=1e-12)
    assert native.grad_norm([]) == 0
    assert native.grad_norm([torch.full((3,), 1e30)]) == pytest.approx(3**0.5 * 1e30)
    assert native.grad_norm([torch.tensor([1.0, float("nan")])]) != native.grad_norm([torch.tensor([1.0, float("nan")])])


def test_what_does_not_fit_is_refused() -> None:
    x, long, low = torch.ones(3), torch.ones(4), torch.ones(3).bfloat16()
    for params in ([long], [low], [torch.ones(2, 3)[:, 1]]):
        with pytest.raises(AssertionError):
            native.adamw_step(params, [x], [x], [x], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, step=1)
