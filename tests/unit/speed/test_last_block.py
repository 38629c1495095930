"""The last block computes what is read: the first token of each row, the words that are filled in, and all tokens where a head reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import tiny_models
from tunesmith.models.token_loss import logits_at, score_tokens
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts

NAMES = ["end_to_end", "last_block", "linear"]
LENGTHS = (9, 4, 1)


def _model(folder: Path, task: str = "AutoModelForSequenceClassification") -> Any:
    tiny_models.save_tiny("bert", folder, task)
    return getattr(transformers, task).from_pretrained(folder)


def _batch() -> dict[str, torch.Tensor]:
    mask = (torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.arange(5, 5 + mask.numel()).view(mask.shape) * mask, "attention_mask": mask}


def _rows_seen(model: Any, labels: torch.Tensor | None = None) -> dict[str, int]:
    """How many vectors the layers of the last block are given, where tokens are scored or rows."""
    seen: dict[str, int] = {}
    block = model.base_model.encoder.layer[-1]
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0].flatten(0, -2).shape[0]}))
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    model(**_batch()) if labels is None else score_tokens(model, _batch(), labels, shifted=False)
    for handle in handles:
        handle.remove()
    return seen


def _why(model: Any) -> str:
    _, decisions = choose(Facts(model, bf16=False), [])
    return next(decision.because for decision in decisions if decision.field == "speed.last_block")


def test_only_keys_and_values_are_of_all_tokens(tmp_path: Path) -> None:
    model = _model(tmp_path).eval()
    with accelerated(Facts(model, bf16=False), NAMES):
        seen = _rows_seen(model)
    rows = len(LENGTHS) + 1  # and what fills all tokens up to a multiple of 32
    assert {name for name, count in seen.items() if count == rows} == {
        "attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense",
    }  # fmt: skip
    assert seen["attention.self.key"] == seen["attention.self.value"] == 32
    assert set(_rows_seen(model).values()) == {max(LENGTHS) * len(LENGTHS)}  # as it was


@pytest.mark.parametrize("task", ["AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModel"])
def test_every_token_where_the_head_reads_every_token(task: str, tmp_path: Path) -> None:
    assert _why(_model(tmp_path, task)) == "more than the first token of each row is read"


LABELS = torch.tensor([[-100, 3, -100, 5, -100, -100, 7, -100, -100], [9, *[-100] * 8], [-100] * 9])
"""Three words of the first row, the first of the second, and none of the third."""


def test_of_words_those_that_are_scored(tmp_path: Path) -> None:
    model = _model(tmp_path, "AutoModelForMaskedLM").eval()
    with accelerated(Facts(model, bf16=False), NAMES):
        some, every = _rows_seen(model, LABELS), _rows_seen(model)
    narrow = "attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"
    # and the first of two rows, and of what fills all tokens up to a multiple of 32
    assert {some[name] for name in narrow} == {int((LABELS >= 0).sum()) + 3}
    assert {every[name] for name in narrow} == {sum(LENGTHS) + 1}
    assert {seen[f"attention.self.{name}"] for seen in (some, every) for name in ("key", "value")} == {32}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("labels", [LABELS, torch.full_like(LABELS, -100)], ids=["some", "none"])
def test_words_are_learnt_the_same(kind: str, labels: torch.Tensor, tmp_path: Path) -> None:
    tiny_models.save_tiny(kind, tmp_path, "AutoModelForMaskedLM")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        scores = score_tokens(model, _batch(), labels, shifted=False)
        scores.loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return {**found, "losses": scores.losses, "logits": logits_at(model, _batch(), labels >= 0).detach()}

    expected = gradients()
    assert _why(model) == "the last block computes queries, and what comes after attention, of the tokens that are read"
    with accelerated(Facts(model, bf16=False), NAMES):
        found = gradients()
    assert found.keys() == expected.keys()
    largest = max([float(value.abs().max()) for value in expected.values() if value.numel()])
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * largest), name


def test_a_head_of_words_that_reads_beside_them_reads_every_token(tmp_path: Path) -> None:
    model = _model(tmp_path, "AutoModelForMaskedLM")
    plain = model.bert.forward

    def mixed(*arguments: Any, **named: Any) -> Any:
        output = plain(*arguments, **named)
        output["last_hidden_state"] = output["last_hidden_state"].roll(1, 1)
        return output

    model.bert.forward = mixed
    assert _why(model) == "its head is not known to read each token by itself"


def test_a_model_that_writes_reads_every_token() -> None:
    assert _why(tiny_models.tiny_decoder("llama", 64)) == "its tokens see those before them alone"


def test_a_mean_of_tokens_reads_every_token(tmp_path: Path) -> None:
    model = _model(tmp_path)
    model.bert.pooler.forward = lambda hidden: hidden.mean(1)
    assert _why(model) == "more than the first token of each row is read"


def test_tokens_that_are_padded_are_not_for_it(tmp_path: Path) -> None:
    _, decisions = choose(Facts(_model(tmp_path), bf16=False), ["end_to_end"])
    assert next(item.because for item in decisions if item.field == "speed.last_block") == "the tokens do not lie end to end"


def test_a_pass_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    model = _model(tmp_path).eval()
    with accelerated(Facts(model, bf16=False), NAMES), torch.no_grad():
        expected = model(**_batch()).logits
        handle = model.bert.encoder.layer[-1].output.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**_batch())
        handle.remove()
        assert torch.equal(model(**_batch()).logits, expected)


def test_adapters_of_the_last_block_learn_the_same(tmp_path: Path) -> None:
    model = peft.get_peft_model(_model(tmp_path), peft.LoraConfig(r=4, target_modules="all-linear")).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        (model(**_batch()).logits * torch.tensor([1.0, 2.0])[: model.config.num_labels]).sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected = gradients()
    with accelerated(Facts(model, bf16=False), NAMES):
        found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * float(max(g.abs().max() for g in expected.values()))), name
