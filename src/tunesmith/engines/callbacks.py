"""What happens beside the steps: events to the run directory, checkpoints, progress for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from tunesmith.runs.checkpoints import Checkpoints
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.interruption import Interruption
from tunesmith.runs.processes import Processes
from tunesmith.runs.progress import Activity

STATE = "run_state.json"
"""What a checkpoint holds beside Trainer's files: the spec, the environment, and what the next log counts from."""


class RecordRun(TrainerCallback):  # type: ignore[misc]
    """Writes what Trainer logs to events.jsonl."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.run.add_event("evaluation" if "eval_loss" in (logs or {}) else "log", step=state.global_step, **(logs or {}))


class SaveCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Puts checkpoints in place once Trainer has written them aside, and takes those that signals and people ask for.

    A checkpoint at the end of an epoch is written after what that end brings: otherwise a run resumed from it would miss the evaluation.
    """

    def __init__(
        self, checkpoints: Checkpoints, interruption: Interruption, steps_per_epoch: int, has_new_schedule: bool, processes: Processes
    ) -> None:
        self.checkpoints, self.interruption, self.processes = checkpoints, interruption, processes
        self.steps_per_epoch, self.has_new_schedule = steps_per_epoch, has_new_schedule
        self._is_asked_to_stop = False
        self._owed = False
        self._saved_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step and (best := self.checkpoints.path(state.best_global_step)).is_dir():
            state.best_model_checkpoint = str(best)  # wherever the run directory stands now
        elif args.load_best_model_at_end:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if self.has_new_schedule:
            schedule = kwargs["lr_scheduler"]
            schedule.base_lrs = [args.learning_rate] * len(schedule.base_lrs)
            factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
            schedule._last_lr = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
            for group, rate in zip(kwargs["optimizer"].param_groups, schedule._last_lr, strict=True):
                group["lr"], group["initial_lr"] = rate, args.learning_rate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked, self._is_asked_to_stop = self.processes.any(self.interruption.take_request(), self.interruption.signal is not None)
        if asked:
            control.should_save = True
        self._stop(control)
        if control.should_save and state.global_step % self.steps_per_epoch == 0:
            control.should_save, self._owed = False, True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._owed:
            self._stop(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stops and state.global_step % self.steps_per_epoch and state.global_step < state.max_steps:
            # Stopped within the epoch: its end comes when the run goes on.
            control.should_evaluate = control.should_log = control.should_save = False
        if self._owed:
            control.should_save, self._owed = state.global_step != self._saved_step, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        written = Path(args.output_dir) / self.checkpoints.path(state.global_step).name
        self.processes.wait()  # each has written its part
        if state.best_model_checkpoint:
            state.best_model_checkpoint = str(self.checkpoints.path(state.best_global_step))
        if state.best_model_checkpoint and self.processes.is_first:
            state_file = written / TRAINER_STATE_NAME
            values = json.loads(state_file.read_text(encoding="utf-8"))
            values["best_model_checkpoint"] = state.best_model_checkpoint
            state_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if self.processes.is_first:
            self.checkpoints.publish(state.global_step, [state.best_global_step] if state.best_model_checkpoint else [])
        self._saved_step = state.global_step
        self._stop(control)
        control.should_save = False

    @property
    def _stops(self) -> bool:
        """Whether training is to stop; several processes agree on it at the end of a step."""
        if self._is_asked_to_stop and self.interruption.signal is None:
            self.interruption.signal = "a signal to another process"
        return self._is_asked_to_stop if self.processes.count > 1 else self.interruption.signal is not None

    def _stop(self, control: Any) -> None:
        if self._stops:
            control.should_save = control.should_training_stop = True


def checkpoint_bytes(model: PreTrainedModel, optimizer: Any = None) -> int:
    """Bytes of the tensors of a checkpoint; before the first step, those of AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if hasattr(model, "peft_config") else list(model.parameters())
    moments = 0 if optimizer is None else moments_bytes(optimizer)
    return int((moments or 2 * sum(each.nbytes for each in trained)) + sum(each.nbytes for each in saved))


def moments_bytes(optimizer: Any) -> int:
    """Bytes of the tensors that an optimizer keeps."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))


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
