"""Liger's kernels are chosen where they can be had, leave the loss alone, and are taken away without a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers.models.llama import modeling_llama

import tiny_models
from tunesmith.speed import liger
from tunesmith.speed.choose import choose
from tunesmith.speed.facts import Facts

Snapshot = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A liger_kernel that knows llama and writes where Liger does; what it was given, call by call."""
    calls: list[dict[str, Any]] = []

    def change(model: Any, scale: float = 1.0, **settings: Any) -> None:
        calls.append({"model": model, **settings})
        plain = modeling_llama.apply_rotary_pos_emb
        modeling_llama.apply_rotary_pos_emb = lambda *given, **named: plain(*given, **named)
        modeling_llama.LlamaRMSNorm = type("LigerRMSNorm", (), {})
        modeling_llama.liger_was_here = True
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.offset, module.variance_epsilon = 0.0, module.variance_epsilon + 0.0
                forward = type(module).forward
                module.__dict__["forward"] = lambda hidden, module=module, forward=forward: forward(module, hidden) * scale
                module.__dict__["_get_name"] = lambda: "LigerRMSNorm"
        torch.nn.functional.liger_was_here = True

    def package(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    package("liger_kernel", __path__=[])
    package("liger_kernel.transformers", __path__=[], _apply_liger_kernel_to_instance=change)
    package("liger_kernel.transformers.monkey_patch", MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": change})
    return calls


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Facts, "on_cpu", False)


def _llama(adapters: bool = False) -> Any:
    model = tiny_models.tiny_decoder("llama")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear")).eval() if adapters else model


def _snapshot(model: torch.nn.Module) -> Snapshot:
    namespaces = [vars(module) for module in (*model.modules(), modeling_llama, torch.nn.functional)]
    return [(namespace, dict(namespace)) for namespace in namespaces]


def _is_as_it_was(snapshot: Snapshot) -> bool:
    return all(now.keys() == then.keys() and all(now[name] is then[name] for name in then) for now, then in snapshot)


def test_the_processor_has_its_own() -> None:
    assert liger.why_not(Facts(_llama(), bf16=False)) == "made for GPUs"


def test_where_it_is_not_installed_its_extra_is_named(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert liger.why_not(Facts(_llama(), bf16=False)) == "needs liger-kernel: pip install 'tunesmith[gpu]'"


def test_models_that_it_does_not_know_are_left_alone(on_a_gpu: None, given: Any) -> None:
    assert liger.why_not(Facts(tiny_models.tiny_decoder("gpt2"), bf16=False)) == "liger-kernel does not know gpt2"
    assert liger.why_not(Facts(_llama(), bf16=False)) is None
    assert liger.why_not(Facts(_llama(adapters=True), bf16=False)) is None


@pytest.mark.parametrize("adapters", [False, True])
def test_it_is_given_the_model_itself_and_no_loss(given: list[dict[str, Any]], adapters: bool) -> None:
    model = _llama(adapters)
    liger.apply(Facts(model, bf16=False))()
    plain = model.get_base_model() if adapters else model
    assert given == [{"model": plain, "fused_linear_cross_entropy": False, "cross_entropy": False, "layer_norm": False}]


@pytest.mark.parametrize("adapters", [False, True])
def test_nothing_is_left_of_it(given: Any, adapters: bool) -> None:
    facts = Facts(_llama(adapters), bf16=False)
    expected, before = facts.outputs(), _snapshot(facts.model)
    undo = liger.apply(facts)
    assert not _is_as_it_was(before)
    assert torch.equal(facts.outputs(), expected)
    facts.model.train()
    facts.model.eval()
    undo()
    assert _is_as_it_was(before)
    assert torch.equal(facts.outputs(), expected)


def test_what_was_set_meanwhile_stays(given: Any) -> None:
    facts = Facts(_llama(), bf16=False)
    undo = liger.apply(facts)
    facts.model.config.use_cache = True
    facts.model.train()
    undo()
    assert facts.model.training


def test_an_error_in_it_leaves_nothing_either() -> None:
    namespace = {"kept": 1, "changed": 2, "deleted": 3}

    def change() -> None:
        namespace.update(changed=4, added=5)
        del namespace["deleted"]
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        liger.remembering([namespace], change)
    assert namespace == {"kept": 1, "changed": 2, "deleted": 3}


@pytest.mark.parametrize(("scale", "chosen"), [(1.0, ["liger"]), (1.5, [])])
def test_it_is_tried_on_the_model(given: Any, on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, scale: float, chosen: list[str]) -> None:
    package = sys.modules["liger_kernel.transformers"]
    change: Callable[..., None] = package._apply_liger_kernel_to_instance
    monkeypatch.setattr(package, "_apply_liger_kernel_to_instance", lambda **given: change(**given, scale=scale))
    facts = Facts(_llama(), bf16=False)
    before = _snapshot(facts.model)
    names, decisions = choose(facts, [])
    assert names == chosen
    (decision,) = (decision for decision in decisions if decision.field == "speed.liger")
    assert decision.value is bool(chosen)
    assert chosen or decision.because.startswith("this model computes something else with it")
    assert _is_as_it_was(before)
