from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny_models
from tunesmith.models.mapped import PRESENT, pages_of
from tunesmith.speed import embedding_rows
from tunesmith.speed.facts import Facts, Unfit

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


def from_file(folder: Path, trained: bool) -> Any:
    """A model whose embeddings are a mapping of its file."""
    transformers.BertModel(tiny_models.ENCODERS["bert"](4096)).save_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).train()
    model.get_input_embeddings().weight.requires_grad = trained
    return model


@pytest.mark.parametrize("trained", [True, False])
def test_the_whole_matrix_stays_in_its_file(trained: bool, tmp_path: Path) -> None:
    model = from_file(tmp_path, trained)
    module = model.get_input_embeddings()
    whole, before = module.weight, module.weight.detach().clone()
    everything = torch.arange(4096)
    undo = embedding_rows.apply(Facts(model, bf16=False, token_ids=lambda: np.asarray(USED)))
    assert torch.equal(module(torch.tensor([USED])), before[list(USED)][None])
    assert not (pages_of(whole)[1] & PRESENT).any()
    model.eval()
    assert torch.equal(module(everything), before)  # rows that no training row has, too
    if trained:
        with torch.no_grad():
            module.weight += 1
        assert torch.equal(module(torch.tensor([1, 2])), torch.stack([before[1] + 1, before[2]]))
    undo()
    assert module.weight is whole
    moved = torch.zeros(4096, 1).index_fill(0, torch.tensor(USED), float(trained))
    assert torch.equal(whole, before + moved)


def test_frozen_rows_that_are_in_memory_anyway_stay() -> None:
    model = transformers.BertModel(tiny_models.ENCODERS["bert"](64)).train().requires_grad_(False)
    with pytest.raises(Unfit, match="in memory anyway"):
        embedding_rows.apply(Facts(model, bf16=False, token_ids=lambda: np.asarray(USED)))
