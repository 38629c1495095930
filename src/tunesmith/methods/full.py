"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.registry import Decision, Method
from tunesmith.spec import NamedSection

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


class FullSpec(NamedSection):
    """Every weight is trained."""

    name: str = "full"
    """`full`."""


def decide(section: FullSpec, model: PreTrainedModel) -> list[Decision]:
    """Nothing is automatic."""
    return []


def attach(section: FullSpec, model: PreTrainedModel, head_parameters: frozenset[str], peft_task_type: str) -> PreTrainedModel:
    """The model itself, all of it trainable."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def save(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """All weights."""
    model.save_pretrained(folder)


FULL = Method(name="full", summary="train every weight", spec=FullSpec, learning_rate=5e-5, decide=decide, attach=attach, save=save)
