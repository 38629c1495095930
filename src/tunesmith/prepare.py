"""From a spec to everything that training needs: rows read and checked, `auto` decided, texts encoded, model built."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.cache import key_of
from tunesmith.data.encode import Encoded, encode_rows
from tunesmith.data.lint import label_hashes, text_hashes
from tunesmith.data.plan import BatchPlan, draw_apart, num_sharing
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError
from tunesmith.models.catalog import ModelFiles, find_model
from tunesmith.models.language_model import sees_ahead
from tunesmith.models.load import LoadedModel, load_model, load_tokenizer, longest_input, new_model
from tunesmith.models.new_model import make_model
from tunesmith.models.placement import place
from tunesmith.models.remote_code import KNOWN, is_trusted
from tunesmith.models.save import card_code
from tunesmith.prepare_data import PreparedData, prepare_data
from tunesmith.registry import METHODS, Decision, Method, Task
from tunesmith.resolve import (
    Resolved,
    check_lengths,
    check_training,
    decide_block_length,
    decide_lengths_of_both,
    decide_max_length,
    decide_training,
    rows_per_step,
    steps_per_epoch,
    total_steps,
)
from tunesmith.spec import NewModelSpec, RunSpec
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts
from tunesmith.strict import naming_places

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LENGTH_SAMPLE = 2000
NO_CUT = 10**9


@dataclass
class Prepared:
    """A run that only needs to be started."""

    data: PreparedData
    resolved: Resolved
    files: ModelFiles
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    card_code: str
    """Python that loads the model once it is saved."""
    encoded: dict[str, Encoded]
    plan: BatchPlan
    accelerations: list[str]
    """Names of what makes the model faster while it trains."""

    @property
    def spec(self) -> RunSpec:
        """The resolved spec."""
        return self.resolved.spec

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.data.task

    def accelerated(self) -> AbstractContextManager[None]:
        """The model with its accelerations, while it lasts."""
        return accelerated(speed_facts(self.model, self.spec, self.encoded["train"]), self.accelerations)

    @property
    def method(self) -> Method:
        """Which weights are trained."""
        return METHODS.get(self.spec.method.name)


@naming_places
def prepare(spec: RunSpec, rejected: Path | None = None, use_cache: bool = True, world_size: int = 1) -> Prepared:
    """Prepares a run: all that can go wrong before the first step goes wrong here.

    Raises InputError.
    """
    data = prepare_data(spec, rejected)
    resolved, task = data.resolved, data.task
    method = METHODS.get(spec.method.name)
    files, resolved = _model_files(resolved, data, method, use_cache)
    if task.loader:
        _check_loader(task, method, spec, files)
    tokenizer = load_tokenizer(files.path)
    head = task.head(resolved.spec.task)
    if files.is_new:
        loaded = new_model(files.path, task, head, spec.train.seed, files.reference)
    else:
        loaded = load_model(files.path, task, head, spec.train.seed, method.quantization(spec.method), files.reference)
    if task.causal:
        _check_causal(loaded, files)
    known = len(tokenizer)
    resolved = resolved.decide([*loaded.decisions, *task.fit_tokenizer(resolved.spec.task, tokenizer, loaded.model)])
    loaded.new_token_ids = tuple(range(known, len(tokenizer)))
    quantization, new_tokens = method.quantization(spec.method), bool(loaded.new_token_ids)
    code = task.loader or card_code(task.auto_model, method.merge is not None, new_tokens, quantization, is_trusted(files.path))
    resolved = _decide_length(resolved, task, data.rows["train"], tokenizer, loaded.model)
    if task.decide_tokens is not None:
        resolved = resolved.decide(task.decide_tokens(resolved.spec.task, data.rows["train"], tokenizer))
    task.settle(resolved.spec.task, tokenizer, loaded.model)
    encoded = {split: _encode(rows, task, resolved.spec, tokenizer, data, use_cache) for split, rows in data.rows.items()}
    data.findings.close()
    data.findings.raise_if_any()
    resolved = resolved.decide(method.decide(resolved.spec.method, loaded.model))
    model = method.attach(resolved.spec.method, loaded, task.peft_task_type)
    has_validation = "validation" in encoded
    resolved = resolved.decide(decide_training(resolved.spec, len(encoded["train"]), has_validation))
    check_training(resolved.spec, has_validation, total_steps(resolved.spec, len(encoded["train"])), world_size)
    resolved.assert_decided()
    code += task.usage(resolved.spec.task)
    train = resolved.spec.train
    place(model)  # before accelerations are chosen: they depend on the device
    if train.pack:
        _check_packing(model)
    accelerations, decisions = choose(speed_facts(model, resolved.spec, encoded["train"]), resolved.spec.speed.off)
    resolved = resolved.decide(decisions)
    apart, decisions = _texts_apart(encoded["train"], task, resolved.spec)
    resolved = resolved.decide(decisions)
    plan = BatchPlan(
        encoded["train"].sizes,
        rows_per_step(resolved.spec),
        int(train.max_tokens_per_micro_batch),
        train.seed,
        world_size,
        train.pack,
        "end_to_end" in accelerations,
        apart,
    )
    return Prepared(data, resolved, files, tokenizer, model, code, encoded, plan, accelerations)


def _model_files(resolved: Resolved, data: PreparedData, method: Method, use_cache: bool) -> tuple[ModelFiles, Resolved]:
    """The files of the pretrained model, or those of a new one."""
    model = resolved.spec.model
    if isinstance(model, NewModelSpec):
        if not method.trains_all:
            problem = f"{method.name} keeps weights as they are, and those of a new model are random"
            raise InputError("spec.conflict", problem, where="method", found=method.name, fix="method: full")
        files, decisions = make_model(model, data.task, data.rows["train"], Path(data.work.name), use_cache)
    else:
        files, decisions = find_model(model), []
    return files, resolved.decide([Decision("model files", str(files.path), f"found as {files.origin}"), *decisions])


def _check_loader(task: Task, method: Method, spec: RunSpec, files: ModelFiles) -> None:
    problem = f"the models of {task.name} are loaded by another library, which would not"
    if method.quantization(spec.method) is not None:
        raise InputError("spec.conflict", f"{problem} quantise their base", where="method", found=method.name, fix="method: lora")
    if is_trusted(files.path):
        raise InputError("spec.conflict", f"{problem} run code of their own", where="model.name", found=str(files.path), fix=KNOWN)


def speed_facts(model: PreTrainedModel, spec: RunSpec, train: Encoded | None = None) -> Facts:
    """What the choice of accelerations for a model of a resolved spec depends on; without training rows, for prediction.

    A model whose head is solved for only predicts.
    """
    facts = Facts(model, spec.train.precision == "bf16", False, spec.train.extra, float(spec.train.weight_decay))
    if train is not None and METHODS.get(spec.method.name).engine == "trainer":
        facts.training, facts.token_ids, facts.num_tokens = True, lambda: train.token_ids, int(train.lengths.sum())
        facts.epochs = total_steps(spec, len(train)) / steps_per_epoch(spec, len(train))
    return facts


def _texts_apart(train: Encoded, task: Task, spec: RunSpec) -> tuple[np.ndarray | None, list[Decision]]:
    """Keys [examples, texts] of what no two rows of a step should share, where the task wants that, and how often it happens."""
    if task.apart is None:
        return None, []
    texts = [[[hash(text) for text in row] for row in task.apart(spec.task, batch)] for _, batch in train.rows.batches()]
    if not any(texts):
        return None, []
    keys = np.concatenate([np.asarray(batch) for batch in texts])[train.row]
    size = rows_per_step(spec)
    order = BatchPlan(train.lengths, size, 1, spec.train.seed).order(0)
    before = num_sharing([order[start : start + size] for start in range(0, len(order), size)], keys)
    left = num_sharing(draw_apart(order, keys, size), keys) if before else 0
    because = f"of the first epoch; {before:,} in steps as they are drawn, where a positive would be another row's negative"
    return keys if before else None, [Decision("rows that share a text with another of their step", left, because)]


def _check_causal(loaded: LoadedModel, files: ModelFiles) -> None:
    found = ""
    if loaded.head_parameters:
        found = f"it lacks {', '.join(sorted(loaded.head_parameters)[:3])}, ..."
    elif sees_ahead(loaded.model):
        found = f"{type(loaded.model).__name__}: what it says of a token depends on those after it"
    if found:
        where, fix = "model.name", "start from a model that was trained to write, such as smollm2 (`tunesmith models`)"
        if files.is_new:
            where, fix = "model.new", "gpt2 or llama"
        raise InputError("model.load", "the model is no causal language model", where=where, found=found, fix=fix)


def _check_packing(model: PreTrainedModel) -> None:
    from tunesmith.models.packing import packed_difference

    difference = packed_difference(model)
    if difference > 1:
        found = f"logits differ by {difference:.3g} times what rounding explains" if np.isfinite(difference) else "it reads no position_ids"
        problem = "this model does not keep packed examples apart"
        raise InputError("spec.conflict", problem, where="train.pack", found=f"{type(model).__name__}: {found}", fix="train.pack=false")


def _decide_length(resolved: Resolved, task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Resolved:
    section: Any = resolved.spec.task
    limit = longest_input(tokenizer, model)
    resolved = resolved.decide(check_lengths(section, limit, model.config))
    if task.writes_target:
        columns = task.encode(section, _sample(rows), tokenizer, NO_CUT)
        return resolved.decide(decide_lengths_of_both(section, columns, limit, tokenizer.unk_token_id))
    if section.max_length != "auto":
        return resolved
    if task.regroup is not None:
        return resolved.decide([decide_block_length(limit)])
    if task.per_token or task.join is not None:
        return resolved.decide(
            [Decision("task.max_length", limit, "the model's limit: nothing need be cut, and unused length costs nothing")]
        )
    lengths = task.encode(section, _sample(rows), tokenizer, NO_CUT)["full_length"]
    return resolved.decide([decide_max_length(np.asarray(lengths), limit)])


def _sample(rows: Rows) -> dict[str, list[Any]]:
    """Rows of which lengths are taken, evenly spread."""
    sample: dict[str, list[Any]] = rows.dataset[range(0, len(rows), max(len(rows) // LENGTH_SAMPLE, 1))]
    return sample


def _encode(rows: Rows, task: Task, spec: RunSpec, tokenizer: PreTrainedTokenizerBase, data: PreparedData, use_cache: bool) -> Encoded:
    section: Any = spec.task
    files = np.asarray(rows.dataset["file"]).tobytes() if task.regroup else b""  # where a document ends
    row_key = key_of(text_hashes(rows).tobytes(), label_hashes(rows).tobytes(), files).encode()
    encoded = encode_rows(rows, row_key, task, section, tokenizer, task.longest(section), Path(data.work.name), use_cache)
    for row, fault in encoded.faults:
        data.findings.add_fault(fault, rows.place(row), rows.dataset[row])
    if not len(encoded) and not data.findings.counts:
        raise InputError("data.too_small", f"no row of the {rows.split} set is left", where=f"data.{rows.split}", found="all are left out")
    return encoded


def check_tokenizer(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses to go on when a tokenizer that was trained again is not the one that the checkpoint reads with.

    Raises InputError.
    """
    if load_tokenizer(checkpoint).get_vocab() != tokenizer.get_vocab():
        problem = "the tokenizer, trained again, is not the one that the run was trained with"
        raise InputError(
            "data.changed", problem, where=str(checkpoint), fix="use the version of tokenizers in environment.json, or train anew"
        )
