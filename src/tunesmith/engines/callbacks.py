"""What happens beside the steps: events to the run directory, manifests for checkpoints, progress for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunesmith.runs.checkpoints import seal_checkpoint
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.progress import Activity


class RecordRun(TrainerCallback):  # type: ignore[misc]
    """Writes what Trainer logs to events.jsonl, and seals each checkpoint."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.run.add_event("evaluation" if "eval_loss" in (logs or {}) else "log", step=state.global_step, **(logs or {}))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal_checkpoint(checkpoint)
        self.run.add_event("checkpoint", step=state.global_step, path=str(checkpoint.relative_to(self.run.path)))


class ShowTraining(TrainerCallback):  # type: ignore[misc]
    """Counts steps on an activity, with the rate and the last loss and metric beside it."""

    def __init__(self, activity: Activity, metric: str, rows_per_step: int) -> None:
        self.activity = activity
        self.metric = metric
        self.rows_per_step = rows_per_step
        self.loss = ""
        self.best = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        units = state.global_step - self.activity.done
        rate = f"{self.activity.rate(units) * self.rows_per_step:.1f} rows/s"
        self.activity.advance(units, "  ".join(filter(None, (self.loss, self.best, rate))))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}"
        if f"eval_{self.metric}" in logs:
            self.best = f"{self.metric} {logs[f'eval_{self.metric}']:.4f}"
