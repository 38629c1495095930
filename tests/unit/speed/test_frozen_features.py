"""What frozen blocks make of a row is computed once, and later epochs have the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tunesmith.native.products import has_products
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts

VOCABULARY = 64
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 3}
LENGTHS = (70, 33, 65, 40)
needs_products = pytest.mark.skipif(not has_products(), reason="no compiled products here")


def decoder(**changes: Any) -> Any:
    """A Llama whose last block is trained."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **{**SIZES, **changes}))
    for block in model.model.layers[:-1]:
        block.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    return model.train()


def facts_of(model: Any, **changes: Any) -> Facts:
    return Facts(model, **{"bf16": True, "num_tokens": sum(LENGTHS), "epochs": 3.0, **changes})


def why(facts: Facts) -> str:
    _, decisions = choose(facts, [])
    return next(decision.because for decision in decisions if decision.field == "speed.frozen_features")


def batch(*numbers: int) -> dict[str, torch.Tensor]:
    """Rows of these numbers."""
    rows = [torch.randint(5, VOCABULARY, (LENGTHS[number],), generator=torch.Generator().manual_seed(number)) for number in numbers]
    masks = [torch.ones_like(row) for row in rows]
    ids, mask = (torch.nn.utils.rnn.pad_sequence(values, batch_first=True) for values in (rows, masks))
    return {"input_ids": ids, "attention_mask": mask}


def gradients(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Of what is trained, in bf16."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**inputs).logits.float()
    (logits.square() * inputs["attention_mask"][..., None]).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@needs_products
def test_rows_that_come_again_in_other_steps_are_not_computed_again_and_keep_their_bits() -> None:
    model = decoder()
    names, _ = choose(facts_of(model), [])
    assert "frozen_features" in names
    epochs = [[(0, 1), (2, 3)], [(0, 2), (3, 1)], [(3,), (2, 1, 0)]]
    computed: list[int] = []
    with accelerated(facts_of(model), [name for name in names if name != "frozen_features"]):
        expected = [gradients(model, batch(*step)) for epoch in epochs for step in epoch]
    with accelerated(facts_of(model), names):
        handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: computed.append(1))
        found = [gradients(model, batch(*step)) for epoch in epochs for step in epoch]
        handle.remove()
    assert len(computed) == 2  # the steps of the first epoch
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@needs_products
def test_evaluation_computes_everything_and_changes_nothing() -> None:
    model = decoder()
    with accelerated(facts_of(model), ["end_to_end", "linear", "frozen_features"]):
        expected = gradients(model, batch(0, 1))
        with torch.no_grad():
            model.eval()(**batch(1, 0))
            model.train()
        assert all(torch.equal(one, other) for one, other in zip(gradients(model, batch(0, 1)), expected, strict=True))
    assert not any("forward" in module.__dict__ for module in model.modules())


@needs_products
def test_no_more_is_kept_than_the_rows_hold() -> None:
    """Rows that are never the same, as where words are hidden anew, do not fill the memory."""
    model = decoder()
    with accelerated(facts_of(model, num_tokens=LENGTHS[0]), ["end_to_end", "linear", "frozen_features"]):
        kept = model.model.layers[0].__dict__["forward"].func.__self__
        for number in range(4):
            gradients(model, batch(number))
        assert len(kept.rows) == 1


@needs_products
@pytest.mark.parametrize(
    ("changes", "of_facts", "reason"),
    [
        ({}, {"epochs": 1.0}, "every row is read once"),
        ({}, {"bf16": False}, "only the compiled products of bf16"),
        ({}, {"training": False}, "nothing is trained"),
        ({}, {"num_tokens": 10**12}, "GB"),
        ({"attention_dropout": 0.1}, {}, "depends on chance"),
        ({"hidden_size": 64}, {}, "numbers or fewer"),
    ],
)
def test_why_not(changes: dict[str, Any], of_facts: dict[str, Any], reason: str) -> None:
    assert reason in why(facts_of(decoder(**changes), **of_facts))


@needs_products
def test_not_where_the_first_block_or_what_stands_before_it_is_trained() -> None:
    model = decoder()
    model.model.layers[0].requires_grad_(True)
    assert why(facts_of(model)) == "the first block is trained"
    model = decoder()
    model.model.embed_tokens.requires_grad_(True)
    assert why(facts_of(model)) == "what stands before the blocks is trained"
