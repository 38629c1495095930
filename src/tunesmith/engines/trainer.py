"""`transformers.Trainer`, through one small subclass over documented overrides.

A batch of its loader is one optimizer step of the plan, already cut into micro-batches; each micro-batch's loss is a sum over
its rows divided by the weight of the whole step, so the gradient is that of the one big batch.
"""

from __future__ import annotations

import copy
import functools
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate.optimizer
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from tunesmith.data.plan import Step
from tunesmith.engines.callbacks import STATE, SaveCheckpoints, checkpoint_bytes, moments_bytes
from tunesmith.engines.failures import explained, is_out_of_memory, out_of_memory
from tunesmith.engines.job import Job, Outcome
from tunesmith.engines.loader import PlanLoader
from tunesmith.engines.watch import SHOWN_ROWS, Watch, first_non_finite_module, is_finite, last_non_finite_gradient, shown_rows
from tunesmith.errors import RunError
from tunesmith.registry import METHODS
from tunesmith.runs.checkpoints import is_whole, read_state
from tunesmith.runs.environment import peak_memory_bytes, total_memory_bytes
from tunesmith.runs.secrets import redact
from tunesmith.speed.optimizer import AdamW

PLAIN_TRAIN = (torch.nn.Module.train, PreTrainedModel.train)
"""What sets the mode of a module and of those in it, and, without `use_kernels`, nothing else."""
MOST_MEMORY = 0.8
"""Share of the machine's memory beyond which no copy of the optimizer is made for a checkpoint."""


