"""What training needs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from tunesmith.data.collate import collate_columns
from tunesmith.data.encode import Encoded, training_key
from tunesmith.data.plan import BatchPlan, Step
from tunesmith.engines.answers import score_answers
from tunesmith.engines.scoring import Scorer
from tunesmith.registry import Task
from tunesmith.runs.checkpoints import Checkpoints
from tunesmith.runs.interruption import Interruption
from tunesmith.runs.processes import Processes
from tunesmith.spec import RunSpec


@dataclass
class Job:
    """Every live object that training needs, and nothing else."""

    spec: RunSpec
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: BatchPlan
    train: Encoded
    validation: Encoded | None
    arguments: TrainingArguments
    accelerations: list[str] = field(default_factory=list)
    """Names of those that the model is given while this job is fitted."""
    callbacks: list[TrainerCallback] = field(default_factory=list)
    advance_evaluation: Callable[[int], None] = lambda rows: None
    checkpoints: Checkpoints | None = None
    """Where checkpoints are put; `arguments.output_dir` is where Trainer writes them."""
    interruption: Interruption = field(default_factory=Interruption)
    report: Callable[..., None] = lambda kind, **values: None
    """(kind of event, its values): tells what happened on the way."""
    origin: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint says of the run that it belongs to."""
    limits: dict[int, int] = field(default_factory=dict)
    """Most tokens of a micro-batch from a step on (counted from 0), where memory did not suffice for the plan's."""
    has_new_schedule: bool = False
    """Whether learning rate or length are not those that the checkpoint was written with."""
    processes: Processes = field(default_factory=Processes)

    @property
    def scorer(self) -> Scorer:
        """What evaluates the model of this job."""
        return Scorer(self.model, self.task, self.spec.task, int(self.tokenizer.pad_token_id), self.spec.train)

    def written_metrics(self) -> dict[str, float]:
        """Those of answers that are written while the model is trained, where the task's section asks for any."""
        task, section = self.task, self.spec.task
        num_rows = getattr(section, "num_generated_in_training", 0)
        if not num_rows or self.validation is None:
            return {}
        precision = str(self.spec.train.precision)
        found = score_answers(self.validation, task, section, self.model, self.tokenizer, precision, num_rows, intervals=False)
        return {name: value for name, value in found["metrics"].items() if name in task.metrics(section)}

    def step_batch(self, step: Step, rows: np.ndarray, epoch: int = 0) -> dict[str, Any]:
        """The micro-batches of one step of this process (none, where a step has fewer rows than there are processes), and the weight of the
        step's `rows` over all processes."""
        section, pad = self.spec.task, int(self.tokenizer.pad_token_id)
        columns = self.train.examples(rows, training_key(self.spec.train.seed, epoch))
        places = {int(row): place for place, row in enumerate(rows)}

        def collate(indices: np.ndarray) -> dict[str, torch.Tensor]:
            part = {name: [values[places[int(index)]] for index in indices] for name, values in columns.items()}
            return collate_columns(part, self.train, indices, self.task, section, pad, self.plan.pack)

        labels, micro_batches = columns["labels"], [collate(indices) for indices in step]
        return {"micro_batches": micro_batches, "rows": step, "drawn": rows, "weight": self.task.loss_weight(section, labels)}


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    steps: int
    seconds: float
    train_loss: float
    best_metric: float | None
    best_checkpoint: str | None
    stopped_by: str | None = None
    """The signal that stopped it, if one did."""
    counts: dict[str, int] = field(default_factory=dict)
    """Steps that were skipped, losses that jumped, gradients that were zero."""
