"""`transformers.Trainer`, through one small subclass over documented overrides.

A batch of its loader is one optimizer step of the plan, already cut into micro-batches; each micro-batch's loss is a sum over
its rows divided by the weight of the whole step, so the gradient is that of the one big batch.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tunesmith.data.collate import collate_columns
from tunesmith.data.encode import Encoded, training_key
from tunesmith.data.plan import BatchPlan, Step
from tunesmith.engines.answers import score_answers
from tunesmith.engines.scoring import Scorer
from tunesmith.errors import RunError
from tunesmith.registry import METHODS, Task
from tunesmith.spec import RunSpec
from tunesmith.speed.optimizer import AdamW

SHOWN_ROWS = 8


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
        """The micro-batches of one step of this process, and the weight of the step's `rows` over all processes."""
        section, pad = self.spec.task, int(self.tokenizer.pad_token_id)
        columns = self.train.examples(rows, training_key(self.spec.train.seed, epoch))
        places = {int(row): place for place, row in enumerate(rows)}

        def collate(indices: np.ndarray) -> dict[str, torch.Tensor]:
            part = {name: [values[places[int(index)]] for index in indices] for name, values in columns.items()}
            return collate_columns(part, self.train, indices, self.task, section, pad, self.plan.pack)

        labels, micro_batches = columns["labels"], [collate(indices) for indices in step]
        return {"micro_batches": micro_batches, "rows": step, "weight": self.task.loss_weight(section, labels)}


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


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Turns SIGINT and SIGTERM into a checkpoint at the end of the step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.signal is not None:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listens for signals; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number).name

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Steps(Dataset[Any]):
    """Hands each step of the plan to the collator whole."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitems__(self, numbered: list[Any]) -> list[Any]:
        return numbered


class _PlanSampler(Sampler[list[Any]]):
    """The steps of an epoch, as this process computes them."""

    def __init__(self, plan: BatchPlan, rank: int) -> None:
        self.plan, self.rank, self.epoch = plan, rank, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose steps come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[list[Any]]:
        for rows in self.plan.drawn(self.epoch):
            yield [self.plan.cut(rows[self.rank :: self.plan.world_size]), rows, self.epoch]


class _PlanLoader(DataLoader[Any]):
    """A loader that tells its plan the epoch; left unprepared by accelerate, since the plan knows the processes."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose steps come next."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class PlannedTrainer(Trainer):  # type: ignore[misc]
    """Trainer over a batch plan, with the task's loss and metrics."""

    loss_is_scaled_for_ga = True

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(
            model=job.model,
            args=job.arguments,
            train_dataset=job.train.dataset,
            eval_dataset=job.validation.dataset if job.validation is not None else None,
            processing_class=job.tokenizer,
            callbacks=job.callbacks,
        )
        # The loss is the task's own, so the model need not know how many items a batch has.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Upstream's, with its groups of parameters; AdamW as the acceleration of that name has it."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if "optimizer" in self.job.accelerations and not isinstance(optimizer, AdamW):
            self.optimizer = optimizer = adamw = AdamW(optimizer.param_groups)
            self.accelerator.clip_grad_norm_ = lambda parameters, max_norm, norm_type=2: adamw.clip(parameters, max_norm)
        return optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The task's loss of a micro-batch, over the weight of its step."""
        task, section, labels = self.job.task, self.job.spec.task, inputs["labels"]
        if "micro_batches" in inputs:
            outputs = torch.cat([self._forward(model, part) for part in inputs["micro_batches"]])
        elif "gradient" in inputs:
            return (self._forward(model, inputs["micro_batch"]) * inputs["gradient"]).sum()
        else:
            outputs = self._forward(model, inputs)
        loss = task.loss(section, outputs, labels, self.args.label_smoothing_factor) / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: Any, inputs: dict[str, Any]) -> Any:
        read = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        return self.job.task.forward(self.job.spec.task, model, read, inputs["labels"])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The steps of the plan."""
        sampler = _PlanSampler(self.job.plan, self.args.process_index)
        return _PlanLoader(_Steps(len(self.job.train)), batch_sampler=sampler, collate_fn=lambda numbered: self.job.step_batch(*numbered))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of every micro-batch of one step; returns the step's loss."""
        self._note_new_weights()
        if self.job.task.whole_step(self.job.spec.task) is None:
            total = self._step_in_parts(model, inputs)
        else:
            total = self._whole_step(model, inputs)
        if self.state.global_step == 0:
            self._refuse_idle(model)
        return total

    def _step_in_parts(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        last = len(inputs["micro_batches"]) - 1
        for index, micro_batch in enumerate(inputs["micro_batches"]):
            with nullcontext() if index == last else self.accelerator.no_sync(model):
                loss = super().training_step(model, micro_batch, inputs["weight"])
            if not torch.isfinite(loss):
                raise self._non_finite(loss, inputs["rows"][index])
            total += loss
        return total

    def _whole_step(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """A step whose loss compares its examples with each other."""
        parts, weight = inputs["micro_batches"], inputs["weight"]
        labels = torch.cat([part["labels"] for part in parts])
        if len(parts) == 1 or self.job.task.whole_step(self.job.spec.task) == "one_graph":
            loss: torch.Tensor = super().training_step(model, {"micro_batches": parts, "labels": labels}, weight)
            if not torch.isfinite(loss):
                raise self._non_finite(loss, np.concatenate(inputs["rows"]))
            return loss
        model.train()
        drawn, found = [], []
        for part in parts:
            drawn.append(_random_state())
            with torch.no_grad(), self.compute_loss_context_manager():
                found.append(self._forward(model, self._prepare_inputs(part)))
        outputs = torch.cat(found).requires_grad_()
        loss = self.job.task.loss(self.job.spec.task, outputs, self._prepare_inputs({"labels": labels})["labels"], 0.0) / weight
        if not torch.isfinite(loss):
            raise self._non_finite(loss, np.concatenate(inputs["rows"]))
        (gradient,) = torch.autograd.grad(loss, outputs)
        cached = torch.split(gradient, [len(part) for part in found])
        for index, (part, state) in enumerate(zip(parts, drawn, strict=True)):
            _restore_random_state(state)
            with nullcontext() if index == len(parts) - 1 else self.accelerator.no_sync(model):
                super().training_step(model, {"micro_batch": part, "labels": part["labels"], "gradient": cached[index]}, weight)
        return loss.detach()

    def _note_new_weights(self) -> None:
        """Marks the trained weights as changed, whatever optimizer did it: accelerations keep copies of them."""
        torch.autograd.graph.increment_version([parameter for parameter in self.model.parameters() if parameter.requires_grad])

    def _refuse_idle(self, model: Any) -> None:
        idle = METHODS.get(self.job.spec.method.name).idle(self.accelerator.unwrap_model(model))
        if idle:
            shown = ", ".join(idle[:SHOWN_ROWS]) + (f" and {len(idle) - SHOWN_ROWS} more" if len(idle) > SHOWN_ROWS else "")
            fix = "leave them out of method.target_modules: nothing that the loss depends on passes through them"
            raise RunError("method.idle", "parts that ought to be trained have no gradient", where="step 1", found=shown, fix=fix)

    def _non_finite(self, loss: torch.Tensor, rows: np.ndarray) -> RunError:
        weights = all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())
        places = ", ".join(self.job.train.place(row) for row in rows[:SHOWN_ROWS]) + (", ..." if len(rows) > SHOWN_ROWS else "")
        state = "finite" if weights else "no longer finite"
        return RunError(
            "run.non_finite",
            f"the loss is {float(loss)} at step {self.state.global_step + 1}",
            where=f"step {self.state.global_step + 1}",
            found=f"in a micro-batch of {len(rows)} rows: {places}; the weights are {state}",
            fix="lower train.learning_rate, raise train.warmup_steps, or train.precision=fp32; the last checkpoint is untouched",
        )

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The task's metrics on the validation set."""
        assert self.job.validation is not None
        self._note_new_weights()
        result = self.job.scorer.evaluate(self.job.validation, intervals=False, advance=self.job.advance_evaluation)
        found = {**self.job.written_metrics(), **result["metrics"]}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Upstream's estimate, summed over the micro-batches."""
        return sum(int(super(PlannedTrainer, self).floating_point_ops(micro_batch)) for micro_batch in inputs["micro_batches"])


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Lets what is drawn in a forward pass be drawn again."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or re.search("not enough memory|can't allocate memory", str(error)):
            fix = "lower train.max_tokens_per_micro_batch (the result stays the same) or task.max_length; then `tunesmith resume`"
            raise RunError(
                "run.out_of_memory", "the machine ran out of memory", found=" ".join(str(error).split())[:200], fix=fix
            ) from error
        raise


def fit(job: Job, resume_from: Path | None = None) -> Outcome:
    """Trains the job's model, from the beginning or from a checkpoint; afterwards it holds the best or the last weights.

    Raises RunError when the loss is not finite, or memory runs out.
    """
    stop = StopRequest()
    patience = job.spec.train.early_stopping_patience
    if patience != "none":
        job.callbacks.append(EarlyStoppingCallback(patience, job.spec.train.early_stopping_threshold))
    job.callbacks.append(stop)
    trainer = PlannedTrainer(job)
    start = time.perf_counter()
    with stop.listening(), _memory_errors():
        output = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from is not None else None)
    # Accelerate wraps `forward` in autocast for mixed precision: the model handed back computes in the precision of its weights.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    state = trainer.state
    stopped = stop.signal if state.global_step < state.max_steps else None
    return Outcome(
        state.global_step, time.perf_counter() - start, output.training_loss, state.best_metric, state.best_model_checkpoint, stopped
    )


def time_steps(job: Job, steps: list[tuple[Step, np.ndarray]], advance: Callable[[], None]) -> list[float]:
    """Seconds of each of these optimizer steps (micro-batches, rows), taken for real; the model is changed by them."""
    trainer = PlannedTrainer(job)
    trainer.create_optimizer_and_scheduler(len(steps))
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    seconds = []
    for step, rows in steps:
        start = time.perf_counter()
        trainer.training_step(model, job.step_batch(step, rows))
        trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
        advance()
    return seconds
