"""The last block computes what is read: the first token of each row, and all tokens where a head reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import tiny_models
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


def _rows_seen(model: Any) -> dict[str, int]:
    """How many vectors the layers of the last block are given."""
    seen: dict[str, int] = {}
    block = model.base_model.encoder.layer[-1]
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0].flatten(0, -2).shape[0]}))
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    model(**_batch())
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


def test_a_model_of_words_reads_every_token(tmp_path: Path) -> None:
    assert _why(_model(tmp_path, "AutoModelForMaskedLM")) == "a head of words reads every token"


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
