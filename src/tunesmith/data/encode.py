"""Turns canonical rows into token ids, once: batched, to Arrow, cached under all that the result depends on."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.cache import cached_folder, key_of
from tunesmith.data.rows import Rows
from tunesmith.registry import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

ENCODE_ROWS = 1000


@dataclass
class Encoded:
    """A split as the model reads it, beside the rows it came from."""

    rows: Rows
    dataset: datasets.Dataset
    """Columns input_ids, labels (unless the rows have none), and what else the tokenizer gives, e.g. token_type_ids."""
    lengths: np.ndarray
    """Tokens of each row, [rows]."""
    full_lengths: np.ndarray
    """The same before max_length cut them."""
    max_length: int
    """The longest a row may be, in tokens."""
    from_cache: bool

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_truncated(self) -> int:
        """Rows of which something was cut."""
        return int((self.full_lengths > self.lengths).sum())


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
        folder, from_cache = work / f"encoded-{rows.split}", False
        folder.mkdir()
        make(folder)
    dataset = datasets.Dataset.from_file(str(folder / "encoded.arrow"))
    lengths, full = (dataset.data.column(name).to_numpy().astype(np.int32) for name in ("length", "full_length"))
    return Encoded(rows, dataset.remove_columns(["length", "full_length"]), lengths, full, max_length, from_cache)


def _write(rows: Rows, task: Task, section: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path) -> None:
    import pyarrow as pa

    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for _, batch in rows.batches(ENCODE_ROWS):
            columns = task.encode(section, batch, tokenizer, max_length)
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
            arrays = {name: pa.array(values, type=_arrow_type(pa, name, values)) for name, values in columns.items()}
            record = pa.RecordBatch.from_pydict(arrays)
            writer = writer or pa.ipc.new_stream(sink, record.schema)
            writer.write_batch(record)
        if writer is not None:
            writer.close()


def _arrow_type(pa: Any, name: str, values: list[Any]) -> Any:
    if name in ("length", "full_length"):
        return pa.int32()
    if values and isinstance(values[0], list):
        return pa.list_(pa.int8() if name in ("token_type_ids", "labels") else pa.int32())
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
    return key_of(type(tokenizer).__name__, content, tokenizer.special_tokens_map, tokenizer.truncation_side)


def code_key(task: Task) -> str:
    """SHA-256 of the code that encodes: the files beside the task's `encode`, and the versions of what they call."""
    import tokenizers
    import transformers

    files = [Path(__file__), *sorted(Path(inspect.getfile(task.encode)).parent.glob("*.py"))]
    return key_of([file.read_text(encoding="utf-8") for file in files], tokenizers.__version__, transformers.__version__)
