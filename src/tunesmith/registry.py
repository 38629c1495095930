"""Tasks and methods are values: records of plain functions, found by name here.

A record is registered by tunesmith itself, by a package's entry point (`tunesmith.tasks`, `tunesmith.methods`), or by a plugin
file that calls `register_task` or `register_method`. Records are imported when they are asked for, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tunesmith.errors import InputError, did_you_mean
from tunesmith.spec import NamedSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decision:
    """A value that `auto` became, or that the data suggested, and why."""

    field: str
    """Dotted key in the spec."""
    value: Any
    because: str


@dataclass(frozen=True)
class Role:
    """A column that a task reads."""

    name: str
    kind: str
    """`text` or `label`."""
    required: bool = True
    known_names: tuple[str, ...] = ()
    """Column names, lower case, that mean this role."""


class Meter(Protocol):
    """Metrics that are computed as batches stream."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a batch: logits [batch, outputs], labels as the task's `collate` makes them."""

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """`{"metrics": {name: number}, "intervals": {name: [low, high]}, ...details}`."""


@dataclass(frozen=True)
class Task:
    """What is learnt, as functions. `section` is always the task's resolved section of the spec."""

    name: str
    summary: str
    spec: type[NamedSection]
    """The model of the `task:` section."""
    roles: tuple[Role, ...]
    default_model: str
    auto_model: str
    """The transformers class that loads the model, e.g. AutoModelForSequenceClassification."""
    peft_task_type: str
    recognise: Callable[[Any], str | None]
    """(preview of the data) -> why the data looks like this task, or None."""
    decide: Callable[[Any, Any], list[Decision]]
    """(section, facts of the training rows) -> what becomes of each `auto` of the section."""
    lint: Callable[[Any, dict[str, list[Any]]], Iterable[tuple[int, tuple[str, str, str, str]]]]
    """(section, batch of canonical rows) -> (row in batch, (code, problem, found, fix)) of rows the task cannot use."""
    target: Callable[[Any, Sequence[str]], Any]
    """(section, label cell) -> what the model learns from it, as `encode` puts it in labels."""
    stratify: Callable[[Any, Sequence[Any]], tuple[list[str], bool]]
    """(section, label cells of all rows) -> a stratum for each row, and whether each stratum must be on both sides of a split."""
    head: Callable[[Any], dict[str, Any]]
    """(section) -> keyword arguments of from_pretrained that shape the head and name its labels."""
    encode: Callable[[Any, dict[str, list[Any]], PreTrainedTokenizerBase, int], dict[str, list[Any]]]
    """(section, batch of canonical rows, tokenizer, max_length) -> columns: input_ids, full_length (tokens before the cut), labels if
    the rows have them, and other inputs of the model."""
    label_tensor: Callable[[Any, Sequence[Any]], torch.Tensor]
    """(section, encoded labels of a batch) -> the labels tensor."""
    loss: Callable[[Any, torch.Tensor, torch.Tensor, float], torch.Tensor]
    """(section, logits, labels, label smoothing) -> sum over the batch of each example's loss, weighted; a scalar in fp32."""
    loss_weight: Callable[[Any, Sequence[Any]], float]
    """(section, encoded labels) -> what the sum of losses over these is divided by."""
    meter: Callable[..., Meter]
    """(section, thresholds=None) -> a new meter; thresholds, if the task tunes any on validation, as a meter reported them."""
    metrics: Callable[[Any], dict[str, bool]]
    """(section) -> the metrics it reports, and whether greater is better; the first says which checkpoint is best."""
    outputs: Callable[[Any, torch.Tensor, dict[str, Any]], list[dict[str, Any]]]
    """(section, logits, what was tuned on validation) -> one plain prediction a row."""


@dataclass(frozen=True)
class Method:
    """Which weights are trained, as functions."""

    name: str
    summary: str
    spec: type[NamedSection]
    """The model of the `method:` section."""
    learning_rate: float
    """What `learning_rate: auto` becomes."""
    decide: Callable[[Any, Any], list[Decision]]
    """(section, model) -> what becomes of each `auto` of the section."""
    attach: Callable[..., PreTrainedModel]
    """(section, model, head parameter names, task type) -> the model to train; only trained weights require gradients."""
    save: Callable[[PreTrainedModel, Path, Path], None]
    """(trained model, folder, folder of the base model): writes files that the transformers class loads by itself."""


RecordT = TypeVar("RecordT", Task, Method)


class Registry(Generic[RecordT]):
    """Records by name."""

    def __init__(self, kind: str, entry_points: str, builtin: dict[str, str]) -> None:
        self.kind = kind
        self.entry_points = entry_points
        self._addresses = dict(builtin)
        self._records: dict[str, RecordT] = {}
        self._entry_points_read = False

    def register(self, record: RecordT) -> RecordT:
        """Adds a record; a name that is taken is an error."""
        if record.name in self._addresses or self._records.get(record.name, record) is not record:
            raise InputError("spec.unknown_name", f"a {self.kind} named {record.name} exists already", fix="give the record another name")
        self._records[record.name] = record
        return record

    def get(self, name: str) -> RecordT:
        """The record of that name."""
        if name not in self._records and name not in self._addresses:
            self._read_entry_points()
        if name in self._records:
            return self._records[name]
        if name not in self._addresses:
            raise InputError("spec.unknown_name", f"there is no {self.kind} of this name", found=name, fix=did_you_mean(name, self.names()))
        module, attribute = self._addresses[name].split(":")
        self._records[name] = getattr(import_module(module), attribute)
        return self._records[name]

    def names(self) -> list[str]:
        """All names, built in first."""
        self._read_entry_points()
        return list(dict.fromkeys([*self._addresses, *self._records]))

    def __iter__(self) -> Any:
        return (self.get(name) for name in self.names())

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        from importlib.metadata import entry_points

        for point in entry_points(group=self.entry_points):
            self._addresses.setdefault(point.name, point.value)


TASKS: Registry[Task] = Registry(
    "task", "tunesmith.tasks", {"text_classification": "tunesmith.tasks.text_classification:TEXT_CLASSIFICATION"}
)
METHODS: Registry[Method] = Registry(
    "method", "tunesmith.methods", {"full": "tunesmith.methods.full:FULL", "lora": "tunesmith.methods.lora:LORA"}
)


def register_task(task: Task) -> Task:
    """Makes a task known by its name."""
    return TASKS.register(task)


def register_method(method: Method) -> Method:
    """Makes a method known by its name."""
    return METHODS.register(method)


def load_plugin(path: str) -> None:
    """Runs a Python file that registers tasks or methods."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("tunesmith_plugin", path)
    try:
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except InputError:
        raise
    except Exception as error:  # a plugin is any Python: whatever it raises, it is its file that needs mending
        found = f"{type(error).__name__}: {error}"
        raise InputError("usage.argument", "the plugin cannot be loaded", where=path, found=found, fix="mend the file") from error
