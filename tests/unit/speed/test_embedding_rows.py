from typing import Any

import numpy as np
import torch
import transformers

import tiny_models
from tunesmith.speed import embedding_rows
from tunesmith.speed.facts import Facts

USED = (0, 1, 5, 7, 20, 21)
STEPS = ([[1, 5, 0], [7, 7, 0]], [[5, 20, 21]], [[1, 1, 1]])


def grads(model: Any, accelerated: bool) -> list[torch.Tensor]:
    """Of the whole matrix, after each of the steps' two micro-batches and once without clearing in between."""
    embeddings = model.get_input_embeddings()
    found = []
    for ids in STEPS:
        model.zero_grad()
        for part in (ids, ids[:1]):
            output = embeddings(torch.tensor(part))
            (output * torch.arange(output.numel()).view(output.shape)).sum().backward()
        found.append(embeddings.weight.grad.clone())
    if not accelerated:
        return found
    return [torch.zeros(64, grad.shape[1]).index_copy(0, torch.tensor(USED), grad) for grad in found]


def test_gradients_are_those_of_an_embedding_in_every_step_and_micro_batch():
    model = transformers.BertModel(tiny_models.ENCODERS["bert"](64)).train()
    expected = grads(model, False)
    facts = Facts(model, bf16=False, token_ids=lambda: np.asarray(USED))
    undo = embedding_rows.apply(facts)
    found = grads(model, True)
    undo()
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), step
    assert expected[0][7].any()
    assert not expected[0][0].any()
