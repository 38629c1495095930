"""Turns canonical rows into token ids, once: batched, to Arrow, cached under all that the result depends on."""

from __future__ import annotations

import functools
import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.cache import cached_folder, key_of
from tunesmith.data.rows import Rows
from tunesmith.registry import Fault, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

ENCODE_ROWS = 1000
UNIQUE_ROWS = 10_000
EVALUATION = (0,)
"""The key of what is drawn for examples that are not trained on: the same each time, so that results compare."""


def training_key(seed: int, epoch: int) -> tuple[int, ...]:
    """The key of what is drawn for examples in an epoch of training."""
    return (1, seed, epoch)


@dataclass
class Encoded:
    """A split as the model reads it, beside the rows it came from."""

    rows: Rows
    dataset: datasets.Dataset
    """Columns input_ids, labels (unless the rows have none), and what else the model reads, e.g. token_type_ids."""
    lengths: np.ndarray
    """Tokens of each example, [examples]."""
    full_lengths: np.ndarray
    """The same before max_length cut them."""
    row: np.ndarray
    """The row that each example came from (of a block of text, the first), ascending, [examples]."""
    max_length: int
    """The longest an example may be, in tokens."""
    faults: list[tuple[int, Fault]]
    """(row, what is wrong with it) of rows that cannot be encoded, and are not among the examples."""
    from_cache: bool
    draw: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None = None
    """The task's `draw`, if it has one."""
    num_token_ids: int = 0
    """Ids that the tokenizer has: all of them may be drawn."""
    label_lengths: np.ndarray | None = None
    """Tokens of each example's target, [examples], where that is a text of its own."""
    full_label_lengths: np.ndarray | None = None
    """The same before they were cut."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens that the model computes for each example, its target's too, [examples]."""
        return self.lengths if self.label_lengths is None else self.lengths + self.label_lengths

    @property
    def num_truncated(self) -> int:
        """Examples of which something was cut."""
        return int((self.full_lengths > self.lengths).sum())

    def place(self, index: int | np.integer[Any]) -> str:
        """`file:line` of an example."""
        return self.rows.place(self.row[index])

    @functools.cached_property
    def token_ids(self) -> np.ndarray:
        """The ids of all tokens, each once, ascending."""
        if self.draw is not None:
            return np.arange(self.num_token_ids)
        parts = self.dataset.with_format("arrow").iter(UNIQUE_ROWS)
        names = ["input_ids"] if self.label_lengths is None else ["input_ids", "labels"]
        used = [np.unique(part[name].combine_chunks().flatten().to_numpy()) for part in parts for name in names]
        return np.unique(np.concatenate(used)).astype(np.int64)

    def examples(self, indices: Iterable[int | np.integer[Any]], key: tuple[int, ...] = EVALUATION) -> dict[str, list[Any]]:
        """What the model reads and learns from, as columns; what is drawn for an example depends on `key` and its index alone."""
        numbers = [int(index) for index in indices]
        columns: dict[str, list[Any]] = self.dataset[numbers]
        if self.draw is None:
            return columns
        rows = [
            self.draw({name: values[number] for name, values in columns.items()}, np.random.default_rng([*key, index]))
            for number, index in enumerate(numbers)
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def sources(self, indices: Iterable[int | np.integer[Any]]) -> dict[str, list[Any]]:
        """The canonical rows of these examples, as columns."""
        columns: dict[str, list[Any]] = self.rows.dataset[[int(self.row[index]) for index in indices]]
        return columns


@dataclass(frozen=True)
class Examples:
    """Some examples of a split, as a meter and predictions see them beside what the model computed."""

    encoded: Encoded
    indices: np.ndarray

    @functools.cached_property
    def columns(self) -> dict[str, list[Any]]:
        """The encoded columns of these examples."""
        columns: dict[str, list[Any]] = self.encoded.dataset[[int(index) for index in self.indices]]
        return columns

    @property
    def row(self) -> np.ndarray:
        """The row that each is from, [examples]."""
        row: np.ndarray = self.encoded.row[self.indices]
        return row

    def sources(self) -> dict[str, list[Any]]:
        """The canonical rows of these examples, as columns."""
        return self.encoded.sources(self.indices)


class JoinedRows:
    """Rows put together from what is known of each of their examples, whatever the order in which batches bring these."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[int, Any]] = {}

    def add(self, examples: Examples, found: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
        """(row, what was found of each of its examples in their order) of every row that is now whole."""
        every = examples.encoded.row
        num_examples = np.searchsorted(every, examples.row, "right") - np.searchsorted(every, examples.row)
        for index, row, number, item in zip(examples.indices.tolist(), examples.row.tolist(), num_examples, found, strict=True):
            known = self._waiting.setdefault(row, {})
            known[index] = item
            if len(known) == number:
                del self._waiting[row]
                yield row, [known[example] for example in sorted(known)]


def encode_rows(
    rows: Rows, row_key: bytes, task: Task, section: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, work: Path, use_cache: bool
) -> Encoded:
    """Encodes a split. `row_key` stands for the content of the rows; without the cache the result lives under `work`."""
    import datasets

    def make(folder: Path) -> None:
        _write(rows, task, section, tokenizer, max_length, folder / "encoded.arrow")

    if use_cache:
        key = key_of(row_key, section.model_dump(mode="json"), max_length, tokenizer_key(tokenizer), code_key(task))
        folder, from_cache = cached_folder("encoded", key, make)
    else:
        folder, from_cache = Path(tempfile.mkdtemp(prefix=f"encoded-{rows.split}-", dir=work)), False
        make(folder)
    dataset = datasets.Dataset.from_file(str(folder / "encoded.arrow"))
    lengths, full, row = (dataset.data.column(name).to_numpy().astype(np.int32) for name in ("length", "full_length", "row"))
    written = dataset.data.column("fault").to_pylist()
    faults = [(int(row[index]), tuple(json.loads(fault))) for index, fault in enumerate(written) if fault is not None]
    dataset = dataset.remove_columns(["length", "full_length", "row", "fault"])
    if faults:
        good = np.flatnonzero([fault is None for fault in written])
        dataset, lengths, full, row = dataset.select(good), lengths[good], full[good], row[good]
    draw = None if task.draw is None else functools.partial(task.draw, section, tokenizer)
    encoded = Encoded(rows, dataset, lengths, full, row, max_length, faults, from_cache, draw, len(tokenizer))
    if task.writes_target and "labels" in dataset.column_names:
        encoded.label_lengths = np.asarray(dataset.with_format("arrow")[:]["labels"].combine_chunks().value_lengths(), dtype=np.int32)
        encoded.full_label_lengths = np.asarray(dataset.with_format("arrow")[:]["full_label_length"], dtype=np.int32)
    return encoded


def _write(rows: Rows, task: Task, section: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path) -> None:
    import pyarrow as pa

    def encoded() -> Iterator[dict[str, list[Any]]]:
        for start, batch in rows.batches(ENCODE_ROWS):
            columns = task.encode(section, batch, tokenizer, max_length)
            columns["row"] = [start + row for row in columns.pop("row", range(len(columns["input_ids"])))]
            yield columns

    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for columns in encoded() if task.regroup is None else task.regroup(section, encoded(), max_length):
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
            columns["fault"] = [None if fault is None else json.dumps(fault) for fault in columns["fault"]]
            arrays = {name: pa.array(values, type=_arrow_type(pa, name, values)) for name, values in columns.items()}
            record = pa.RecordBatch.from_pydict(arrays)
            writer = writer or pa.ipc.new_stream(sink, record.schema)
            writer.write_batch(record)
        if writer is not None:
            writer.close()


def _arrow_type(pa: Any, name: str, values: list[Any]) -> Any:
    if name == "fault":
        return pa.string()
    if name in ("length", "full_length", "row"):
        return pa.int32()
    if values and isinstance(values[0], list):
        return pa.list_(pa.int8() if name == "token_type_ids" else pa.int32())
    return pa.float32() if values and isinstance(values[0], float) else pa.int32()


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all in a tokenizer that decides what ids a text gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = tokenizer.get_vocab()
    return key_of(type(tokenizer).__name__, content, tokenizer.special_tokens_map, tokenizer.truncation_side, tokenizer.chat_template)


def code_key(task: Task) -> str:
    """SHA-256 of the code that encodes: the files beside the task's `encode`, those of `data`, and the versions of what they call."""
    import tokenizers
    import transformers

    files = [file for part in (__file__, inspect.getfile(task.encode)) for file in sorted(Path(part).parent.glob("*.py"))]
    return key_of([file.read_text(encoding="utf-8") for file in files], tokenizers.__version__, transformers.__version__)
