"""Liger's Triton kernels (Hsu et al. 2024) for RMS norm, SwiGLU, GeGLU and rotary positions. The loss stays models/token_loss.py's.

Liger writes into modules' instances, and into the namespaces of transformers' `modeling_...`: what it wrote is taken back name by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts

NOT_OURS = {"fused_linear_cross_entropy": False, "cross_entropy": False, "layer_norm": False}
"""The loss is the task's own; for layer norms Liger would replace the class in torch.nn."""
ABSENT = object()


def why_not(facts: Facts) -> str | None:
    """The processor, no liger-kernel, or a model that it does not know."""
    if facts.on_cpu:
        return "made for GPUs"
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        return "needs liger-kernel: pip install 'tunesmith[gpu]'"
    kind = facts.model.config.model_type
    return None if kind in MODEL_TYPE_TO_APPLY_LIGER_FN else f"liger-kernel does not know {kind}"


def apply(facts: Facts) -> Callable[[], None]:
    """Has Liger change the model, without adapters' wrapping; of its settings it reads those that it knows for the model."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    model: Any = facts.model
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    namespaces = [vars(module) for module in plain.modules()] + _modeling_namespaces()
    return remembering(namespaces, lambda: _apply_liger_kernel_to_instance(model=plain, **NOT_OURS))


def remembering(namespaces: list[dict[str, Any]], change: Callable[[], None]) -> Callable[[], None]:
    """Calls `change`, and returns what undoes all that it did to names in these namespaces; where it raises, that is undone at once."""
    before = [dict(namespace) for namespace in namespaces]
    try:
        change()
    except Exception:
        _restore(_changes(namespaces, before))
        raise
    changes = _changes(namespaces, before)
    return lambda: _restore(changes)


def _changes(namespaces: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str, Any]]:
    """(namespace, name, what it held) of each name that holds something else."""
    return [
        (namespace, name, old.get(name, ABSENT))
        for namespace, old in zip(namespaces, before, strict=True)
        for name in old | namespace
        if namespace.get(name, ABSENT) is not old.get(name, ABSENT)
    ]


def _restore(changes: list[tuple[dict[str, Any], str, Any]]) -> None:
    for namespace, name, value in changes:
        if value is ABSENT:
            namespace.pop(name, None)
        else:
            namespace[name] = value


def _modeling_namespaces() -> list[dict[str, Any]]:
    """Those of transformers' models that are loaded, and torch's."""
    modeling = [module for name, module in list(sys.modules.items()) if name.startswith("transformers.models.") and ".modeling_" in name]
    return [vars(module) for module in (*modeling, torch.nn, torch.nn.functional)]


LIGER = Acceleration(
    name="liger", summary="norms, gated activations and rotary positions by Liger's kernels, each in one pass", why_not=why_not, apply=apply
)
