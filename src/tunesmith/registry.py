"""Tasks, methods and accelerations are values: records of plain functions, found by name here.

A record is registered by tunesmith itself, by a package's entry point (`tunesmith.tasks`, `tunesmith.methods`,
`tunesmith.accelerations`), or by a plugin file that calls `register_task`, `register_method` or `register_acceleration`. Records are
imported when they are asked for, never before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from tunesmith.errors import InputError, did_you_mean
from tunesmith.spec import NamedSection

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decision:
    """A value that `auto` became, or that the data suggested, and why."""

    field: str
    """Dotted key in the spec."""
    value: Any
    because: str


Fault = tuple[str, str, str, str]
"""(code, problem, found, fix) of a row that a task cannot use; who finds it knows the place."""


@dataclass(frozen=True)
class Role:
    """A column that a task reads."""

    name: str
    kind: str
    """What it is found by when its name is unknown: `text`, `label`, or `name` when only its name tells."""
    required: bool = True
    known_names: tuple[str, ...] = ()
    """Column names, lower case, that mean this role."""


class Meter(Protocol):
    """Metrics that are computed as batches stream."""

    def update(self, outputs: Any, labels: torch.Tensor, examples: Any) -> None:
        """Adds a batch: what the task's `forward` gave, its labels, and where it comes from (`data.encode.Examples`)."""

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
    peft_task_type: str | None
    """PEFT's type of task; None where it has none."""
    recognise: Callable[[Any], str | None]
    """(preview of the data) -> why the data looks like this task, or None; tasks are asked in the order of the registry."""
    canonical: dict[str, str]
    """Columns of a canonical row and their kinds: `text`, `texts` and `labels` (lists of strings), or `json`. `id` is the name of a row:
    it is neither read nor learnt, and two rows of a split may not have the same."""
    read: Callable[[Any, dict[str, str], dict[str, Any]], Iterable[dict[str, Any] | Fault]]
    """(section, column of each role, row as the file has it) -> the canonical rows it holds, or what is wrong with it."""
    decide: Callable[[Any, Any], list[Decision]]
    """(section, facts of the training rows) -> what becomes of each `auto` of the section."""
    lint: Callable[[Any, dict[str, list[Any]]], Iterable[tuple[int, Fault]]]
    """(section, batch of canonical rows) -> (row in batch, fault) of rows the task cannot use."""
    target: Callable[[Any, Sequence[str]], Any]
    """(section, label cell) -> what the model learns from it, as `encode` puts it in labels."""
    stratify: Callable[[Any, Sequence[Any]], tuple[list[str], bool]]
    """(section, label cells of all rows) -> a stratum for each row, and whether each stratum must be on both sides of a split."""
    head: Callable[[Any], dict[str, Any]]
    """(section) -> keyword arguments of from_pretrained that shape the head and name its labels."""
    fit_tokenizer: Callable[[Any, PreTrainedTokenizerBase, PreTrainedModel], list[Decision]]
    """(section, tokenizer, model) -> what was changed in both for the task: pad token, chat template, new tokens."""
    encode: Callable[[Any, dict[str, list[Any]], PreTrainedTokenizerBase, int], dict[str, list[Any]]]
    """(section, batch of canonical rows, tokenizer, max_length) -> columns: input_ids, full_length (tokens before the cut), labels if
    the rows have them, other inputs of the model, and `fault`: the Fault of a row that cannot be used, or None. Where a row becomes
    several examples, `row` says for each which row of the batch it is from, ascending."""
    label_tensor: Callable[[Any, Sequence[Any], tuple[int, int]], torch.Tensor]
    """(section, encoded labels of a batch, shape of its input_ids) -> the labels tensor."""
    forward: Callable[[Any, PreTrainedModel, dict[str, torch.Tensor], torch.Tensor | None], Any]
    """(section, model, its inputs, labels) -> what `loss`, the meter and `outputs` read, e.g. logits."""
    loss: Callable[[Any, Any, torch.Tensor, float], torch.Tensor]
    """(section, what `forward` gave, labels, label smoothing) -> sum over the batch of each example's loss, weighted; an fp32 scalar."""
    loss_weight: Callable[[Any, Sequence[Any]], float]
    """(section, encoded labels) -> what the sum of losses over these is divided by."""
    meter: Callable[..., Meter]
    """(section, thresholds=None) -> a new meter; thresholds, if the task tunes any on validation, as a meter reported them."""
    metrics: Callable[[Any], dict[str, bool]]
    """(section) -> the metrics it reports, and whether greater is better; the first says which checkpoint is best."""
    outputs: Callable[[Any, Any, dict[str, Any], Any], list[Any]] | None = None
    """(section, what `forward` gave, what was tuned on validation, the `data.encode.Examples`) -> one plain prediction an example, or
    what `join` makes it of; None where it is generated."""
    join: Callable[[Any, list[Any], dict[str, Any]], dict[str, Any]] | None = None
    """(section, what `outputs` gave for the examples of a row, the canonical row) -> the row's prediction; None where a row is one
    example. With it, a long row is several examples, and nothing of it is cut."""
    learnt: Callable[[Any, dict[str, Any]], list[bool]] | None = None
    """(section, encoded columns of an example) -> which of its tokens `check` shows as learnt, where labels are places of tokens."""
    decide_tokens: Callable[[Any, Any, PreTrainedTokenizerBase], list[Decision]] | None = None
    """(section, training `Rows`, tokenizer) -> what becomes of each `auto` that depends on their tokens; None where nothing does."""
    together: tuple[str, ...] = ()
    """Canonical columns: rows that are alike in them are on one side when a share becomes the validation set; none: identical rows."""
    usage: Callable[[Any], str] = lambda section: ""
    """(section) -> Python for the model card, after the code that loads the model, where transformers has no pipeline for it."""
    carried: tuple[str, ...] = ()
    """Columns that `encode` gives and the model does not read: `Examples` has them, for the meter and `outputs`."""
    units: Callable[[Sequence[str]], Iterable[tuple[str, ...]]] = lambda cell: (tuple(cell),)
    """(label cell) -> what of it is counted in the facts that `decide` reads."""
    distribution: Callable[[Any, Counter[tuple[str, ...]]], dict[str, int]] | None = None
    """(section, those counts) -> the labels of the training rows and how often each stands; None where rows are counted by stratum."""
    source: Callable[[Any, dict[str, Any], PreTrainedTokenizerBase], dict[str, Any] | None] = lambda section, row, tokenizer: None
    """(section, canonical row, tokenizer) -> what plain transformers makes the same tokens of: `{"words": [...]}`,
    `{"messages": [...]}`, or `{"text": ..., "text_pair": ...}`; None when nothing is."""
    read_input: Callable[[Any, dict[str, str], dict[str, Any]], Iterable[dict[str, Any] | Fault]] | None = None
    """`read` for prediction, where rows need no answer; None where leaving out the label's column is enough."""
    prompt: Callable[[Any, dict[str, list[Any]], PreTrainedTokenizerBase], list[tuple[list[int], Any]]] | None = None
    """(section, batch of canonical rows, tokenizer) -> (ids to go on from or to answer, the text that ought to be written, or a list of
    such texts, if the row has it); for tasks that generate."""
    answered: Callable[[Any, dict[str, Any], Any], dict[str, Any]] | None = None
    """(section, canonical row, what was written: `text`, `num_tokens`, `finished`, `score`) -> the row's prediction; None: that of a
    conversation or a text."""
    to_text: Callable[[Any, PreTrainedTokenizerBase, str, dict[str, Any]], dict[str, Any]] | None = None
    """(section, tokenizer, text of the row, its prediction) -> the prediction with token ids as text."""
    for_prediction: Mapping[str, Any] = field(default_factory=dict)
    """Fields of this record that are others where rows have no answers and are to be given some."""
    draw: Callable[[Any, PreTrainedTokenizerBase, dict[str, Any], np.random.Generator], dict[str, Any]] | None = None
    """(section, tokenizer, encoded columns of an example, generator) -> the columns that the model reads and learns from, for tasks that
    draw these anew in each epoch; what `encode` gives then need not have labels."""
    regroup: Callable[[Any, Iterable[dict[str, list[Any]]], int], Iterable[dict[str, list[Any]]]] | None = None
    """(section, encoded columns batch by batch with `row`, max_length) -> the same in blocks; None leaves rows alone."""
    running_text: bool = False
    """Whether text files without columns are running text, in which a passage may stand twice, rather than one example a line."""
    causal: bool = False
    """Whether each token is predicted from those before it: then a checkpoint must bring its head, and the model may not see ahead."""
    per_token: bool = False
    """Whether labels belong to tokens: rows can then be packed, and labels cannot be smoothed."""
    whole_step: Callable[[Any], Literal["one_graph", "gradient_cache"] | None] = lambda section: None
    """(section) -> how a step is computed whose loss compares its examples with each other, where `forward` gives a tensor [examples, ...]:
    the outputs of all micro-batches in `one_graph`, or twice, first without gradients (`gradient_cache`, Gao et al. 2021); None where
    the loss is a sum over examples, and each micro-batch has its own."""
    apart: Callable[[Any, dict[str, list[Any]]], list[list[str]]] | None = None
    """(section, batch of canonical rows) -> the texts of each row that no other row of its step should have, as many of each, where a step
    compares its rows; an empty list where they may."""
    loader: str = ""
    """Python that loads a saved model from `folder` as a `model` with `encode(texts)`; empty where `auto_model` of transformers does."""
    finish: Callable[[Any, PreTrainedModel, PreTrainedTokenizerBase, Path], None] = lambda section, model, tokenizer, folder: None
    """(section, model, tokenizer, folder of the saved model) writes what `loader` needs beside the files of transformers."""
    writes_target: bool = False
    """Whether labels are the tokens of a text of their own, which a decoder writes while it reads input_ids: then `encode` gives
    full_label_length as well, and the section has `max_source_length` and `max_target_length` in the place of `max_length`."""
    decide_reading: Callable[[Any, Any, dict[str, str]], list[Decision]] = lambda section, opened, columns: []
    """(section, preview of the data, column of each role) -> what must be decided before rows are read."""
    remarks: Callable[[Any, Any], list[Decision]] = lambda section, rows: []
    """(section, checked training rows, `data.rows.Rows`) -> what is odd about them, though nothing is wrong; shown."""
    tokenizer_columns: tuple[str, ...] = ()
    """Columns, of texts or lists of texts, that a new model's tokenizer is trained on; empty: every canonical `text`."""
    settle: Callable[[Any, PreTrainedTokenizerBase, PreTrainedModel], None] = lambda section, tokenizer, model: None
    """(section, tokenizer, model) -> tells the model, once all is decided, what it is to keep when it is saved, such as how it writes."""

    def longest(self, section: Any) -> Any:
        """The section's most tokens of input_ids, or `auto`."""
        return getattr(section, "max_source_length" if self.writes_target else "max_length")


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
    attach: Callable[[Any, Any, str | None], PreTrainedModel]
    """(section, loaded model, peft's task type) -> the model to train; only trained weights require gradients."""
    save: Callable[[PreTrainedModel, Path, Path], None]
    """(trained model, folder, folder of the base model): writes files that the transformers class loads by itself."""
    quantization: Callable[[Any], Any] = lambda section: None
    """(section) -> transformers' quantization config that the base model is loaded with, or None."""
    idle: Callable[[PreTrainedModel], list[str]] = lambda model: []
    """(model after a backward pass) -> names of the parts that ought to be trained and have no gradient."""
    merge: Callable[[PreTrainedModel, Path], PreTrainedModel] | None = None
    """(base model loaded afresh, never quantised; folder of adapters) -> one model without adapters; None: nothing to merge."""
    trains_all: bool = False
    """Whether every weight is trained, so that a new model, which has learnt nothing, can be."""
    engine: Literal["trainer", "closed_form"] = "trainer"
    """Which engine fits it: steps of an optimizer, or a solver for the linear layer whose weight requires a gradient."""


