from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_models
from tunesmith.errors import InputError
from tunesmith.registry import ACCELERATIONS, Acceleration
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts, Unfit


@pytest.fixture
def facts() -> Facts:
    return Facts(tiny_models.tiny_decoder("llama"), bf16=False)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Facts], Callable[[], None]]], None]:
    """Leaves one acceleration in the registry, of that `apply`."""

    def leave(apply: Callable[[Facts], Callable[[], None]]) -> None:
        record = Acceleration("mine", "computes it so", lambda facts: None, apply)
        monkeypatch.setattr(ACCELERATIONS, "_addresses", {})
        monkeypatch.setattr(ACCELERATIONS, "_records", {"mine": record})

    return leave


def scaled(by: float) -> Callable[[Facts], Callable[[], None]]:
    """An acceleration that multiplies the weights of the head."""

    def apply(facts: Facts) -> Callable[[], None]:
        weight = facts.model.get_output_embeddings().weight.data
        before = weight.clone()
        weight.mul_(by)

        def undo() -> None:
            weight.copy_(before)

        return undo

    return apply


def test_one_that_computes_something_else_is_left_off(facts: Facts, only: Any) -> None:
    only(scaled(1.5))
    before = facts.outputs()
    names, (decision,) = choose(facts, [])
    assert names == []
    assert decision.field == "speed.mine"
    assert decision.value is False
    assert decision.because.startswith("this model computes something else with it")
    assert torch.equal(facts.outputs(), before)


def test_rounding_is_allowed(facts: Facts, only: Any) -> None:
    only(scaled(1 + 1e-6))
    names, (decision,) = choose(facts, [])
    assert names == ["mine"]
    assert (decision.value, decision.because) == (True, "computes it so")


def test_one_that_the_weights_are_no_longer_fit_for_is_left_out(facts: Facts, only: Any) -> None:
    """As `frozen_weights` when the best checkpoint was read into a model that was a mapping of its file."""
    applied: list[None] = []

    def apply(_: Facts) -> Callable[[], None]:
        if applied:
            raise Unfit("not what the file holds")
        applied.append(None)
        return lambda: None

    only(apply)
    names, _ = choose(facts, [])
    assert names == ["mine"]
    with accelerated(facts, names):
        pass


@pytest.mark.parametrize(
    ("error", "reason"), [(Unfit("a reason"), "a reason"), (KeyError("x"), "the model cannot be computed so (KeyError: 'x')")]
)
def test_one_that_cannot_be_applied_is_left_off(facts: Facts, only: Any, error: Exception, reason: str) -> None:
    def apply(_: Facts) -> Callable[[], None]:
        raise error

    only(apply)
    names, (decision,) = choose(facts, [])
    assert (names, decision.because) == ([], reason)


def test_of_two_that_do_not_agree_the_second_is_left_off(facts: Facts, monkeypatch: pytest.MonkeyPatch, only: Any) -> None:
    only(scaled(1 + 0.8e-4))
    first = ACCELERATIONS.get("mine")
    monkeypatch.setattr(ACCELERATIONS, "_records", {"mine": first, "other": replace(first, name="other")})
    names, (_, decision) = choose(facts, [])
    assert names == ["mine"]
    assert decision.because.startswith("this model computes something else with it")


def test_what_was_applied_is_undone_in_reverse_and_on_errors(facts: Facts, only: Any) -> None:
    only(scaled(2.0))
    before = facts.outputs()
    seen = []

    def fail() -> None:
        with accelerated(facts, ["mine", "mine"]):
            seen.append(facts.outputs())
            raise RuntimeError("a step failed")

    with pytest.raises(RuntimeError, match="a step failed"):
        fail()
    assert torch.allclose(seen[0], 4 * before)
    assert torch.equal(facts.outputs(), before)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_on_another_device_all_but_those_made_for_it_are_off(kind: str, tmp_path: Path) -> None:
    """Kernels read the processor's memory: a tensor of another device is none that they may be given."""
    if kind == "llama":
        model = tiny_models.tiny_decoder(kind)
    else:
        tiny_models.save_tiny(kind, tmp_path, "AutoModelForSequenceClassification")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    facts = Facts(model.to("meta"), bf16=True, epochs=2.0)
    facts.blocks[1][0].requires_grad_(False)
    reasons = {acceleration.name: acceleration.why_not(facts) for acceleration in ACCELERATIONS}
    assert {name for name, reason in reasons.items() if reason is None} <= {"liger"}
    assert {tensor.device.type for tensor in facts.probe.values()} == {"meta"}


def test_a_name_that_does_not_exist(facts: Facts) -> None:
    with pytest.raises(InputError) as raised:
        choose(facts, ["end_to_and"])
    assert raised.value.problems[0].code == "spec.unknown_name"
    assert "end_to_end" in raised.value.problems[0].fix
