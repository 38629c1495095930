"""The TrainingArguments of a resolved spec; `train.extra` is checked against the installed class."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError, Problem, did_you_mean
from tunesmith.registry import TASKS
from tunesmith.runs.processes import compute_device
from tunesmith.spec import RunSpec, TrainSpec

if TYPE_CHECKING:
    from transformers import TrainingArguments

SPEC_KEYS = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "bf16": "precision",
    "fp16": "precision",
    "eval_strategy": "eval_steps",
    "save_strategy": "save_steps",
    "data_seed": "seed",
}
"""Fields of TrainingArguments that the spec says in other words."""

WITHOUT_EFFECT = {
    "auto_find_batch_size": "use train.max_tokens_per_micro_batch to save memory",
    "batch_eval_metrics": "metrics are always computed as batches stream",
    "dataloader_drop_last": "every row is trained on",
    "dataloader_num_workers": "rows are encoded before training",
    "dataloader_persistent_workers": "rows are encoded before training",
    "dataloader_pin_memory": "rows are encoded before training",
    "dataloader_prefetch_factor": "rows are encoded before training",
    "do_eval": "give data.validation",
    "do_predict": "use `tunesmith predict`",
    "do_train": "use `tunesmith train`",
    "eval_accumulation_steps": "metrics are always computed as batches stream",
    "eval_do_concat_batches": "metrics are always computed as batches stream",
    "fp16_full_eval": "evaluation uses train.precision",
    "bf16_full_eval": "evaluation uses train.precision",
    "hub_token": "set HF_TOKEN in the environment: a spec is written into the run",
    "include_for_metrics": "metrics belong to the task",
    "label_names": "labels belong to the task",
    "length_column_name": "steps are always cut by length",
    "liger_kernel_config": "the loss is ours, and the acceleration `liger` takes the rest",
    "prediction_loss_only": "metrics belong to the task",
    "remove_unused_columns": "only what the model reads is encoded",
    "resume_from_checkpoint": "use `tunesmith resume`",
    "train_sampling_strategy": "the order follows train.seed, and steps are always cut by length",
    "use_liger_kernel": "on a GPU the acceleration `liger` is chosen by itself: pip install 'tunesmith[gpu]'",
}
"""Fields that would change nothing here, and what to do instead."""

PLAIN_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adafactor")
"""Trainer's own, the first by default, which are made without `optim_args`."""

SHARDING = ("deepspeed", "fsdp", "fsdp_config", "parallelism_config")
"""Fields that would cut the model into parts, which the engine does not know of."""


def training_arguments(spec: RunSpec, num_steps: int, folder: Path) -> TrainingArguments:
    """TrainingArguments of a resolved spec that takes `num_steps` in all, with `train.extra` merged in.

    One step of the trainer is one optimizer step: accumulation is part of the batch plan.
    """
    from transformers import TrainingArguments

    arguments = TrainingArguments(**{**_own_arguments(spec, num_steps, folder), **spec.train.extra})
    if arguments.n_gpu > 1:  # Trainer would wrap the model in DataParallel: a process has one GPU, and several are several processes
        arguments._n_gpu = 1
    return arguments


def check_extra(spec: RunSpec) -> None:
    """Raises InputError when `train.extra` of a resolved spec contradicts the rest, has no effect, or is refused upstream."""
    extra = spec.train.extra
    if not extra:
        return
    from transformers import TrainingArguments

    try:
        own = _own_arguments(spec, 1, Path("."))
    except KeyError:  # an unknown metric, which is an error of its own
        return
    problems = _extra_problems(extra, own, [field.name for field in dataclasses.fields(TrainingArguments) if field.init])
    if problems:
        raise InputError.from_problems(problems)
    try:
        TrainingArguments(**{**own, **extra})
    except MemoryError:
        raise
    except Exception as error:  # whatever it says, the settings are the cause: without them the class takes ours
        raise InputError(
            "spec.trainer_argument",
            "TrainingArguments refuses the settings",
            where=f"train.extra.{next(iter(extra))}" if len(extra) == 1 else "train.extra",
            found=" ".join(str(error).split())[:300],
            fix="correct or leave out: " + ", ".join(extra),
        ) from error


