from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import masking_utils

from tunesmith.native.library import library
from tunesmith.runs import environment
from tunesmith.speed import varlen
from tunesmith.speed.varlen import varlen_attention

LENGTHS = [1, 2, 17, 33, 100, 257]


@pytest.fixture(params=["native", "products", "sdpa"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that is said to be fastest; with dropout, products instead of sdpa."""
    if request.param == "native":
        assert library() is not None
    else:
        monkeypatch.setattr(varlen, "library", lambda: None)
    ways = ["native", "products", "sdpa"]
    monkeypatch.setattr(
        varlen,
        "_seconds",
        lambda *shape: {way: (way != request.param) * (1.0 + place) for place, way in enumerate(ways) if shape[3] or way != "native"},
    )
    varlen._plan.cache_clear()
    return str(request.param)


def problem(
    lengths: list[int], heads: int, kv_heads: int, d: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """q, k, v as views of one matrix; the gradient of the output; boundaries."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(sum(lengths), (heads + 2 * kv_heads) * d, generator=generator).to(dtype)
    views = [part.unflatten(1, (-1, d)) for part in matrix.split([heads * d, kv_heads * d, kv_heads * d], 1)]
    grad = torch.randn(sum(lengths), heads, d, generator=generator).to(dtype)
    return views, grad, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def by_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    boundaries: torch.Tensor,
    *,
    causal: bool,
    scale: float,
    window: int | None = None,
    key_boundaries: torch.Tensor | None = None,
) -> torch.Tensor:
    outputs = []
    sides = (itertools.pairwise(side.tolist()) for side in (boundaries, boundaries if key_boundaries is None else key_boundaries))
    for (begin, end), (first_key, end_key) in zip(*sides, strict=True):
        query, key = torch.arange(end - begin)[:, None], torch.arange(end_key - first_key)
        mask = masking_utils.causal_mask_function if causal else masking_utils.bidirectional_mask_function
        if window is not None:
            windowed = (
                masking_utils.sliding_window_causal_mask_function if causal else masking_utils.sliding_window_bidirectional_mask_function
            )
            mask = windowed(window)
        visible = mask(0, 0, query, key).expand(len(query), len(key))
        parts = (part.transpose(0, 1)[None] for part in (q[begin:end], k[first_key:end_key], v[first_key:end_key]))
        outputs.append(scaled_dot_product_attention(*parts, attn_mask=visible, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(outputs)


def run(attention, tensors: list[torch.Tensor], grad: torch.Tensor, *rest, **options) -> list[torch.Tensor]:
    """The output and the gradients of q, k, v."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = attention(*leaves, *rest, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 2), (True, 40), (False, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_sequence_is_attended_by_itself(
    implementation: str, heads: int, kv_heads: int, causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    tensors, grad, boundaries = problem(LENGTHS, heads, kv_heads, 32, dtype)
    options = {"causal": causal, "scale": 0.3, "window": window}
    values = run(varlen_attention, tensors, grad, boundaries, **options)
    exact = run(by_sdpa, [tensor.double() for tensor in tensors], grad.double(), boundaries, **options)
    torchs = run(by_sdpa, tensors, grad, boundaries, **options)
    for value, reference, torch_value in zip(values, exact, torchs, strict=True):
        assert value.dtype == dtype
        assert error(value, reference) < (1e-5 if dtype == torch.float32 else max(1.5 * error(torch_value, reference), 0.004))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_sequence_attends_to_another(implementation: str, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    (q, _, _), grad, boundaries = problem(LENGTHS, heads, kv_heads, 32, dtype)
    (_, k, v), _, key_boundaries = problem([40, 300, 1, 5, 33, 64], heads, kv_heads, 32, dtype)
    options = {"causal": False, "scale": 0.3, "key_boundaries": key_boundaries}
    values = run(varlen_attention, [q, k, v], grad, boundaries, **options)
    exact = run(by_sdpa, [tensor.double() for tensor in (q, k, v)], grad.double(), boundaries, **options)
    torchs = run(by_sdpa, [q, k, v], grad, boundaries, **options)
    for value, reference, torch_value in zip(values, exact, torchs, strict=True):
        assert error(value, reference) < (1e-5 if dtype == torch.float32 else max(1.5 * error(torch_value, reference), 0.004))


def by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, boundaries: torch.Tensor, *, causal: bool, scale: float
) -> torch.Tensor:
    outputs = []
    for begin, end in itertools.pairwise(boundaries.tolist()):
        query, key = torch.arange(end - begin)[:, None], torch.arange(end - begin)
        parts = [part[begin:end].repeat_interleave(len(bias) // part.shape[1], 1).transpose(0, 1) for part in (q, k, v)]
        scores = parts[0] @ parts[1].mT * scale + bias[:, bias.shape[1] // 2 + key - query]
        hidden = (key > query) & causal
        outputs.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ parts[2]).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_goes_by_distance(implementation: str, heads: int, kv_heads: int, causal: bool, dtype: torch.dtype) -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, boundaries: torch.Tensor, **options) -> torch.Tensor:
        return varlen_attention(q, k, v, boundaries, bias=bias, **options)

    tensors, grad, boundaries = problem(LENGTHS, heads, kv_heads, 32, dtype)
    tensors.append(2 * torch.randn(heads, 2 * max(LENGTHS) - 1, generator=torch.Generator().manual_seed(1)))
    options = {"causal": causal, "scale": 0.3}
    values = run(attend, tensors, grad, boundaries, **options)
    exact = run(by_products, [tensor.double() for tensor in tensors], grad.double(), boundaries, **options)
    for value, reference in zip(values, exact, strict=True):
        assert error(value, reference) < (1e-5 if dtype == torch.float32 else 0.008)


def test_dropout_between_sequences_is_that_of_the_gradient(implementation: str) -> None:
    (q, _, _), grad, boundaries = problem([7, 40], 2, 2, 32, torch.float32)
    (_, k, v), _, key_boundaries = problem([50, 3], 2, 2, 32, torch.float32)
    options = {"causal": False, "scale": 0.3, "key_boundaries": key_boundaries, "dropout": 0.3, "seed": 5}
    found = run(varlen_attention, [q, k, v], grad, boundaries, **options)[3]
    # The output is linear in v: the same mask in the gradient gives <grad, out(v)> = <grad_v, v>.
    out = run(varlen_attention, [q, k, v], grad, boundaries, **options)[0]
    assert float((found * v).sum()) == pytest.approx(float((grad * out).sum()), rel=1e-3)
    plain = run(varlen_attention, [q, k, v], grad, boundaries, **{**options, "dropout": 0.0})[0]
    assert error(out, plain.double()) > 0.1


@pytest.mark.parametrize(
    ("lengths", "d"),
    [([5], 16), ([64], 80), ([257], 128), ([random.Random(0).randint(1, 40) for _ in range(300)], 32), ([0, 3, 0, 40], 96)],
)
def test_any_number_of_sequences(implementation: str, lengths: list[int], d: int) -> None:
    tensors, grad, boundaries = problem(lengths, 2, 2, d, torch.float32)
    values = run(varlen_attention, tensors, grad, boundaries, causal=False, scale=0.2)
    exact = run(by_sdpa, [tensor.double() for tensor in tensors], grad.double(), boundaries, causal=False, scale=0.2)
    for value, reference in zip(values, exact, strict=True):
        assert error(value, reference) < 1e-5


def test_groups_larger_than_a_part_of_memory(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, grad, boundaries = problem([40] * 7, 2, 2, 32, torch.float32)
    options = {"causal": True, "scale": 0.2}
    whole = run(varlen_attention, tensors, grad, boundaries, **options)
    monkeypatch.setattr(varlen, "MAX_SCORE_BYTES", 3 * 4 * 2 * 64**2)
    for value, reference in zip(run(varlen_attention, tensors, grad, boundaries, **options), whole, strict=True):
        assert torch.equal(value, reference)


def test_no_tokens_at_all(implementation: str) -> None:
    tensors, grad, boundaries = problem([], 2, 2, 32, torch.float32)
    for value in run(varlen_attention, tensors, grad, boundaries, causal=True, scale=1.0):
        assert value.shape == (0, 2, 32)


def test_a_gradient_that_is_one_number(implementation: str) -> None:
    tensors, _, boundaries = problem([3, 20], 2, 1, 32, torch.float32)
    values = run(
        lambda *arguments, **options: varlen_attention(*arguments, **options).sum(),
        tensors,
        torch.tensor(1.0),
        boundaries,
        causal=True,
        scale=1.0,
    )
    expected = run(varlen_attention, tensors, torch.ones(23, 2, 32), boundaries, causal=True, scale=1.0)
    for value, reference in zip(values[1:], expected[1:], strict=True):
        assert torch.equal(value, reference)


def test_autocast_changes_nothing(implementation: str) -> None:
    tensors, grad, boundaries = problem(LENGTHS, 2, 2, 32, torch.float32)
    plain = run(varlen_attention, tensors, grad, boundaries, causal=False, scale=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(varlen_attention, tensors, grad, boundaries, causal=False, scale=0.2)
    for value, reference in zip(cast, plain, strict=True):
        assert torch.equal(value, reference)


def probabilities(length: int, dropout: float, seed: int, heads: int = 4) -> torch.Tensor:
    """[length, heads, length]: what the probabilities of uniform attention became."""
    q = torch.zeros(length, heads, length)
    v = torch.eye(length)[:, None].expand(-1, heads, -1).contiguous()
    boundaries = torch.tensor([0, length], dtype=torch.int32)
    return varlen_attention(q, q, v, boundaries, causal=False, scale=1.0, dropout=dropout, seed=seed) * length


def test_dropout_drops_its_share_and_scales_the_rest(implementation: str) -> None:
    kept = probabilities(257, 0.1, seed=3)
    share = float((kept == 0).double().mean())
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / kept.numel()) ** 0.5
    assert torch.allclose(kept[kept != 0], torch.tensor(1 / 0.9), rtol=1e-5)
    for dim in (0, 1, 2):
        shares = (kept == 0).double().mean([other for other in range(3) if other != dim])
        assert float((shares - 0.1).abs().max()) < 5 * (0.1 * 0.9 / (kept.numel() / kept.shape[dim])) ** 0.5


def test_dropout_is_a_function_of_the_seed(implementation: str) -> None:
    first, second = probabilities(100, 0.5, seed=1), probabilities(100, 0.5, seed=2)
    assert torch.equal(first, probabilities(100, 0.5, seed=1))
    assert abs(float(((first == 0) == (second == 0)).double().mean()) - 0.5) < 0.02


def test_dropout_differs_between_sequences_and_heads(implementation: str) -> None:
    length, num_sequences, heads = 33, 20, 3
    q = torch.zeros(num_sequences * length, heads, length)
    v = torch.eye(length)[:, None].expand(-1, heads, -1).repeat(num_sequences, 1, 1)
    boundaries = torch.arange(0, num_sequences * length + 1, length, dtype=torch.int32)
    kept = varlen_attention(q, q, v, boundaries, causal=False, scale=1.0, dropout=0.5, seed=1) > 0
    masks = kept.view(num_sequences, length, heads, length).transpose(1, 2).reshape(num_sequences * heads, -1)
    agreement = (masks[:, None] == masks).double().mean(2) - torch.eye(len(masks)) * 0.5
    assert float((agreement - 0.5).abs().max()) < 5 * 0.5 / (length * length) ** 0.5


@pytest.mark.parametrize(("causal", "kv_heads"), [(False, 2), (True, 1)])
def test_the_gradient_drops_what_the_output_dropped(implementation: str, causal: bool, kv_heads: int) -> None:
    tensors, grad, boundaries = problem([3, 40, 18], 2, kv_heads, 16, torch.float32)
    options = {"causal": causal, "scale": 0.25, "dropout": 0.3, "seed": 11}
    grads = run(varlen_attention, tensors, grad, boundaries, **options)[1:]
    for which in range(3):
        direction = torch.randn(tensors[which].shape, generator=torch.Generator().manual_seed(which))
        direction /= direction.norm()
        sides = []
        for step in (0.05, -0.05):
            moved = [tensor + step * direction if place == which else tensor for place, tensor in enumerate(tensors)]
            sides.append((varlen_attention(*moved, boundaries, **options).double() * grad).sum())
        slope = float(sides[0] - sides[1]) / 0.1
        assert slope == pytest.approx(float((grads[which].double() * direction).sum()), rel=2e-3, abs=2e-3)


def test_the_choice_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(*shape) -> dict[str, float]:
        measured.append(shape)
        return {"native": 3.0, "products": 2.0, "sdpa": 1.0} if shape[2] == 64 else {"native": 1.0, "products": 2.0, "sdpa": 2.0}

    monkeypatch.setattr(varlen, "_measure", measure)
    plans = []
    for dropout in (False, True):
        varlen._plan.cache_clear()
        environment._MEASURED.clear()
        plans.append(varlen._plan((0, 5, 45, 45), (0, 5, 45, 45), 32, torch.float32, True, dropout))
    varlen._plan.cache_clear()
    environment._MEASURED.clear()
    assert measured == [(32, torch.float32, 64, True), (32, torch.float32, 16, True)]
    assert [plan.native.tolist() for plan in plans] == [[0], [0]]
    assert [plan.padded for plan in plans] == [[("sdpa", [(slice(5, 45),) * 2])], [("products", [(slice(5, 45),) * 2])]]


@pytest.mark.parametrize("compiled", [False, True])
def test_every_way_is_measured(compiled: bool) -> None:
    seconds = varlen._measure(32, torch.bfloat16, 64, compiled, tokens=128, repeats=1)
    assert set(seconds) == {"products", "sdpa"} | ({"native"} if compiled else set())
    assert min(seconds.values()) > 0


def test_the_ways_are_measured_while_predicting() -> None:
    environment._MEASURED.clear()
    varlen._plan.cache_clear()
    q = torch.randn(20, 2, 8)
    with torch.inference_mode():
        found = varlen.varlen_attention(q, q, q, torch.tensor([0, 12, 20], dtype=torch.int32), causal=False, scale=1.0)
    assert found.shape == q.shape
