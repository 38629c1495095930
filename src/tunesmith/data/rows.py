"""Reads the sources of a spec into canonical rows: Arrow on disk, memory-mapped, every row with its file and line."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.columns import assign_columns
from tunesmith.data.findings import Findings
from tunesmith.data.parallel import COLUMN, Pair, find_pairs, pair_name, read_pair
from tunesmith.data.sniff import Dialect, sniff
from tunesmith.data.sources import BadLine, RawRow, find_files, is_datasets_folder, open_dataset, read_rows
from tunesmith.errors import InputError, Problem, collected, did_you_mean
from tunesmith.registry import Decision, Role, Task
from tunesmith.spec import DataSpec, is_share

if TYPE_CHECKING:
    import datasets
    import numpy as np

SAMPLE_ROWS = 2000
WRITE_ROWS = 2000
MAX_LABEL_KINDS = 100_000


@dataclass(frozen=True)
class Origin:
    """One file (or dataset) of a split."""

    name: str
    """As shown in `name:line`."""
    dialect: Dialect
    rows: Callable[[], Iterator[RawRow | BadLine]]
    fingerprint: str
    """SHA-256 of the bytes, or what `datasets` calls the fingerprint."""
    sample: list[dict[str, Any]]
    unchanged: Callable[[], bool] = lambda: True
    """Whether the file is still the one that was opened."""


@dataclass(frozen=True)
class Opened:
    """The sources of each split, looked at but not read: what the task and the columns are decided from."""

    origins: dict[str, list[Origin]]
    decisions: list[Decision]

    @property
    def names(self) -> list[str]:
        """Columns of the training files, in order of appearance."""
        return list(dict.fromkeys(name for origin in self.origins["train"] for name in origin.dialect.names))

    @property
    def sample(self) -> list[dict[str, Any]]:
        """The first rows of the training files."""
        share = max(SAMPLE_ROWS // len(self.origins["train"]), 50)
        return [row for origin in self.origins["train"] for row in origin.sample[:share]]

    def changed(self) -> list[str]:
        """Names of the files that are no longer those that were opened."""
        return [origin.name for origins in self.origins.values() for origin in origins if not origin.unchanged()]


@dataclass
class Rows:
    """The canonical rows of one split: the task's columns, `file` (index into origins) and `line`."""

    split: str
    dataset: datasets.Dataset
    origins: list[str]

    def __len__(self) -> int:
        return len(self.dataset)

    def place(self, index: int | np.integer[Any]) -> str:
        """`file:line` of a row, and its id where it has one: a whole document may stand on one line."""
        row = self.dataset[int(index)]
        return f"{self.origins[row['file']]}:{row['line']}" + (f", id {row['id']}" if row.get("id") else "")

    def select(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> Rows:
        """The rows at these indices."""
        return Rows(split or self.split, self.dataset.select(indices), self.origins)

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


def open_sources(data: DataSpec, running_text: bool = False) -> Opened:
    """Looks at every source of the spec: files, formats, columns, a sample of rows.

    With `running_text`, files without columns are read as running text.
    """
    origins: dict[str, list[Origin]] = {}
    problems: list[Problem] = []
    for split in ("train", "validation", "test"):
        source = getattr(data, split)
        if is_share(source) or source == "none":
            continue
        with collected(problems):
            origins[split] = _open_split(source, Path(data.root), data, running_text)
        problems = [problem if problem.where else replace(problem, where=f"data.{split}") for problem in problems]
    if problems:
        raise InputError.from_problems(problems)
    origins, decisions = _share_headers(origins)
    for split_origins in origins.values():
        for origin in split_origins:
            decisions += [Decision(f"format of {origin.name}", origin.dialect.format, why) for why in origin.dialect.because]
    return Opened(origins, decisions)


def _open_split(source: str | list[str], root: Path, data: DataSpec, running_text: bool) -> list[Origin]:
    if isinstance(source, str) and (
        source.startswith("hub:") or is_datasets_folder(root / source.rpartition("@")[0] if "@" in source else root / source)
    ):
        dataset = open_dataset(source, root)
        names = tuple(dataset.column_names)

        def rows() -> Iterator[RawRow | BadLine]:
            return (RawRow(index + 1, row) for index, row in enumerate(dataset))

        return [
            Origin(
                source, Dialect("datasets", names=names), rows, dataset._fingerprint, [dict(row) for row in islice(dataset, SAMPLE_ROWS)]
            )
        ]
    opened: list[Origin] = []
    problems: list[Problem] = []
    files = find_files(source, root)
    pairs = find_pairs(files, data.format, running_text)
    for path in [] if pairs else files:
        with collected(problems):
            opened.append(_open_file(path, data, running_text))
    for pair in pairs:
        with collected(problems):
            opened.append(_open_pair(pair, data))
    if problems:
        raise InputError.from_problems(problems)
    return opened


def _stamp(path: Path) -> tuple[int, ...]:
    """What another content of a file changes; empty when it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _open_file(path: Path, data: DataSpec, running_text: bool) -> Origin:
    stamp = _stamp(path)
    dialect = sniff(path, data, running_text)
    read = [row.values for row in islice(read_rows(path, dialect, data), SAMPLE_ROWS) if isinstance(row, RawRow)]
    names = dialect.names or tuple(dict.fromkeys(name for row in read for name in row))
    dialect = replace(dialect, names=names)
    return Origin(path.name, dialect, lambda: read_rows(path, dialect, data), _digest(path), read, lambda: _stamp(path) == stamp)


def _open_pair(pair: Pair, data: DataSpec) -> Origin:
    stamps = [_stamp(path) for path in pair]
    first, second = (sniff(path, data.model_copy(update={"format": "lines"})).encoding for path in pair)
    because = () if data.format == "parallel" else ("parallel: two files that are named alike but for a language; the first is the source",)
    dialect = Dialect("parallel", first, names=(COLUMN,), because=because)
    read = [row.values for row in islice(read_pair(pair, (first, second)), SAMPLE_ROWS) if isinstance(row, RawRow)]
    digest = "+".join(map(_digest, pair))
    return Origin(
        pair_name(pair), dialect, lambda: read_pair(pair, (first, second)), digest, read, lambda: [_stamp(path) for path in pair] == stamps
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _share_headers(origins: dict[str, list[Origin]]) -> tuple[dict[str, list[Origin]], list[Decision]]:
    """Gives files without a header the names of the one header that the other files agree on."""
    files = [origin for split in origins.values() for origin in split if origin.dialect.format == "csv"]
    headers = {origin.dialect.names for origin in files if origin.dialect.header}
    if len(headers) != 1:
        return origins, []
    names = headers.pop()
    decisions: list[Decision] = []

    def renamed(origin: Origin) -> Origin:
        dialect = origin.dialect
        if dialect.format != "csv" or dialect.header or len(dialect.names) != len(names):
            return origin
        decisions.append(Decision(f"header of {origin.name}", "none", f"its columns take the names of the other files: {', '.join(names)}"))
        new = dict(zip(dialect.names, names, strict=True))

        def rows() -> Iterator[RawRow | BadLine]:
            return (
                RawRow(row.line, {new[key]: value for key, value in row.values.items()}) if isinstance(row, RawRow) else row
                for row in origin.rows()
            )

        sample = [{new[key]: value for key, value in row.items()} for row in origin.sample]
        return replace(origin, dialect=replace(dialect, names=names), rows=rows, sample=sample)

    return {split: [renamed(origin) for origin in split_origins] for split, split_origins in origins.items()}, decisions


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


def data_fingerprint(opened: Opened) -> dict[str, list[dict[str, str]]]:
    """Name and SHA-256 of every file, by split."""
    return {split: [{"name": origin.name, "sha256": origin.fingerprint} for origin in origins] for split, origins in opened.origins.items()}
