"""Which device a model is on: the one that this process computes on, and for the proof the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith.runs.processes import compute_device

if TYPE_CHECKING:
    import torch


def place(model: Any, device: torch.device | None = None) -> None:
    """Moves the model to where this process computes, or to a device; one that is there, or is quantised, stays as it is."""
    device = device or compute_device()
    if model.device != device and not getattr(model, "is_quantized", False):
        model.to(device)


@contextmanager
def on_processor(model: Any) -> Iterator[None]:
    """The model on the processor while this lasts, unless it is quantised, and afterwards where it was."""
    import torch

    before = model.device
    place(model, torch.device("cpu"))
    try:
        yield
    finally:
        place(model, before)
