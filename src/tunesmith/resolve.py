"""The one place where `auto` becomes a value, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from tunesmith.engines.arguments import check_extra
from tunesmith.errors import InputError, Problem, collected, did_you_mean
from tunesmith.models.load import reads_any_length
from tunesmith.registry import METHODS, TASKS, Decision
from tunesmith.runs.environment import bf16_speedup
from tunesmith.runs.processes import compute_device
from tunesmith.spec import RunSpec, Section, TrainSpec

SHORT_TOKENS = 512
LONG_QUANTILE = 0.99
LENGTHS = ("max_length", "max_source_length", "max_target_length")
"""Settings of tasks that say the most tokens of a text."""
FEWEST_NEW_TOKENS = 8
TOKENS_PER_MICRO_BATCH = 2048
LOGS_PER_RUN = 50
FEWEST_SPEEDUP = 1.2
READ_AS_FOUND = ("data.format", "data.delimiter", "data.header", "data.quoting", "data.encoding")
"""Detected for each file anew, and recorded in data.json."""
USED_IN_CLOSED_FORM = frozenset(("seed", "max_tokens_per_micro_batch", "precision", "label_smoothing_factor", "eval_batch_size"))
"""Settings of the train section that say something where a solver takes the place of optimizer steps."""
CLOSED_FORM: dict[str, Any] = {
    "learning_rate": 1.0,
    "logging_steps": 1,
    "save_steps": "none",
    "load_best_model_at_end": False,
    "metric_for_best_model": "loss",
}
"""What the others become that are `auto`."""


@dataclass(frozen=True)
class Resolved:
    """A spec in which nothing says `auto`, and what was decided on the way."""

    spec: RunSpec
    decisions: tuple[Decision, ...] = ()

    def decide(self, decisions: Iterable[Decision]) -> Resolved:
        """The same with these decisions applied to the spec; those that name no setting are only kept."""
        decisions = list(decisions)
        spec = self.spec
        for decision in decisions:
            spec = set_value(spec, decision.field.split("."), decision.value)
        return Resolved(spec, (*self.decisions, *decisions))

    def assert_decided(self) -> None:
        """Checks that no `auto` is left."""
        left = [field for field in autos(self.spec) if field not in READ_AS_FOUND]
        assert not left, f"undecided: {left}"


def set_value(model: Any, path: list[str], value: Any) -> Any:
    """A copy of a section with the setting at `path` changed; a path that is no setting changes nothing."""
    if not isinstance(model, BaseModel) or path[0] not in type(model).model_fields:
        return model
    inner = value
    if len(path) > 1:
        current = getattr(model, path[0])
        if not isinstance(current, BaseModel):
            return model
        inner = set_value(current, path[1:], value)
    return model.model_copy(update={path[0]: inner})


def autos(section: Section, prefix: str = "") -> list[str]:
    """Dotted names of the settings that say `auto`."""
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            found += autos(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value == "auto":
            found.append(prefix + name)
    return found


def check_lengths(section: Any, limit: int, config: Any) -> list[Decision]:
    """Refuses lengths of a task's section that are more than a model of that configuration reads; where it reads any, says which are
    more than is usual.

    Raises InputError with all of them.
    """
    said: dict[str, Any] = {name: getattr(section, name, "auto") for name in LENGTHS}
    longer = {f"task.{name}": value for name, value in said.items() if value != "auto" and value > limit}
    if reads_any_length(config):
        because = f"as the spec says; the model names {limit} as its usual length, and reads more since its positions are relative"
        return [Decision(field, value, because) for field, value in longer.items()]
    if longer:
        fix = f"at most {limit}, or auto"
        problem = "is more than the model reads"
        raise InputError.from_problems(
            [Problem("spec.value", f"{field} {problem}", field, str(value), fix) for field, value in longer.items()]
        )
    return []


def decide_lengths_of_both(section: Any, sample: dict[str, list[Any]], limit: int, unknown_id: int | None) -> list[Decision]:
    """The longest source, target and answer, from the encoded columns of a sample, and the most the model reads; and how many tokens of
    the targets are unknown."""
    sources, targets = (np.asarray(sample[name]) for name in ("full_length", "full_label_length"))
    decisions = [
        decide_max_length(lengths, limit, f"task.{name}")
        for name, lengths in (("max_source_length", sources), ("max_target_length", targets))
        if getattr(section, name) == "auto"
    ]
    if section.generation.max_new_tokens == "auto":
        longest = int(targets.max())
        most = min(max(longest + longest // 2, section.generation.min_new_tokens, FEWEST_NEW_TOKENS), limit - 1)
        because = f"half as many again as the longest of {len(targets):,} sampled targets ({longest})"
        decisions.append(Decision("task.generation.max_new_tokens", most, because))
    if unknown := sum(labels.count(unknown_id) for labels in sample["labels"]) / targets.sum():
        because = "of the targets' tokens: what the tokenizer does not know is never written"
        decisions.append(Decision("unknown tokens", f"{unknown:.2%}", because))
    return decisions


def decide_max_length(sample: np.ndarray, limit: int, field: str = "task.max_length") -> Decision:
    """The most tokens of a text from the lengths [rows] of a sample, and the most the model reads."""
    longest, short, rows = int(sample.max()), min(limit, SHORT_TOKENS), f"{len(sample):,} sampled rows"
    if longest <= short:
        whose = "the model's limit; " if short == limit else ""
        return Decision(field, short, f"{whose}the longest of {rows} has {longest} tokens, and unused length costs nothing")
    wanted = max(-(-int(np.quantile(sample, LONG_QUANTILE)) // 64) * 64, short)
    if wanted >= limit:
        return Decision(field, limit, f"the model's limit; {(sample > limit).mean():.1%} of {rows} are longer")
    return Decision(field, wanted, f"holds {(sample <= wanted).mean():.1%} of {rows} whole; the longest has {longest} tokens")


def decide_block_length(limit: int) -> Decision:
    """`task.max_length` of running text that is cut into blocks, from the most the model reads, in tokens."""
    value = min(limit, SHORT_TOKENS)
    return Decision("task.max_length", value, "the model's limit" if value == limit else "enough context for most words, and quick")


def decide_training(spec: RunSpec, num_rows: int, has_validation: bool) -> list[Decision]:
    """What becomes of each `auto` of the `train` section."""
    train, method = spec.train, METHODS.get(spec.method.name)
    decisions: list[Decision] = []

    def take(field: str, value: Any, because: str) -> None:
        if getattr(train, field) == "auto":
            decisions.append(Decision(f"train.{field}", value, because))

    take("max_tokens_per_micro_batch", TOKENS_PER_MICRO_BATCH, "large enough for fast matrix products, small enough for memory")
    if train.precision == "auto":
        decisions.append(_decide_precision())
    if method.engine == "closed_form":
        return [*decisions, *_decide_closed_form(spec, has_validation)]
    take("learning_rate", method.learning_rate, f"the usual one of {method.name}")
    steps = total_steps(spec, num_rows)
    if train.max_steps != "none" and "epochs" in train.model_fields_set:
        epochs = train.max_steps / steps_per_epoch(spec, num_rows)
        decisions.append(
            Decision("epochs seen", round(epochs, 3), f"train.max_steps={train.max_steps} overrides train.epochs, as in Trainer")
        )
    take("logging_steps", max(steps // LOGS_PER_RUN, 1), f"about {LOGS_PER_RUN} times in {steps:,} steps")
    take("eval_steps", "epoch" if has_validation else "none", "every epoch" if has_validation else "there is no validation set")
    eval_steps = "epoch" if train.eval_steps == "auto" and has_validation else train.eval_steps
    take(
        "save_steps",
        eval_steps if eval_steps not in ("none", "auto") else "epoch",
        "whenever the model is evaluated" if has_validation else "every epoch",
    )
    save_steps = (eval_steps if eval_steps not in ("none", "auto") else "epoch") if train.save_steps == "auto" else train.save_steps
    can_choose = has_validation and eval_steps != "none" and save_steps != "none"
    metric = next(iter(TASKS.get(spec.task.name).metrics(spec.task)))
    take(
        "load_best_model_at_end",
        can_choose,
        f"the checkpoint with the best {metric} is kept" if can_choose else "it needs evaluation and checkpoints",
    )
    take("metric_for_best_model", metric, "the task's")
    return decisions


def _decide_closed_form(spec: RunSpec, has_validation: bool) -> list[Decision]:
    """What `auto` becomes where a solver fits the head.

    Raises InputError with all settings that the user gave and that only optimizer steps would heed.
    """
    train, l2 = spec.train, getattr(spec.method, "l2", None)
    values = {**CLOSED_FORM, "eval_steps": "epoch" if has_validation else "none"}
    defaults, given = TrainSpec(**values), train.model_fields_set
    used = USED_IN_CLOSED_FORM | ({"metric_for_best_model"} if isinstance(l2, str) else set())
    # A spec in which all is said is one that was resolved, as when a run is resumed: there a default is no wish.
    is_resolved = given == set(TrainSpec.model_fields)
    problems = []
    for field in TrainSpec.model_fields:
        value = getattr(train, field)
        if field in given - used and value != "auto" and not (is_resolved and value == getattr(defaults, field)):
            problem = f"{field} has no effect where the head is solved for: no optimizer step is taken"
            problems.append(
                Problem("spec.no_effect", problem, f"train.{field}", f"{field}={value}"[:100], "leave it out, or method: freeze")
            )
    if problems:
        raise InputError.from_problems(problems)
    reasons = {"metric_for_best_model": "of few rows it says more than how many are right"} if isinstance(l2, str) else {}
    decisions = [
        Decision(f"train.{field}", value, reasons.get(field, "not used: the head is solved for"))
        for field, value in values.items()
        if getattr(train, field) == "auto"
    ]
    if l2 == "auto":
        how, because = ("validation", "") if has_validation else ("cross_validation", "there is no validation set; ")
        decisions.append(Decision("method.l2", how, f"{because}the best by train.metric_for_best_model is taken"))
    return decisions


def _decide_precision() -> Decision:
    import torch

    if compute_device().type != "cpu":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Decision("train.precision", "bf16" if fast else "fp32", "the GPU has bf16" if fast else "the GPU has no bf16")
    speedup = bf16_speedup()
    value = "bf16" if speedup > FEWEST_SPEEDUP else "fp32"
    return Decision("train.precision", value, f"a bf16 matrix product takes {1 / speedup:.2f} of the time of an fp32 one on this processor")


def check_training(spec: RunSpec, has_validation: bool, num_steps: int, num_processes: int = 1) -> None:
    """Refuses settings of a resolved spec that contradict each other or would have no effect in `num_steps` steps, and several processes
    for what only one can compute.

    Raises InputError with all of them.
    """
    if num_processes > 1:
        _check_processes(spec, num_processes)
    train = spec.train
    problems: list[Problem] = []

    def refuse(code: str, field: str, problem: str, fix: str) -> None:
        problems.append(Problem(code, problem, f"train.{field}", f"{field}={getattr(train, field)}", fix))

    known = [*TASKS.get(spec.task.name).metrics(spec.task), "loss"]
    if train.metric_for_best_model not in known:
        refuse("spec.value", "metric_for_best_model", "the task has no such metric", did_you_mean(train.metric_for_best_model, known))
    if not has_validation:
        for field, idle in (("eval_steps", "none"), ("early_stopping_patience", "none"), ("load_best_model_at_end", False)):
            if getattr(train, field) != idle:
                refuse("spec.no_effect", field, f"{field} needs a validation set", "give data.validation, or leave it out")
    elif isinstance(train.eval_steps, int) and train.eval_steps > num_steps:
        refuse(
            "spec.no_effect",
            "eval_steps",
            f"the run ends after {num_steps} steps, before it is evaluated",
            f"at most {num_steps}, or epoch",
        )
    l2 = getattr(spec.method, "l2", None)
    if l2 == "validation" and not has_validation:
        fix = "give data.validation, or method.l2=cross_validation"
        problems.append(Problem("spec.conflict", "there is no validation set to choose l2 on", "method.l2", "l2: validation", fix))
    if train.load_best_model_at_end and (problem := _best_model_problem(train)) is not None:
        refuse("spec.conflict", *problem)
    if train.early_stopping_patience != "none" and not train.load_best_model_at_end:
        refuse("spec.conflict", "early_stopping_patience", "early stopping keeps the best model", "leave load_best_model_at_end on auto")
    if train.early_stopping_patience == "none" and train.early_stopping_threshold:
        refuse(
            "spec.no_effect",
            "early_stopping_threshold",
            "early_stopping_threshold has no effect without a patience",
            "set early_stopping_patience",
        )
    if train.lr_scheduler_type == "constant" and train.warmup_steps:
        refuse(
            "spec.no_effect", "warmup_steps", "warmup_steps has no effect on a constant schedule", "lr_scheduler_type: constant_with_warmup"
        )
    task = TASKS.get(spec.task.name)
    smooths = not task.per_token and getattr(spec.task, "problem_type", "") == "single_label_classification"
    if train.label_smoothing_factor and not smooths:
        refuse("spec.no_effect", "label_smoothing_factor", "label smoothing has no effect on this kind of problem", "leave it out")
    if train.pack and (not task.per_token or task.regroup is not None or task.join is not None):
        why = "blocks of text are full already" if task.regroup is not None else "only what predicts the next token can be packed"
        refuse("spec.no_effect", "pack", f"pack has no effect on this task: {why}", "leave it out")
    with collected(problems):
        check_extra(spec)
    if problems:
        raise InputError.from_problems(problems)


def _best_model_problem(train: TrainSpec) -> tuple[str, str, str] | None:
    """(field, problem, fix) when evaluations and checkpoints do not let the best model be kept."""
    if train.save_steps == "none" or train.eval_steps == "none":
        problem = "the best model cannot be kept without evaluation and checkpoints"
        return "load_best_model_at_end", problem, "set eval_steps and save_steps, or load_best_model_at_end: false"
    both_numbers = isinstance(train.save_steps, int) and isinstance(train.eval_steps, int)
    if (both_numbers and int(train.save_steps) % int(train.eval_steps)) or (train.save_steps == "epoch") != (train.eval_steps == "epoch"):
        problem = f"checkpoints must fall on evaluations (eval_steps={train.eval_steps}) for the best to be kept"
        return "save_steps", problem, "use the same steps for both, or a multiple"
    return None


def rows_per_step(spec: RunSpec) -> int:
    """Examples of one optimizer step, over all processes."""
    return spec.train.batch_size * spec.train.gradient_accumulation_steps


def steps_per_epoch(spec: RunSpec, num_rows: int) -> int:
    """Optimizer steps of one epoch."""
    return -(-num_rows // rows_per_step(spec))


def total_steps(spec: RunSpec, num_rows: int) -> int:
    """Optimizer steps of the run."""
    if spec.train.max_steps != "none":
        return spec.train.max_steps
    return max(int(np.ceil(spec.train.epochs * steps_per_epoch(spec, num_rows))), 1)


def _check_processes(spec: RunSpec, num_processes: int) -> None:
    found = ""
    if METHODS.get(spec.method.name).engine == "closed_form":
        where, found = "method", "is solved for"
    elif TASKS.get(spec.task.name).whole_step(spec.task) is not None:
        where, found = "task.loss", "compares the rows of a step"
    if found:
        problem = f"what {found} is computed in one process"
        raise InputError("spec.conflict", problem, where=where, found=f"{num_processes} processes", fix="start one process")
