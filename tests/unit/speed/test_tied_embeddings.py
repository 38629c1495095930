"""The gradient of embeddings that are also the head's is the sum of both, as without the acceleration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tunesmith.speed import tied_embeddings
from tunesmith.speed.facts import Facts

BATCHES = (torch.tensor([[3, 4, 5, 0], [7, 3, 3, 0]]), torch.tensor([[9, 9, 1, 2]]))


def _model(tied: bool = True, padding: int | None = 0) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=padding,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def _gradients(model: Any) -> list[torch.Tensor]:
    """Of the matrix, after one and after two micro-batches, and of a step after it."""
    found = []
    for batches in (BATCHES[:1], BATCHES, BATCHES[1:]):
        model.zero_grad()
        for ids in batches:
            model(input_ids=ids).logits.square().mean().backward()
        found.append(model.get_input_embeddings().weight.grad.clone())
    return found


@pytest.mark.parametrize("padding", [0, None])
def test_gradients_are_those_of_embedding_and_head(padding: int | None) -> None:
    model = _model(padding=padding)
    expected = _gradients(model)
    undo = tied_embeddings.apply(Facts(model, bf16=False))
    found = _gradients(model)
    undo()
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-8) for one, other in zip(found, expected, strict=True))
    assert all(map(torch.equal, _gradients(model), expected))  # as it was


def test_it_is_added_to_the_heads_where_it_lies() -> None:
    model, seen = _model(), []
    weight = model.get_input_embeddings().weight
    undo = tied_embeddings.apply(Facts(model, bf16=False))
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append((parameter.grad.data_ptr(), parameter.grad.clone())))
    model(input_ids=BATCHES[1]).logits.square().mean().backward()
    undo()
    assert [place for place, _ in seen] == [weight.grad.data_ptr()]  # the head's alone went through the graph
    assert not torch.equal(seen[0][1][[1, 2, 9]], weight.grad[[1, 2, 9]])
    assert torch.equal(seen[0][1][10:], weight.grad[10:])


def test_a_matrix_without_a_gradient_gets_one() -> None:
    model = _model()
    undo = tied_embeddings.apply(Facts(model, bf16=False))
    model.get_input_embeddings()(BATCHES[1]).sum().backward()
    undo()
    grad = model.get_input_embeddings().weight.grad
    assert grad[[1, 2, 9]].eq(torch.tensor([1.0, 1.0, 2.0])[:, None]).all()
    assert not grad[[0, 3, 10]].any()


def test_says_why_not() -> None:
    assert "matrix of its own" in str(tied_embeddings.why_not(Facts(_model(tied=False), bf16=False)))
    frozen = _model()
    frozen.get_input_embeddings().weight.requires_grad = False
    assert tied_embeddings.why_not(Facts(frozen, bf16=False)) == "the embeddings are not trained"
    assert tied_embeddings.why_not(Facts(_model(), bf16=False)) is None
