"""The loss of trained tokens: sum, gradient and scores are those of the plain loss over all logits."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers

from tiny_models import ENCODERS, LANGUAGE_MODELS, tiny_decoder
from tunesmith.models import token_loss
from tunesmith.models.token_loss import find_head, logits_at, score_tokens


def batch(vocabulary: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two rows, the second padded; prompts and padding are not trained."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (2, 9), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.clone()
    labels[:, :3] = -100
    labels[1, 6:] = -100
    return {"input_ids": ids, "attention_mask": mask}, labels


def plain_losses(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    logits = model(**inputs).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("chunk", [4, 1024])
def test_sum_and_gradient_are_those_of_all_logits(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_TOKENS", chunk)
    model = tiny_decoder(name)
    inputs, labels = batch(model.config.vocab_size)
    losses = plain_losses(model, inputs, labels)
    losses.sum().backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    assert find_head(model) is not None
    scores = score_tokens(model, inputs, labels)
    scores.loss.backward()
    torch.testing.assert_close(scores.losses, losses[losses > 0].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.loss.detach(), losses.sum().detach(), rtol=1e-5, atol=1e-5)
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_in_bf16_the_loss_is_that_of_all_logits_in_bf16(name: str) -> None:
    model = tiny_decoder(name)
    inputs, labels = batch(model.config.vocab_size)
    forward = model.forward

    def in_bf16(*args: Any, **kwargs: Any) -> Any:  # as accelerate wraps a model
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    model.forward = in_bf16
    losses = plain_losses(model, inputs, labels)
    assert find_head(model) is not None
    torch.testing.assert_close(score_tokens(model, inputs, labels).losses, losses[losses > 0].detach(), rtol=2e-2, atol=2e-2)


def test_a_frozen_head_gets_no_gradient_and_passes_it_on() -> None:
    model = tiny_decoder("llama", tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    inputs, labels = batch(model.config.vocab_size)
    score_tokens(model, inputs, labels).loss.backward()
    assert model.lm_head.weight.grad is None
    assert float(model.model.embed_tokens.weight.grad.abs().sum()) > 0


def test_one_chunk_of_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_TOKENS", 4)
    chunks: list[weakref.ref[torch.Tensor]] = []
    score_chunk = token_loss._score_chunk

    def note(raw: torch.Tensor, *arguments: Any) -> Any:
        assert all(chunk() is None for chunk in chunks)
        chunks.append(weakref.ref(raw))
        return score_chunk(raw, *arguments)

    monkeypatch.setattr(token_loss, "_score_chunk", note)
    model = tiny_decoder("llama")
    score_tokens(model, *batch(model.config.vocab_size))
    assert len(chunks) == 3


def test_hits_are_the_likeliest_tokens() -> None:
    model = tiny_decoder("llama").eval()
    inputs, labels = batch(model.config.vocab_size)
    with torch.no_grad():
        likeliest = model(**inputs).logits[:, :-1].argmax(-1)
        labels[:, 1:][labels[:, 1:] != -100] = likeliest[labels[:, 1:] != -100]
        labels[0, -1] = (labels[0, -1] + 1) % model.config.vocab_size
        correct = score_tokens(model, inputs, labels).correct
    assert correct.sum() == len(correct) - 1
    assert not correct[5]


def test_a_head_with_bias_goes_through_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_TOKENS", 3)
    model = tiny_decoder("phi")
    assert model.lm_head.bias is not None
    torch.nn.init.normal_(model.lm_head.bias)
    inputs, labels = batch(model.config.vocab_size)
    expected = plain_losses(model, inputs, labels).sum()
    torch.testing.assert_close(score_tokens(model, inputs, labels).loss, expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_changes_logits_after_its_head_is_scored_by_all_its_logits() -> None:
    class Bent(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits + torch.arange(outputs.logits.shape[-1]) * 0.01
            return outputs

    model = Bent(tiny_decoder("llama").config)
    inputs, labels = batch(model.config.vocab_size)
    assert find_head(model) is None
    torch.testing.assert_close(score_tokens(model, inputs, labels).loss, plain_losses(model, inputs, labels).sum(), rtol=1e-5, atol=1e-5)


def test_a_batch_without_a_trained_token_has_loss_zero() -> None:
    model = tiny_decoder("llama")
    inputs, labels = batch(model.config.vocab_size)
    scores = score_tokens(model, inputs, torch.full_like(labels, -100))
    assert float(scores.loss.detach()) == 0
    assert len(scores.losses) == 0


def masked_model(name: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(ENCODERS[name](64))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_positions_alone_go_through_transform_and_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_TOKENS", 3)
    model = masked_model(name)
    inputs, labels = batch(64)
    labels[0, 5] = -100
    logits = model(**inputs).logits
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    head = find_head(model)
    assert head is not None
    assert head.body is not None
    seen: list[int] = []
    head.module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]), prepend=True)
    scores = score_tokens(model, inputs, labels, shifted=False)
    assert seen[-1] == int((labels >= 0).sum()) < labels.numel()
    scores.loss.backward()
    losses = F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")
    torch.testing.assert_close(scores.losses, losses.detach(), rtol=1e-4, atol=1e-5)
    for key, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[key].grad, gradient, rtol=1e-3, atol=1e-4, msg=key)
    torch.testing.assert_close(logits_at(model, inputs, labels >= 0), logits[labels >= 0], rtol=1e-4, atol=1e-4)
    assert float(score_tokens(model, inputs, torch.full_like(labels, -100), shifted=False).loss.detach()) == 0


def test_a_loss_has_one_backward_pass_and_any_scale() -> None:
    model = tiny_decoder("llama")
    inputs, labels = batch(model.config.vocab_size)
    gradients = []
    for scale in (1.0, 0.25):
        model.zero_grad()
        loss = score_tokens(model, inputs, labels).loss * scale
        loss.backward(retain_graph=True)
        gradients.append(model.get_output_embeddings().weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0] / 4, rtol=1e-5, atol=1e-7)
    with pytest.raises(AssertionError, match="a second time"):
        loss.backward()


def test_the_head_is_given_nothing_to_cast_and_autocast_goes_on_after_it() -> None:
    model = tiny_decoder("llama")
    inputs, labels = batch(model.config.vocab_size)
    score_tokens(model, inputs, labels)  # which tries what its head is
    states: list[tuple[int, bool]] = []

    def note(_: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        states.append((output.numel(), torch.is_autocast_enabled("cpu")))

    model.lm_head.register_forward_hook(note)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score_tokens(model, inputs, labels)
        model.lm_head.forward = lambda hidden: 1 / 0
        with pytest.raises(ZeroDivisionError):
            score_tokens(model, inputs, labels)
        assert torch.is_autocast_enabled("cpu")
    assert states == [(0, False)]
    assert not torch.is_autocast_enabled("cpu")
