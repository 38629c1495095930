"""What a peer measured, as it gives it back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Record:
    """What was measured: wall-clock seconds of the start and of the end of each step, losses and real tokens of each."""

    started: float = 0.0
    step_ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    trainable: int = 0
    """Parameters that are trained."""
    notes: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Starts the clock."""
        self.started = time.time()

    def step(self, loss: float) -> None:
        """Notes the end of a step."""
        self.step_ends.append(time.time())
        self.losses.append(loss)

    def write(self, out: Path) -> None:
        """Writes the result."""
        out.write_text(json.dumps(self.__dict__))
