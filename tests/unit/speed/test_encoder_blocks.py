"""A block computed by one kernel has the numbers, and the draws, of the same kernels called by its modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_models
from graphs import node_names
from tunesmith.native.products import has_products
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts

pytestmark = [
    pytest.mark.skipif(not has_products(), reason="there is no kernel for this processor"),
    pytest.mark.usefixtures("attention_by_kernel"),
]

NAMES = ["end_to_end", "last_block", "linear", "dropout", "norm", "activation"]
LENGTHS = (9, 4, 1)


def _model(folder: Path, kind: str = "bert", task: str = "AutoModelForSequenceClassification") -> Any:
    tiny_models.save_tiny(kind, folder, task)
    return getattr(transformers, task).from_pretrained(folder).train()


def _adapted(model: Any) -> Any:
    return tiny_models.adapted(model, lora_dropout=0.3)


def _frozen_below(model: Any) -> Any:
    for parameter in [*model.base_model.embeddings.parameters(), *model.base_model.encoder.layer[0].parameters()]:
        parameter.requires_grad = False
    return model


def _batch() -> dict[str, torch.Tensor]:
    mask = (torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.arange(5, 5 + mask.numel()).view(mask.shape) * mask, "attention_mask": mask}


def _computed(model: Any, names: list[str], bf16: bool = True) -> dict[str, torch.Tensor]:
    """Logits and gradients of a pass, by name."""
    model.zero_grad()
    torch.manual_seed(7)
    with accelerated(Facts(model, bf16), names), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(**_batch()).logits.float()
        (logits * torch.linspace(1, 2, logits.numel()).view(logits.shape)).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), **found}


KINDS = ("bert", "roberta", "xlm-roberta", "electra")


@pytest.mark.parametrize("task", ["AutoModelForSequenceClassification", "AutoModelForTokenClassification"])
@pytest.mark.parametrize(
    ("kind", "make"),
    [*((kind, make) for kind in KINDS for make in (lambda model: model, _adapted)), ("bert", _frozen_below)],
    ids=[*(f"{kind}-{method}" for kind in KINDS for method in ("full", "lora")), "bert-frozen"],
)
def test_bits_are_those_of_the_modules(kind: str, make: Any, task: str, tmp_path: Path) -> None:
    assert_same_bits(make(_model(tmp_path, kind, task)))


@pytest.mark.parametrize("kind", ["Camembert", "Ernie"])
def test_other_families_of_the_same_code(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    torch.manual_seed(0)
    assert_same_bits(getattr(transformers, f"{kind}ForSequenceClassification")(config).train())


def assert_same_bits(model: Any) -> None:
    """Logits and gradients are the same with blocks of one node each as with modules, and something is dropped in both."""
    expected, found = _computed(model, NAMES), _computed(model, [*NAMES, "encoder_blocks"])
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert not torch.equal(expected["logits"], _computed(model.eval(), NAMES)["logits"])


def test_distilbert_rounds_once_less(tmp_path: Path) -> None:
    model = _model(tmp_path, "distilbert")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    exact = _computed(model, [], bf16=False)
    plain, found = _computed(model, NAMES), _computed(model, [*NAMES, "encoder_blocks"])

    def error(of: dict[str, torch.Tensor]) -> float:
        return float(sum(((of[name] - tensor) / tensor.abs().max()).pow(2).mean() for name, tensor in exact.items()) ** 0.5)

    assert exact.keys() == found.keys()
    assert error(found) < 1.25 * error(plain)


def test_a_gradient_can_be_had_twice(tmp_path: Path) -> None:
    model = _model(tmp_path)
    with accelerated(Facts(model, bf16=True), [*NAMES, "encoder_blocks"]), torch.autocast("cpu", torch.bfloat16):
        loss = model(**_batch()).logits.float().square().sum()
    first, second = (torch.autograd.grad(loss, list(model.base_model.encoder.parameters()), retain_graph=keeps) for keeps in (True, False))
    assert all(map(torch.equal, first, second))


def test_a_block_is_one_node(tmp_path: Path) -> None:
    model = _model(tmp_path)
    with accelerated(Facts(model, bf16=True), [*NAMES, "encoder_blocks"]), torch.autocast("cpu", torch.bfloat16):
        nodes = node_names(model(**_batch()).logits)
    assert nodes.count("_ComputedBackward") == model.config.num_hidden_layers
    assert not {"_StackedBackward", "_AttentionBackward"} & set(nodes)


def test_who_watches_a_module_sees_it(tmp_path: Path) -> None:
    model, seen = _model(tmp_path), []
    with accelerated(Facts(model, bf16=True), [*NAMES, "encoder_blocks"]), torch.autocast("cpu", torch.bfloat16):
        handle = model.base_model.encoder.layer[0].intermediate.register_forward_hook(lambda *given: seen.append(given[2].shape))
        nodes = node_names(model(**_batch()).logits)
        handle.remove()
        again = node_names(model(**_batch()).logits)
    assert len(seen) == 1
    assert again.count("_ComputedBackward") == nodes.count("_ComputedBackward") + 1


def test_adapters_can_be_left_out(tmp_path: Path) -> None:
    model = _adapted(_model(tmp_path)).eval()
    with accelerated(Facts(model.base_model.model, bf16=False), [*NAMES, "encoder_blocks"]), torch.no_grad():
        with model.disable_adapter():
            without = model(**_batch()).logits
        adapted = model(**_batch()).logits
    with torch.no_grad(), model.disable_adapter():
        assert torch.allclose(without, model(**_batch()).logits, atol=1e-5)
    assert not torch.allclose(without, adapted, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "reason"), [("modernbert", "its blocks are of another kind"), ("albert", "its blocks are of another kind")]
)
def test_says_why_not(kind: str, reason: str, tmp_path: Path) -> None:
    _, decisions = choose(Facts(_model(tmp_path, kind), bf16=True), [])
    assert [decision.because for decision in decisions if decision.field == "speed.encoder_blocks"] == [reason]


def test_wants_what_it_is_made_of(tmp_path: Path) -> None:
    _, decisions = choose(Facts(_model(tmp_path), bf16=True), ["linear"])
    said = {decision.field: decision.because for decision in decisions}
    assert said["speed.encoder_blocks"] == "its linear layers are not in stacks as blocks of its kind have them"
