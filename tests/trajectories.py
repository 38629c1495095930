"""Training by tunesmith and by plain Trainer on the same rows in the same order, as losses and final weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class PlainSeq2SeqTrainer(PlainTrainer, transformers.Seq2SeqTrainer):
    """The same of Seq2SeqTrainer."""


def by_trainer(
    prepared: Prepared,
    folder: Path,
    rows: Sequence[Any],
    collator: Callable[..., Any],
    kind: type[PlainTrainer] = PlainTrainer,
    **others: Any,
) -> Trajectory:
    """What plain Trainer makes of the examples of a prepared run, batches by the collator; `others` are TrainingArguments."""
    losses, train = Losses(), prepared.spec.train
    settings = {
        "max_steps": train.max_steps, "per_device_train_batch_size": prepared.plan.rows_per_step, "learning_rate": float(train.learning_rate),
        "weight_decay": train.weight_decay, "warmup_steps": int(train.warmup_steps), "adam_epsilon": train.adam_epsilon, "seed": train.seed,
    }  # fmt: skip
    arguments = (transformers.Seq2SeqTrainingArguments if kind is PlainSeq2SeqTrainer else transformers.TrainingArguments)(
        output_dir=str(folder), logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        **(settings | others),
    )  # fmt: skip
    trainer = kind(prepared.model, arguments, train_dataset=rows, data_collator=collator, callbacks=[losses])
    trainer.plan = prepared.plan
    trainer.train()
    return losses.values, {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}


def assert_same_trajectory(
    ours: Trajectory, theirs: Trajectory, steps: int, unmoved: tuple[str, ...] = ("key.bias",), atol: float = 1e-4
) -> None:
    """fp32 sums in another order differ in the seventh digit, and AdamW's steps carry that on.

    What is `unmoved` has a gradient of zero but for rounding, which Adam takes for a direction: a key's bias adds the same to all scores of a query.
    """
    assert len(ours[0]) == len(theirs[0]) == steps
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-4)
    assert ours[1].keys() == theirs[1].keys()
    for name, tensor in theirs[1].items():
        if not name.endswith(unmoved):
            torch.testing.assert_close(ours[1][name], tensor, rtol=1e-3, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
