"""Numbers that go wrong: losses and gradients that are not finite, losses that jump, gradients that vanish."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

SHOWN_ROWS = 8
USUAL_STEPS = 64
FEWEST_STEPS = 16
SPIKE_DEVIATIONS = 6.0
SHOWN_STEPS = 20


@dataclass
class Watch:
    """Looks at the loss and the gradient of each step, and keeps what the log and the result say of them.

    All of it is in `state`, so that a resumed run logs what it would have logged.
    """

    report: Callable[..., None] = lambda kind, **values: None
    """(kind of event, its values): tells what was seen."""
    counts: dict[str, int] = field(default_factory=lambda: {"skipped_steps": 0, "loss_spikes": 0, "zero_gradients": 0})
    usual: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_STEPS))
    """The last finite losses, spikes left out."""
    sum_since_log: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    steps_since_log: int = 0
    skipped_since_log: int = 0

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "counts": dict(self.counts),
            "usual": list(self.usual),
            "since_log": [float(self.sum_since_log), self.steps_since_log, self.skipped_since_log],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.counts = dict(state["counts"])
        self.usual.extend(state["usual"])
        loss, self.steps_since_log, self.skipped_since_log = state["since_log"]
        self.sum_since_log = torch.tensor(loss)

    def skipped(self, step: int, found: str) -> None:
        """A step whose weights stay as they are."""
        self.skipped_since_log += 1
        self._tell("skipped_steps", "skipped", step=step, found=found)

    def taken(self, step: int, loss: torch.Tensor, norm: float, rows: Callable[[], str]) -> None:
        """A step that is taken, with its loss, the norm of its gradient, and the places of its rows."""
        self.sum_since_log = self.sum_since_log.to(loss.device) + loss
        self.steps_since_log += 1
        if norm == 0:
            self._tell("zero_gradients", "zero_gradient", step=step, found=f"the gradient is zero; {rows()}")
        value = float(loss)
        usual = np.asarray(self.usual)
        if len(usual) >= FEWEST_STEPS and value > usual.mean() + SPIKE_DEVIATIONS * max(usual.std(), 0.05 * abs(usual.mean())):
            self._tell("loss_spikes", "loss_spike", step=step, found=f"{value:.4g} after {usual.mean():.4g} on average; {rows()}")
        else:
            self.usual.append(value)

    def logged(self) -> dict[str, float]:
        """The mean loss since this was last called, and steps left out of it."""
        values: dict[str, float] = {"loss": self.sum_since_log.item() / self.steps_since_log} if self.steps_since_log else {}
        if self.skipped_since_log:
            values["skipped_steps"] = self.skipped_since_log
        self.sum_since_log, self.steps_since_log, self.skipped_since_log = torch.zeros(()), 0, 0
        return values

    def _tell(self, count: str, kind: str, **values: Any) -> None:
        self.counts[count] += 1
        if self.counts[count] <= SHOWN_STEPS:
            self.report(kind, **values)


def shown_rows(place: Callable[[Any], str], rows: Sequence[Any] | np.ndarray) -> str:
    """`8 rows: a.csv:2, a.csv:3, ...`"""
    places = ", ".join(place(row) for row in rows[:SHOWN_ROWS]) + (", ..." if len(rows) > SHOWN_ROWS else "")
    return f"{len(rows)} rows: {places}"


def first_non_finite_module(model: torch.nn.Module, forward: Callable[[], Any]) -> str:
    """The first module whose output is not finite when `forward` runs again, in words."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            values = output if isinstance(output, tuple) else output.values() if isinstance(output, dict) else (output,)
            tensors = [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    # Masks of attention are minus infinity by design and no module's output; what a module gives ought to be finite.
    return f"it first appears in the output of {found[0]}" if found else "every module's output is finite: it appears in the loss itself"


def last_non_finite_gradient(model: torch.nn.Module) -> str:
    """Whose gradient is not finite, in words; backwards, the last parameter comes first."""
    names = [
        name for name, parameter in model.named_parameters() if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    return f"the gradient of {names[-1]} and {len(names) - 1} other parameters" if names else "only the norm of the gradient"


def is_finite(value: torch.Tensor | float) -> bool:
    """Whether a number is neither infinite nor not a number."""
    return math.isfinite(float(value))
