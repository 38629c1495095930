"""Thousands of steps, evaluations and checkpoints leave memory, open files and disk as they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from faulty_runs import train
from tunesmith.engines import trainer

STEPS = int(os.environ.get("SOAK_STEPS", "3000"))
MOST_GROWTH_BYTES = 10_000_000
"""However many steps; a tensor of each that is kept would cost ten times that in 2,000."""
LOG_BYTES_A_STEP = 70
"""Of trainer_state.json, in two checkpoints."""


class Measure(TrainerCallback):
    """Resident bytes, open files and bytes of the run, every 500 steps."""

    def __init__(self, run: Path) -> None:
        self.run, self.found = run, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 500 == 20:  # between checkpoints
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            on_disk = sum(path.stat().st_size for path in (self.run / "checkpoints").rglob("*") if path.is_file())
            self.found.append((resident, len(os.listdir("/proc/self/fd")), on_disk))


@pytest.mark.slow
def test_nothing_grows(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, original = Measure(tmp_path / "run"), trainer.PlannedTrainer.__init__

    def measured(self: Any, job: Any) -> None:
        job.callbacks.append(measure)
        original(self, job)

    monkeypatch.setattr(trainer.PlannedTrainer, "__init__", measured)
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    every = ["train.save_steps=100", "train.eval_steps=100", "train.logging_steps=10"]
    train(tiny_bert, tmp_path / "run", f"train.max_steps={STEPS}", *every)
    resident, open_files, on_disk = zip(*measure.found[1:], strict=True)  # the first comes before all is warm
    assert len(resident) == (STEPS - 20) // 500
    print(f"resident {resident}, open files {open_files}, on disk {on_disk}")
    assert resident[-1] - resident[0] < MOST_GROWTH_BYTES
    assert len(set(open_files)) == 1
    assert max(on_disk) - min(on_disk) < LOG_BYTES_A_STEP * STEPS
