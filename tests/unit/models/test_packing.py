"""Examples end to end: what a model gives each is what it gives it alone, logits and gradients; a model that mixes them is found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_models import LANGUAGE_MODELS, tiny_decoder
from tunesmith.models.packing import packed_difference
from tunesmith.models.token_loss import score_tokens

PACKABLE = [name for name in LANGUAGE_MODELS if name != "opt"]


@pytest.mark.parametrize("name", PACKABLE)
def test_models_that_read_positions_keep_examples_apart(name: str) -> None:
    assert packed_difference(tiny_decoder(name)) < 1


def test_a_model_that_counts_positions_from_its_mask_is_found_out() -> None:
    assert packed_difference(tiny_decoder("opt")) > 1


def test_a_model_that_sees_through_is_found_out() -> None:
    model = tiny_decoder("llama")
    forward = model.forward

    def see_all(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)  # positions go on, and with them attention

    model.forward = see_all
    assert packed_difference(model) > 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "qwen3", "mistral"])
def test_gradients_of_packed_examples_are_the_sum_of_each_alone(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    examples = [torch.randint(3, 64, (length,), generator=draw) for length in (11, 4, 7)]
    model = tiny_decoder(name)
    for example in examples:
        labels = example.clone()
        labels[:2] = -100
        score_tokens(model, {"input_ids": example[None]}, labels[None]).loss.backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    positions = torch.cat([torch.arange(len(example)) for example in examples])
    labels = torch.cat(examples)
    labels[positions < 2] = -100
    score_tokens(model, {"input_ids": torch.cat(examples)[None], "position_ids": positions[None]}, labels[None]).loss.backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-5, msg=key)
