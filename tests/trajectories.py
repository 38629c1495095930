"""Training by tunesmith and by plain Trainer on the same rows in the same order, as losses and final weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tunesmith.data.plan import BatchPlan
from tunesmith.engines.trainer import fit
from tunesmith.pipeline import build_job
from tunesmith.prepare import Prepared
from tunesmith.runs.directory import RunDirectory

Trajectory = tuple[list[float], dict[str, torch.Tensor]]


class Losses(transformers.TrainerCallback):
    """Keeps every loss that is logged."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.values.append(logs["loss"])


def by_tunesmith(prepared: Prepared, folder: Path) -> Trajectory:
    """What tunesmith makes of a prepared run."""
    job = build_job(prepared, RunDirectory.create(folder, "x"))
    job.arguments.logging_steps = 1
    losses = Losses()
    job.callbacks.append(losses)
    with prepared.accelerated():
        fit(job)
    return losses.values, {name: tensor.clone() for name, tensor in job.model.state_dict().items()}


class InPlannedOrder(torch.utils.data.Sampler[int]):
    """The rows of each epoch in the order of the plan."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan, self.epoch = plan, 0

    def __len__(self) -> int:
        return len(self.plan.lengths)

    def __iter__(self) -> Any:
        order = np.concatenate(self.plan.drawn(self.epoch))
        self.epoch += 1
        return iter(order.tolist())


class PlainTrainer(transformers.Trainer):
    """Trainer as anyone would write it, with one padded batch a step; only the order of rows is given."""

    plan: BatchPlan

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return InPlannedOrder(self.plan)
