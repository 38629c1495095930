"""Language models for the tests of methods, and what training would do to them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tunesmith.models.load import LoadedModel, load_model

CAUSAL: Any = SimpleNamespace(auto_model="AutoModelForCausalLM")
ARCHITECTURES = ("gpt2", "llama", "gemma", "qwen2", "mistral", "phi3")


def load(folder: Path, quantization: Any = None) -> LoadedModel:
    return load_model(folder, CAUSAL, {}, 0, quantization)


def logits(model: Any, ids: list[int] | None = None) -> torch.Tensor:
    with torch.inference_mode():
        input_ids = torch.tensor([ids or [5, 6, 7, 8, 9]])
        return model.eval()(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits


def disturb(model: Any) -> None:
    """What training would change."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


def resolved(method: Any, model: Any, **settings: Any) -> Any:
    """A section in which nothing says auto."""
    section = method.spec(**settings)
    updates = {decision.field.removeprefix("method."): decision.value for decision in method.decide(section, model)}
    return section.model_copy(update=updates)


def near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The proof's tolerance."""
    assert (actual - expected).abs().max() <= 1e-5 * max(float(expected.abs().max()), 1)