@dataclass(frozen=True)
class Acceleration:
    """A way to compute the same in less time or memory, as functions; it changes a model instance, and is undone exactly."""

    name: str
    summary: str
    why_not: Callable[[Any], str | None]
    """(facts of the run, see speed.facts) -> why it cannot be had here, or None."""
    apply: Callable[[Any], Callable[[], None]]
    """(facts) -> a function that undoes it; raises `Unfit` when the model turns out not to be made for it."""


RecordT = TypeVar("RecordT", Task, Method, Acceleration)


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
    "task",
    "tunesmith.tasks",
    {
        "question_answering": "tunesmith.tasks.question_answering:QUESTION_ANSWERING",
        "chat": "tunesmith.tasks.chat:CHAT",
        "embedding": "tunesmith.tasks.embedding:EMBEDDING",
        "token_classification": "tunesmith.tasks.token_classification:TOKEN_CLASSIFICATION",
        "seq2seq": "tunesmith.tasks.seq2seq:SEQ2SEQ",
        "text_classification": "tunesmith.tasks.text_classification:TEXT_CLASSIFICATION",
        "causal_lm": "tunesmith.tasks.causal_lm:CAUSAL_LM",
        "masked_lm": "tunesmith.tasks.masked_lm:MASKED_LM",
    },
)
METHODS: Registry[Method] = Registry(
    "method",
    "tunesmith.methods",
    {
        "full": "tunesmith.methods.full:FULL",
        "freeze": "tunesmith.methods.freeze:FREEZE",
        "lora": "tunesmith.methods.lora:LORA",
        "qlora": "tunesmith.methods.lora:QLORA",
        "linear_probe": "tunesmith.methods.linear_probe:LINEAR_PROBE",
    },
)
ACCELERATIONS: Registry[Acceleration] = Registry(
    "acceleration",
    "tunesmith.accelerations",
    {
        "memory": "tunesmith.speed.memory:MEMORY",
        "end_to_end": "tunesmith.speed.end_to_end:END_TO_END",
        "last_block": "tunesmith.speed.last_block:LAST_BLOCK",
        "linear": "tunesmith.speed.linear:LINEAR",
        "dropout": "tunesmith.speed.dropout:DROPOUT",
        "norm": "tunesmith.speed.norm:NORM",
        "activation": "tunesmith.speed.activation:ACTIVATION",
        "rotary": "tunesmith.speed.rotary:ROTARY",
        "encoder_blocks": "tunesmith.speed.encoder_blocks:ENCODER_BLOCKS",
        "decoder_blocks": "tunesmith.speed.decoder_blocks:DECODER_BLOCKS",
        "embedding_rows": "tunesmith.speed.embedding_rows:EMBEDDING_ROWS",
        "tied_embeddings": "tunesmith.speed.tied_embeddings:TIED_EMBEDDINGS",
        "optimizer": "tunesmith.speed.optimizer:OPTIMIZER",
        "frozen_weights": "tunesmith.speed.frozen_weights:FROZEN_WEIGHTS",
        "frozen_features": "tunesmith.speed.frozen_features:FROZEN_FEATURES",
        "liger": "tunesmith.speed.liger:LIGER",
    },
)


def register_task(task: Task) -> Task:
    """Makes a task known by its name."""
    return TASKS.register(task)


def register_method(method: Method) -> Method:
    """Makes a method known by its name."""
    return METHODS.register(method)


def register_acceleration(acceleration: Acceleration) -> Acceleration:
    """Makes an acceleration known by its name."""
    return ACCELERATIONS.register(acceleration)


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
