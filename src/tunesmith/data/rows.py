"""Reads the sources of a spec into canonical rows: Arrow on disk, memory-mapped, every row with its file and line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.columns import assign_columns
from tunesmith.data.findings import Findings
from tunesmith.data.origins import Opened, Origin
from tunesmith.data.sources import BadLine, RawRow
from tunesmith.errors import InputError, Problem, did_you_mean
from tunesmith.registry import Decision, Role, Task
from tunesmith.spec import DataSpec

if TYPE_CHECKING:
    import datasets
    import numpy as np

WRITE_ROWS = 2000
MAX_LABEL_KINDS = 100_000


@dataclass
class Rows:
    """The canonical rows of one split: the task's columns, `file` (index into origins) and `line`."""

    split: str
    dataset: datasets.Dataset
    origins: list[str]
    hashes: np.ndarray | None = None
    """What `data.lint.text_hashes` gave, [rows]; rows that are selected take theirs along."""

    def __len__(self) -> int:
        return len(self.dataset)

    def place(self, index: int | np.integer[Any]) -> str:
        """`file:line` of a row, and its id where it has one: a whole document may stand on one line."""
        row = self.dataset[int(index)]
        return f"{self.origins[row['file']]}:{row['line']}" + (f", id {row['id']}" if row.get("id") else "")

    def select(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> Rows:
        """The rows at these indices."""
        hashes = None if self.hashes is None else self.hashes[indices]
        return Rows(split or self.split, self.dataset.select(indices), self.origins, hashes)

    def batches(self, size: int = WRITE_ROWS) -> Iterator[tuple[int, dict[str, list[Any]]]]:
        """(index of the first row, columns of a batch) pairs."""
        for start in range(0, len(self.dataset), size):
            yield start, self.dataset[start : start + size]


@dataclass(frozen=True)
class RowFacts:
    """What the training rows hold, as far as decisions need it."""

    num_rows: int
    label_counts: Counter[tuple[str, ...]]
    """How often each label cell stands, a list of one or more strings; or what else the task counts in them."""
    label_kinds: frozenset[str]
    """Types of label cells as they were read: str, int, float, bool, list."""
    root: Path
    pretrained_labels: tuple[str, ...] = ()
    """Labels of the checkpoint that training starts from."""
    names: Sequence[str] = ()
    """Columns of the training files."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each role."""
    sample: Sequence[dict[str, Any]] = ()
    """The first rows, as the files have them."""


def decide_columns(opened: Opened, data: DataSpec, roles: Sequence[Role]) -> tuple[dict[str, str], list[Decision]]:
    """The column of each role, the same in every file.

    Raises InputError when a file lacks one of them.
    """
    columns, decisions = assign_columns(opened.names, opened.sample, data, roles)
    optional = {role.name for role in roles if role.kind == "name"}
    problems = [
        Problem(
            "data.missing_column",
            f"the file has no column {column}",
            f"{origin.name}:1",
            f"columns {', '.join(origin.dialect.names)}",
            did_you_mean(column, origin.dialect.names) + " (data.columns and data.header say how columns are found)",
        )
        for origins in opened.origins.values()
        for origin in origins
        for role, column in columns.items()
        if role not in optional and column not in origin.dialect.names
    ]
    if problems:
        raise InputError.from_problems(problems)
    return columns, decisions


def read_split(
    split: str, origins: Sequence[Origin], columns: dict[str, str], task: Task, section: Any, folder: Path, findings: Findings
) -> Rows:
    """Writes the canonical rows of a split to Arrow under `folder`; what is wrong with a row goes to `findings`."""
    import datasets
    import pyarrow as pa

    roles = {role.name for role in task.roles}
    types = {"text": pa.string(), "json": pa.string(), "texts": pa.list_(pa.string()), "labels": pa.list_(pa.string())}
    there = {name: kind for name, kind in task.canonical.items() if name in columns or name not in roles or kind == "json"}
    fields = [pa.field(name, types[kind]) for name, kind in there.items()]
    schema = pa.schema([*fields, pa.field("file", pa.int32()), pa.field("line", pa.int64())])
    path = folder / f"{split}.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        rows = _canonical_rows(origins, columns, task, section, findings)
        while batch := list(islice(rows, WRITE_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    return Rows(split, datasets.Dataset.from_file(str(path)), [origin.name for origin in origins])


def _canonical_rows(
    origins: Sequence[Origin], columns: dict[str, str], task: Task, section: Any, findings: Findings
) -> Iterator[dict[str, Any]]:
    for number, origin in enumerate(origins):
        for raw in _rows_to_the_end(origin, findings):
            if isinstance(raw, BadLine):
                findings.add(raw.problem)
                continue
            for found in task.read(section, columns, raw.values):
                if isinstance(found, dict):
                    yield {**found, "file": number, "line": raw.line}
                else:
                    findings.add_fault(found, f"{origin.name}:{raw.line}", raw.values)


def _rows_to_the_end(origin: Origin, findings: Findings) -> Iterator[RawRow | BadLine]:
    """The rows of a file; where it breaks off is one finding more.

    Raises InputError for that when bad rows are skipped: the rows that are missing are unknown.
    """
    try:
        yield from origin.rows()
    except InputError as error:
        if findings.skip:
            raise
        for problem in error.problems:
            findings.add(problem)


def row_facts(rows: Rows, task: Task, opened: Opened, columns: dict[str, str], root: Path, pretrained_labels: tuple[str, ...]) -> RowFacts:
    """Counts the labels of the training rows."""
    counts: Counter[tuple[str, ...]] = Counter()
    if "label" in rows.dataset.column_names:
        for _, batch in rows.batches():
            counts.update(unit for cell in batch["label"] for unit in task.units(cell))
            if len(counts) > MAX_LABEL_KINDS:
                break
    column = columns.get("label", "")
    kinds = frozenset(_kind(row[column]) for row in opened.sample if row.get(column) is not None)
    return RowFacts(len(rows), counts, kinds, root, pretrained_labels, opened.names, columns, opened.sample)


def _kind(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else type(value).__name__
