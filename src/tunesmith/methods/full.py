"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.registry import Decision, Method
from tunesmith.spec import NamedSection

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import LoadedModel


class FullSpec(NamedSection):
    """Every weight is trained."""

    name: str = "full"
    """`full`."""


def decide(section: FullSpec, model: PreTrainedModel) -> list[Decision]:
    """Nothing is automatic."""
    return []


def attach(section: FullSpec, loaded: LoadedModel, peft_task_type: str | None) -> PreTrainedModel:
    """The model itself, all of it trainable."""
    return loaded.model.requires_grad_(True)


def save(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """All weights."""
    model.save_pretrained(folder)


FULL = Method(
    name="full", summary="train every weight", spec=FullSpec, learning_rate=5e-5, decide=decide, attach=attach, save=save, trains_all=True
)
