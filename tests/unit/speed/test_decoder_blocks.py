"""A block of Llama's make computed by one kernel has the numbers, and the draws, of the same kernels called by its modules: products of the
same bits, and sums in fp32 that may be in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_models
from graphs import node_names, nodes_of
from tunesmith.native.products import has_products
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts

pytestmark = [
    pytest.mark.skipif(not has_products(), reason="there is no kernel for this processor"),
    pytest.mark.usefixtures("attention_by_kernel"),
]

NAMES = ["end_to_end", "linear", "norm", "activation", "rotary"]
LENGTHS = (23, 9, 1)


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    model = tiny_models.tiny_decoder(kind, 64)
    model.config.attention_dropout = 0.2
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return model.train()


def _adapted(model: Any) -> Any:
    return tiny_models.adapted(model, lora_dropout=0.3)


def _first_queries(model: Any) -> Any:
    """A layer whose input is wanted for its gradient, while nothing below it is trained."""
    _frozen_below(model).model.layers[0].self_attn.q_proj.weight.requires_grad = True
    return model


def _frozen_below(model: Any) -> Any:
    for parameter in [*model.model.embed_tokens.parameters(), *model.model.layers[0].parameters()]:
        parameter.requires_grad = False
    return model


def _computed(model: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Logits of real tokens and gradients of a pass in bf16, by name."""
    mask = (torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]).long()
    ids = (torch.arange(mask.numel()).view(mask.shape) % 60 + 3) * mask
    model.zero_grad()
    torch.manual_seed(7)
    with accelerated(Facts(model, bf16=True), names), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask).logits.float()[mask == 1]
        (logits * torch.linspace(1, 2, logits.numel()).view(logits.shape)).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), **found}


@pytest.mark.parametrize(
    "make",
    [lambda model: model, _adapted, tiny_models.adapted, _frozen_below, _first_queries],
    ids=["full", "lora", "lora-without-dropout", "frozen", "queries"],
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_numbers_are_those_of_the_modules(kind: str, make: Any) -> None:
    model = make(_model(kind))
    expected, found = _computed(model, NAMES), _computed(model, [*NAMES, "decoder_blocks"])
    assert expected.keys() == found.keys()
    assert torch.equal(expected["logits"], found["logits"])
    apart = {name: float((tensor - found[name]).abs().max() / tensor.abs().max()) for name, tensor in expected.items()}
    assert {name: by for name, by in apart.items() if by > 1e-6} == {}
    assert not torch.equal(expected["logits"], _computed(model.eval(), NAMES)["logits"])  # something was dropped


@pytest.mark.parametrize("make", [lambda model: model, _adapted], ids=["full", "lora"])
def test_a_gradient_can_be_had_twice(make: Any) -> None:
    model = make(_model("llama"))
    trained = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and "layers" in name]
    with accelerated(Facts(model, bf16=True), [*NAMES, "decoder_blocks"]), torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=torch.arange(3, 11)[None], attention_mask=torch.ones(1, 8)).logits.float().square().sum()
    first, second = (torch.autograd.grad(loss, trained, retain_graph=keeps) for keeps in (True, False))
    assert all(map(torch.equal, first, second))


def test_a_block_is_one_node() -> None:
    model = _model("llama")
    facts = Facts(model, bf16=True)
    names, _ = choose(facts, [])
    with accelerated(facts, names), torch.autocast("cpu", torch.bfloat16):
        nodes = node_names(model(input_ids=torch.arange(3, 11)[None], attention_mask=torch.ones(1, 8)).logits)
    assert nodes.count("_ComputedBackward") == model.config.num_hidden_layers
    assert not {"_StackedBackward", "_AttentionBackward", "_RotaryBackward"} & set(nodes)


def test_what_its_norms_and_gates_make_is_not_kept() -> None:
    model = _model("llama")
    facts = Facts(model, bf16=True)
    names, _ = choose(facts, [])
    with accelerated(facts, names), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=torch.arange(3, 11)[None], attention_mask=torch.ones(1, 8)).logits
        (block, *_) = (node for node in nodes_of(logits) if node.name() == "_ComputedBackward")
        kept, saved_hidden, x, *_ = block.saved_tensors
    hidden, attention = model.config.hidden_size, model.model.layers[0].self_attn
    projected = sum(layer.out_features for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    columns = projected + attention.o_proj.in_features + hidden + 2 * model.config.intermediate_size
    rows = saved_hidden.shape[1]
    numbers_of_rows = 2 * attention.config.num_attention_heads + 1  # sums of attention, and the middle norm's root mean square
    assert x is None
    assert kept.nbytes - 64 * 6 < rows * (columns * 2 + numbers_of_rows * 4) <= kept.nbytes  # each part begins on a line of the cache


def test_it_writes_as_its_modules_do() -> None:
    model = _model("llama").eval()
    prompt = torch.arange(3, 11)[None]
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False)
    with accelerated(Facts(model, bf16=True), [*NAMES, "decoder_blocks"]):
        assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.parametrize("kind", ["qwen3", "phi3", "gpt_neox"])
def test_says_why_not(kind: str) -> None:
    _, decisions = choose(Facts(_model(kind), bf16=True), [])
    said = next(decision.because for decision in decisions if decision.field == "speed.decoder_blocks")
    assert said == "its blocks are of another kind"


def test_a_run_in_fp32_has_none() -> None:
    _, decisions = choose(Facts(_model("llama"), bf16=False), [])
    said = next(decision.because for decision in decisions if decision.field == "speed.decoder_blocks")
    assert "fp32" in said


def test_a_model_is_as_it_was_afterwards(tmp_path: Path) -> None:
    model = _model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with accelerated(Facts(model, bf16=True), choose(Facts(model, bf16=True), [])[0]):
        pass
    assert not any("forward" in vars(module) for module in model.modules())
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())
