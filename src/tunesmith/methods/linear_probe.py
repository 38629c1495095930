"""Linear probe: the pretrained body is frozen, and the linear head is solved for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.registry import Decision, Method
from tunesmith.spec import Auto, NamedSection

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from tunesmith.models.load import LoadedModel

FIX = "task: text_classification; or method: full, lora or freeze"


class LinearProbeSpec(NamedSection):
    """The body is frozen, its features are computed once, and the linear head is fitted to the optimum: logistic or ridge regression."""

    name: str = "linear_probe"
    """`linear_probe`."""
    l2: Annotated[float, Field(gt=0)] | Literal["validation", "cross_validation"] | Auto = "auto"
    """The penalty on weights of standardised features: 1 / C of scikit-learn's LogisticRegression, alpha of its Ridge. `validation` chooses
    it by `train.metric_for_best_model` on the validation set, `cross_validation` on five folds of the training rows; `auto` is the first
    where there is a validation set."""


def decide(section: LinearProbeSpec, model: PreTrainedModel) -> list[Decision]:
    """What the features are, where layers stand between the pretrained body and the head.

    Raises InputError when the model is none that answers with classes or a number.
    """
    name, _ = find_head(model)
    body = f"{model.base_model_prefix}."
    between = {other: value for other, value in model.named_parameters() if not other.startswith((body, f"{name}."))}
    if not between:
        return []
    # A bias that was drawn for a new layer is zero, one that was trained never.
    is_new = any(other.endswith("bias") and not value.any() for other, value in between.items())
    kept = "new, and fixed as drawn from train.seed: their features are random" if is_new else "kept as loaded"
    return [Decision("layers before the head", ", ".join(between), f"between the pretrained body and the head; {kept}")]


def find_head(model: PreTrainedModel) -> tuple[str, torch.nn.Linear]:
    """Name and module of the last linear layer: the one outside the body that gives a number for each label.

    Raises InputError when there is none.
    """
    import torch

    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.startswith(f"{model.base_model_prefix}.")
        and module.out_features == model.config.num_labels
    ]
    found = type(model).__name__
    if getattr(model.config, "problem_type", None) is None:
        raise InputError("spec.conflict", "linear_probe has one task: text_classification", where="method", found=found, fix=FIX)
    if not heads:
        raise InputError("method.no_target", "the model has no linear head to fit", where="method", found=found, fix=FIX)
    return heads[-1]


def attach(section: LinearProbeSpec, loaded: LoadedModel, peft_task_type: str | None) -> PreTrainedModel:
    """The model itself; only the last linear layer requires gradients."""
    _, head = find_head(loaded.model)
    loaded.model.requires_grad_(False)
    head.requires_grad_(True)
    return loaded.model


def save(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """All weights."""
    model.save_pretrained(folder)


LINEAR_PROBE = Method(
    name="linear_probe",
    summary="solve for the linear head on a frozen body: seconds, for text classification",
    spec=LinearProbeSpec,
    learning_rate=1.0,
    decide=decide,
    attach=attach,
    save=save,
    engine="closed_form",
)
