"""LoRA (Hu et al. 2021) through PEFT: low-rank updates of frozen linear layers, and the new head trained in full."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import Decision, Method
from tunesmith.spec import Auto, NamedSection, Share

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


class LoraSpec(NamedSection):
    """Low-rank adapters on frozen linear layers; the head and other new weights are trained in full and saved with them."""

    name: str = "lora"
    """`lora`."""
    rank: Annotated[int, Field(gt=0, le=4096)] = 16
    """Rank of each update (peft's r)."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Updates are scaled by alpha / rank."""
    dropout: Share = 0.05
    """Dropout on the adapters' input."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Auto = "auto"
    """Names, or ends of names, of the linear layers to adapt; `auto` is all of them but the head."""


def decide(section: LoraSpec, model: PreTrainedModel) -> list[Decision]:
    """`target_modules: auto` becomes every kind of linear layer in the pretrained body."""
    linear = linear_modules(model)
    if section.target_modules != "auto":
        for target in section.target_modules:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                raise InputError(
                    "method.no_target",
                    "target_modules names a layer that the model does not have",
                    where="method.target_modules",
                    found=target,
                    fix=did_you_mean(target, sorted({name.rpartition(".")[2] for name in linear})),
                )
        return []
    kinds = sorted({_ending(name) for name in linear})
    return [Decision("method.target_modules", kinds, f"all {len(linear)} linear layers of the pretrained body")]


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the pretrained body."""
    import torch
    from transformers.pytorch_utils import Conv1D

    prefix = f"{model.base_model_prefix}."
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D)) and name.startswith(prefix)]


def _ending(name: str) -> str:
    """The end of a layer's name that layers of its kind share: what follows the number of its block."""
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbered[-1] + 1 :]) if numbered else name


def attach(section: LoraSpec, model: PreTrainedModel, head_parameters: frozenset[str], peft_task_type: str) -> PreTrainedModel:
    """The model with adapters; only they, the head and other new weights require gradients."""
    import peft

    config = peft.LoraConfig(
        task_type=peft_task_type,
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        bias=section.bias,
        use_rslora=section.use_rslora,
        target_modules=list(section.target_modules),
        modules_to_save=modules_of(model, head_parameters),
        fan_in_fan_out=any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in linear_modules(model)),
    )
    return peft.get_peft_model(model, config)


def modules_of(model: PreTrainedModel, head_parameters: frozenset[str]) -> list[str]:
    """The modules that hold the new parameters: whole ones outside the pretrained body, single layers inside it."""
    prefix = f"{model.base_model_prefix}."
    return sorted({name.rpartition(".")[0] if name.startswith(prefix) else name.partition(".")[0] for name in head_parameters})


def save(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """The adapters and the head, beside the base model's weights, so that the folder is complete.

    PEFT would have the base model loaded with the number of labels that the base model's own configuration says, not that of the
    new head. The base's files are linked, not copied, where the file system can; a base whose own head has another shape is
    written anew.
    """
    model.save_pretrained(folder)
    files = sorted(base.glob("*.safetensors")) + sorted(base.glob("*.safetensors.index.json"))
    if _has_other_shapes(model, files):
        _write_base(model, folder, base)
        return
    for file in files:
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _has_other_shapes(model: PreTrainedModel, files: list[Path]) -> bool:
    from safetensors import safe_open

    shapes = {name: list(parameter.shape) for name, parameter in model.get_base_model().named_parameters()}
    shapes = {name.replace(".base_layer.", ".").replace(".original_module.", "."): shape for name, shape in shapes.items()}
    for file in files:
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as tensors:
            if any(shapes.get(name, shape) != shape for name in tensors.keys() for shape in [list(tensors.get_slice(name).get_shape())]):  # noqa: SIM118
                return True
    return False


def _write_base(model: PreTrainedModel, folder: Path, base: Path) -> None:
    plain = type(model.get_base_model()).from_pretrained(
        base, config=model.config, local_files_only=True, use_safetensors=True, ignore_mismatched_sizes=True
    )
    plain.save_pretrained(folder)


LORA = Method(
    name="lora",
    summary="train low-rank adapters and the head (LoRA, by PEFT)",
    spec=LoraSpec,
    learning_rate=5e-4,
    decide=decide,
    attach=attach,
    save=save,
)