def _own_arguments(spec: RunSpec, num_steps: int, folder: Path) -> dict[str, Any]:
    train = spec.train
    greater = {**TASKS.get(spec.task.name).metrics(spec.task), "loss": False}
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": float(train.epochs),
        "max_steps": -1 if train.max_steps == "none" else train.max_steps,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": train.eval_batch_size,
        "learning_rate": float(train.learning_rate),
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": _warmup_steps(train.warmup_steps, num_steps),
        "weight_decay": float(train.weight_decay),
        "max_grad_norm": float(train.max_grad_norm),
        "adam_beta1": float(train.adam_beta1),
        "adam_beta2": float(train.adam_beta2),
        "adam_epsilon": float(train.adam_epsilon),
        "label_smoothing_factor": float(train.label_smoothing_factor),
        "seed": train.seed,
        "logging_steps": train.logging_steps,
        "save_total_limit": None,  # Checkpoints removes them: Trainer sees only the one that it writes
        "load_best_model_at_end": train.load_best_model_at_end,
        "metric_for_best_model": train.metric_for_best_model,
        "greater_is_better": greater[str(train.metric_for_best_model)],
        "bf16": train.precision == "bf16",
        "use_cpu": compute_device().type == "cpu",
        "gradient_accumulation_steps": 1,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "restore_callback_states_from_checkpoint": train.early_stopping_patience != "none",
        **_strategy("eval", train.eval_steps),
        **_strategy("save", train.save_steps),
    }
    return arguments


def _strategy(kind: str, steps: int | str) -> dict[str, Any]:
    if isinstance(steps, int):
        return {f"{kind}_strategy": "steps", f"{kind}_steps": steps}
    return {f"{kind}_strategy": {"epoch": "epoch", "none": "no"}[steps]}


def _warmup_steps(warmup: float, steps: int) -> int:
    """Trainer's rule: below 1 it is a share of all steps."""
    return int(warmup) if warmup >= 1 else math.ceil(warmup * steps)


def _extra_problems(extra: dict[str, Any], own: dict[str, Any], known: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    for name, value in extra.items():
        where = f"train.extra.{name}"
        shown = name if name == "hub_token" else f"{name}={value}"[:100]
        if name in TrainSpec.model_fields and name not in known:
            problem = f"{name} is a setting of the train section"
            problems.append(Problem("spec.trainer_argument", problem, where, shown, f"say it as train.{name}"))
        elif name not in known:
            problem = "the installed TrainingArguments has no such field"
            problems.append(Problem("spec.trainer_argument", problem, where, name, did_you_mean(name, known)))
        elif name in SHARDING:
            fix = "leave it out; started by torchrun, several processes train whole copies of the model together"
            problems.append(Problem("spec.trainer_argument", f"{name} cuts the model into parts, which cannot be had", where, shown, fix))
        elif name == "optim_args" and extra.get("optim", PLAIN_OPTIMIZERS[0]) in PLAIN_OPTIMIZERS:
            fix = "say train.learning_rate, train.adam_beta1 and the like, or another train.extra.optim"
            problems.append(Problem("spec.no_effect", "Trainer does not read optim_args for this optimizer", where, shown, fix))
        elif name in WITHOUT_EFFECT:
            problems.append(Problem("spec.no_effect", f"{name} would have no effect", where, shown, WITHOUT_EFFECT[name]))
        elif (name in own or name in SPEC_KEYS) and own.get(name) != value:
            key = SPEC_KEYS.get(name, name)
            fix = f"say it as train.{key}" if key in TrainSpec.model_fields else "leave it out: tunesmith sets it"
            found = f"{shown}, and the spec makes it {own.get(name)}"
            problems.append(Problem("spec.conflict", f"{name} contradicts the spec", where, found, fix))
    return problems