class PlannedTrainer(Trainer):  # type: ignore[misc]
    """Trainer over a batch plan, with the task's loss and metrics."""

    loss_is_scaled_for_ga = True

    def __init__(self, job: Job) -> None:
        self.job, self.watch = job, Watch(job.report)
        self._step: dict[str, Any] = {}
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
        if job.processes.count > 1:  # gradients are added up below: the model is prepared without what would do so again
            self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Upstream's, with its groups of parameters; AdamW as the acceleration of that name has it."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if "optimizer" in self.job.accelerations and not isinstance(optimizer, AdamW):
            self.optimizer = optimizer = adamw = AdamW(optimizer.param_groups, self.model)
            clip: Callable[..., torch.Tensor] = lambda parameters, max_norm, norm_type=2: adamw.clip(max_norm)  # noqa: E731
        else:
            clip = type(self.accelerator).clip_grad_norm_.__get__(self.accelerator)
        self.accelerator.clip_grad_norm_ = lambda *arguments, **named: self._judge_step(clip(*arguments, **named))
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
        job = self.job
        return PlanLoader(job.plan, len(job.train), self.args.process_index, job.limits, job.step_batch)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of every micro-batch of one step; returns the step's loss."""
        self._note_new_weights()
        self._step = {"rows": inputs["drawn"]}
        drawn, total = _random_state(), None
        while total is None:
            try:
                total = self._computed(model, inputs)
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # its frames hold the tensors that are too many
            if total is None:
                model.zero_grad()
                inputs = self._halved(inputs, failure)
                _restore_random_state(drawn)
        total = self._add_up(total)
        if self.state.global_step == 0 and "skipped" not in self._step:
            self._refuse_idle(model)
        self._step["loss"] = total
        return total

    def _add_up(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the step over all processes, and its gradient."""
        processes = self.job.processes
        processes.add_gradients(self.model.parameters())
        if processes.any("skipped" in self._step)[0]:
            self._step["skipped"] = True
        return processes.sum(loss)

    def _computed(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        whole = self.job.task.whole_step(self.job.spec.task) is not None
        return self._whole_step(model, inputs) if whole else self._step_in_parts(model, inputs)

    def _step_in_parts(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for index, micro_batch in enumerate(inputs["micro_batches"]):
            loss = super().training_step(model, micro_batch, inputs["weight"])
            if not torch.isfinite(loss):
                return self._lose_step(model, loss, [micro_batch], inputs["rows"][index])
            total += loss
        return total

    def _whole_step(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """A step whose loss compares its examples with each other."""
        parts, weight = inputs["micro_batches"], inputs["weight"]
        labels = torch.cat([part["labels"] for part in parts])
        if len(parts) == 1 or self.job.task.whole_step(self.job.spec.task) == "one_graph":
            loss: torch.Tensor = super().training_step(model, {"micro_batches": parts, "labels": labels}, weight)
            if not torch.isfinite(loss):
                return self._lose_step(model, loss, parts, np.concatenate(inputs["rows"]))
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
            return self._lose_step(model, loss, parts, np.concatenate(inputs["rows"]))
        (gradient,) = torch.autograd.grad(loss, outputs)
        cached = torch.split(gradient, [len(part) for part in found])
        for index, (part, state) in enumerate(zip(parts, drawn, strict=True)):
            _restore_random_state(state)
            super().training_step(model, {"micro_batch": part, "labels": part["labels"], "gradient": cached[index]}, weight)
        return loss.detach()

    def _halved(self, inputs: dict[str, Any], failure: BaseException) -> dict[str, Any]:
        """The same step in micro-batches of half the tokens, as all that follow."""
        plan, step = self.job.plan, self.state.global_step
        largest = max(inputs["rows"], key=plan.num_computed)
        tokens = plan.num_computed(largest)
        in_one = self.job.task.whole_step(self.job.spec.task) == "one_graph"
        if len(largest) == 1 or plan.world_size > 1 or in_one:
            raise out_of_memory(failure, f"step {step + 1}, a micro-batch of {len(largest)} rows, {tokens} tokens")
        self.job.limits[step] = limit = max(tokens // 2, int(plan.lengths[largest].max()))
        self.job.report("memory", step=step, tokens=limit, found=f"{tokens} tokens in a micro-batch are too many for the memory there is")
        rows = inputs["drawn"]
        return self.job.step_batch(plan.cut(rows, limit), rows, step // plan.steps_per_epoch)

    def _judge_step(self, norm: torch.Tensor) -> torch.Tensor:
        """Looks at the norm of the step's gradient before the optimizer does."""
        if "loss" in self._step and "skipped" not in self._step:
            if is_finite(norm):
                rows = self._step["rows"]
                number = self.state.global_step + 1
                self.watch.taken(number, self._step["loss"], float(norm), lambda: shown_rows(self.job.train.place, rows))
            else:
                self._refuse_step(f"the norm of the gradient is {float(norm)}", f"{last_non_finite_gradient(self.model)}, in a step of")
        if "skipped" in self._step:
            self.optimizer.zero_grad()
        return norm

    def _lose_step(self, model: Any, loss: torch.Tensor, parts: list[Any], rows: np.ndarray) -> torch.Tensor:
        """A step whose loss is not finite: ends the run, or is left out."""
        self._step["rows"] = rows
        where = first_non_finite_module(self.model, lambda: [self._forward(model, self._prepare_inputs(part)) for part in parts])
        self._refuse_step(f"the loss is {float(loss)}", f"{where}, among")
        return torch.zeros_like(loss)

    def _refuse_step(self, problem: str, found: str) -> None:
        """Ends the run, or leaves the step out, as the spec says."""
        number, rows = self.state.global_step + 1, self._step["rows"]
        weights = all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())
        found = f"{found} {shown_rows(self.job.train.place, rows)}; the weights are {'finite' if weights else 'no longer finite'}"
        if self.job.spec.train.on_non_finite == "skip" and weights:
            self._step["skipped"] = True
            self.watch.skipped(number, f"{problem}: {found}")
            return
        fix = "lower train.learning_rate, raise train.warmup_steps, or train.precision=fp32; the last checkpoint is untouched"
        raise RunError("run.non_finite", f"{problem} at step {number}", where=f"step {number}", found=found, fix=fix)

    def _note_new_weights(self) -> None:
        """Marks the trained weights as changed, whatever optimizer did it: accelerations keep copies of them. Their AdamW writes these."""
        if "optimizer" in self.job.accelerations:
            return
        torch.autograd.graph.increment_version([parameter for group in self.optimizer.param_groups for parameter in group["params"]])

    def _refuse_idle(self, model: Any) -> None:
        idle = METHODS.get(self.job.spec.method.name).idle(self.accelerator.unwrap_model(model))
        if idle:
            shown = ", ".join(idle[:SHOWN_ROWS]) + (f" and {len(idle) - SHOWN_ROWS} more" if len(idle) > SHOWN_ROWS else "")
            fix = "leave them out of method.target_modules: nothing that the loss depends on passes through them"
            raise RunError("method.idle", "parts that ought to be trained have no gradient", where="step 1", found=shown, fix=fix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Upstream's; the loss is the mean since the last log even where the run was resumed in between."""
        if "loss" in logs:
            logs = {name: value for name, value in logs.items() if name != "loss" and math.isfinite(value)}
            logs = {**self.watch.logged(), **logs}
        super().log(logs, start_time)
        if "train_runtime" in logs:
            self._settle_checkpoints()

    def _settle_checkpoints(self) -> None:
        """Waits for the last checkpoint; the best, which is loaded next, must be whole."""
        best = self.state.best_model_checkpoint
        if self.job.checkpoints is None:
            return
        self.job.checkpoints.wait()
        self.job.processes.wait()
        if self.args.load_best_model_at_end and best is not None and not is_whole(Path(best)):
            fix = "`tunesmith resume`: it goes on from a checkpoint that is whole, or says which is lost"
            raise RunError("run.best_lost", "the best checkpoint was damaged while the run went on", where=best, fix=fix)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Upstream's, with what a resumed run needs beside it, and without files that only pickle reads."""
        checkpoints = self.job.checkpoints
        if checkpoints is not None:
            checkpoints.require_room(checkpoint_bytes(self.model, self.optimizer))
        super().save_model(output_dir, _internal_call)
        folder = Path(str(output_dir))
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
            state = json.dumps({**self.job.origin, "watch": self.watch.state()})
            (folder / STATE).write_text(redact(state), encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Upstream's files; the largest, that of the optimizer, is written from a copy while training goes on, if memory has room.
        On a GPU there would be a second one there."""
        checkpoints = self.job.checkpoints
        has_room = peak_memory_bytes() + moments_bytes(self.optimizer) < MOST_MEMORY * total_memory_bytes()
        if checkpoints is None or not self.args.should_save or not has_room or self.args.device.type != "cpu":
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state, folder = copy.deepcopy(self.optimizer.state_dict()), Path(output_dir)
        checkpoints.write(lambda: torch.save(state, folder / OPTIMIZER_NAME))
        torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

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
        name = getattr(self.model, "main_input_name", "input_ids")
        return self._operations_per_token * sum(int(part[name].numel()) for part in inputs["micro_batches"] if name in part)

    @functools.cached_property
    def _operations_per_token(self) -> int:
        return 6 * int(self.model.num_parameters(exclude_embeddings=True)) if hasattr(self.model, "num_parameters") else 0


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Lets what is drawn in a forward pass be drawn again."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def fit(job: Job, resume_from: Path | None = None) -> Outcome:
    """Trains the job's model, from the beginning or from a checkpoint; afterwards it holds the best or the last weights.

    Raises RunError when a number is not finite, memory runs out, or a checkpoint cannot be written.
    """
    patience = job.spec.train.early_stopping_patience
    if patience != "none":
        job.callbacks.append(EarlyStoppingCallback(patience, job.spec.train.early_stopping_threshold))
    if job.checkpoints is not None:
        if job.processes.is_first:
            job.checkpoints.clear()
        if job.spec.train.save_steps != "none":
            job.checkpoints.require_room(checkpoint_bytes(job.model))
        job.callbacks.append(
            SaveCheckpoints(job.checkpoints, job.interruption, job.plan.steps_per_epoch, job.has_new_schedule, job.processes)
        )
    start = time.perf_counter()
    with explained(str(job.arguments.output_dir)):
        trainer = PlannedTrainer(job)
        if resume_from is not None and "watch" in (state := read_state(resume_from, STATE)):
            trainer.watch.load(state["watch"])
        if job.processes.rank:
            torch.manual_seed(job.spec.train.seed + job.processes.rank)  # else all would drop the same elements
        try:
            with job.interruption.deferred(), _nothing_old_collected(), nothing_walked(job.model):
                output = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from is not None else None)
            job.processes.wait()  # each looks through the folder at the end of `train`: the first must not have removed it by then
        finally:
            if job.checkpoints is not None and job.processes.is_first:
                job.checkpoints.close()
    # Accelerate wraps `forward` in autocast for mixed precision: the model handed back computes in the precision of its weights.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    state = trainer.state
    seconds, best = time.perf_counter() - start, state.best_model_checkpoint
    return Outcome(state.global_step, seconds, output.training_loss, state.best_metric, best, job.interruption.signal, trainer.watch.counts)


@contextmanager
def _nothing_old_collected() -> Iterator[None]:
    """Keeps the garbage collector from looking through all that the imports have left: a quarter of a second every hundred steps."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def nothing_walked(model: torch.nn.Module) -> Iterator[None]:
    """Keeps each step from walking through all modules to find gradients and to set the mode of each, and from looking among the packages
    for an optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modules = list(model.modules())

    def train(mode: bool = True) -> torch.nn.Module:
        for module in modules:
            if module.training is not mode:
                module.training = mode
        return model

    def zero_grad(set_to_none: bool = True) -> None:
        for parameter in trained:
            parameter.grad = None

    is_lomo_available = accelerate.optimizer.is_lomo_available
    model.zero_grad = zero_grad  # type: ignore[method-assign]
    if all(type(module).train in PLAIN_TRAIN for module in modules) and not getattr(model, "use_kernels", False):
        model.train = train  # type: ignore[method-assign]
    accelerate.optimizer.is_lomo_available = functools.cache(is_lomo_available)
    try:
        yield
    finally:
        accelerate.optimizer.is_lomo_available = is_lomo_available
        del model.zero_grad
        vars(model).pop("train", None)


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
