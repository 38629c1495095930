"""Adapters on disk, so that transformers and PEFT alike load what was trained."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save(model: Any, folder: Path, base: Path) -> None:
    """The adapters, and for a model with a head of its own the base model's weights beside them.

    A language model's adapters name their base, which is not copied. Elsewhere PEFT would have the base model loaded with the
    number of labels that the base model's own configuration says, not that of the new head; so the base's files are linked (or
    copied where the file system cannot), and a base whose own head has another shape is written anew.
    """
    # With "auto" PEFT asks the hub for the base, and writes whole embeddings where single rows were trained.
    model.save_pretrained(folder, save_embedding_layers=False)
    _rewrite_as_plain_lora(folder, getattr(model, "initial_adapters", {}))
    if model.get_base_model().get_output_embeddings() is not None:
        return
    config = _config_on_disk(model, base)
    config.save_pretrained(folder)
    files = sorted(base.glob("*.safetensors")) + sorted(base.glob("*.safetensors.index.json"))
    if _has_other_shapes(model, files):
        _write_base(model, config, folder, base)
        return
    for file in files:
        (folder / file.name).unlink(missing_ok=True)  # of a run that was killed here before
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _rewrite_as_plain_lora(folder: Path, initial: dict[str, Any]) -> None:
    """Adapters that any loader understands on the unchanged base.

    W + s (B A - B0 A0) is one adapter of twice the rank. PEFT's own conversion (`path_initial_model_for_weight_conversion`)
    does the same and leaves out the head, biases, DoRA's lengths and new tokens. DoRA's lengths are named as in the model:
    PEFT reads either name, and transformers leaves those of PEFT's files at their first values.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    for name, start in initial.items():
        first = ".lora_A." in name
        tensors[name] = torch.cat([tensors[name], start.cpu() if first else -start.cpu()], dim=0 if first else 1)
    renamed = {f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["init_lora_weights"] = True
    if initial:
        config["r"] *= 2
        config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _config_on_disk(model: Any, base: Path) -> PretrainedConfig:
    """The model's configuration, which says that weights are quantised only where the base's files are."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config") and "quantization_config" not in json.loads((base / "config.json").read_text("utf-8")):
        del config.quantization_config
    return config


def _has_other_shapes(model: Any, files: list[Path]) -> bool:
    from safetensors import safe_open

    # A quantised weight is held in another shape than on disk, but is never one that the task changes.
    named = [(name, parameter) for name, parameter in model.get_base_model().named_parameters() if parameter.is_floating_point()]
    shapes = {name.replace(".base_layer.", ".").replace(".original_module.", "."): list(parameter.shape) for name, parameter in named}
    for file in files:
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as tensors:
            if any(shapes.get(name, shape) != shape for name in tensors.keys() for shape in [list(tensors.get_slice(name).get_shape())]):  # noqa: SIM118
                return True
    return False


def _write_base(model: Any, config: PretrainedConfig, folder: Path, base: Path) -> None:
    plain = type(model.get_base_model()).from_pretrained(
        base, config=config, local_files_only=True, use_safetensors=True, ignore_mismatched_sizes=True
    )
    plain.save_pretrained(folder)
