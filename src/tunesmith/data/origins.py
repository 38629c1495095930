"""Looks at the files and datasets of a spec: what each is called in messages, its format, a sample of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data.parallel import COLUMN, Pair, find_pairs, pair_name, read_pair
from tunesmith.data.sniff import Dialect, sniff
from tunesmith.data.sources import BadLine, RawRow, find_files, is_datasets_folder, open_dataset, read_rows
from tunesmith.errors import InputError, Problem, collected
from tunesmith.registry import Decision
from tunesmith.spec import DataSpec, is_share

SAMPLE_ROWS = 2000


@dataclass(frozen=True)
class Origin:
    """One file (or dataset) of a split."""

    name: str
    """As shown in `name:line`: of a path as many of the last parts as tell it from the others."""
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

    @property
    def fingerprint(self) -> dict[str, list[dict[str, str]]]:
        """Name and SHA-256 of every file, by split."""
        return {
            split: [{"name": origin.name, "sha256": origin.fingerprint} for origin in origins] for split, origins in self.origins.items()
        }

    def changed(self) -> list[str]:
        """Names of the files that are no longer those that were opened."""
        return [origin.name for origins in self.origins.values() for origin in origins if not origin.unchanged()]


def open_sources(data: DataSpec, running_text: bool = False) -> Opened:
    """Looks at every source of the spec: files, formats, columns, a sample of rows.

    With `running_text`, files without columns are read as running text.
    """
    sources = {split: getattr(data, split) for split in ("train", "validation", "test")}
    sources = {split: source for split, source in sources.items() if not is_share(source) and source != "none"}
    files: dict[str, list[Path]] = {}
    origins: dict[str, list[Origin]] = {}
    problems: list[Problem] = []
    for split, source in sources.items():
        with collected(problems), _renaming({}, f"data.{split}"):
            files[split] = [] if _is_dataset(source, Path(data.root)) else find_files(source, Path(data.root))
    shown = shown_names([path for found in files.values() for path in found])
    for split, found in files.items():
        with collected(problems), _renaming({}, f"data.{split}"):
            origins[split] = _open_files(found, shown, data, running_text) if found else [_open_dataset(sources[split], Path(data.root))]
    if problems:
        raise InputError.from_problems(problems)
    origins, decisions = _share_headers(origins)
    for split_origins in origins.values():
        for origin in split_origins:
            decisions += [Decision(f"format of {origin.name}", origin.dialect.format, why) for why in origin.dialect.because]
    return Opened(origins, decisions)


def _is_dataset(source: str | list[str], root: Path) -> bool:
    if not isinstance(source, str):
        return False
    return source.startswith("hub:") or is_datasets_folder(root / source.rpartition("@")[0] if "@" in source else root / source)


def _open_dataset(source: str, root: Path) -> Origin:
    dataset = open_dataset(source, root)

    def rows() -> Iterator[RawRow | BadLine]:
        return (RawRow(index + 1, row) for index, row in enumerate(dataset))

    dialect = Dialect("datasets", names=tuple(dataset.column_names))
    return Origin(source, dialect, rows, dataset._fingerprint, [dict(row) for row in islice(dataset, SAMPLE_ROWS)])


def _open_files(files: list[Path], shown: Mapping[Path, str], data: DataSpec, running_text: bool) -> list[Origin]:
    opened: list[Origin] = []
    problems: list[Problem] = []
    pairs = find_pairs(files, data.format, running_text)
    for path in [] if pairs else files:
        with collected(problems):
            opened.append(_shown_as({path.name: shown[path]}, path.name, partial(_open_file, path, data, running_text)))
    for pair in pairs:
        names = {path.name: shown[path] for path in pair} | {pair_name(pair): "+".join(shown[path] for path in pair)}
        with collected(problems):
            opened.append(_shown_as(names, pair_name(pair), partial(_open_pair, pair, data)))
    if problems:
        raise InputError.from_problems(problems)
    return opened


def shown_names(files: Sequence[Path]) -> dict[Path, str]:
    """What each file is called in messages: its name, with as many folders before it as tell it from the others of that name."""
    alike: dict[str, set[Path]] = {}
    for path in files:
        alike.setdefault(path.name, set()).add(path)
    shown = {}
    for path in files:
        count = 1
        while any(path != other and path.parts[-count:] == other.parts[-count:] for other in alike[path.name]):
            count += 1
        shown[path] = str(Path(*path.parts[-count:]))
    return shown


def _shown_as(names: Mapping[str, str], name: str, open_origin: Callable[[], Origin]) -> Origin:
    """An origin whose problems are placed by other names of its files; `name` is its own."""
    with _renaming(names):
        origin = open_origin()
    if names[name] == name:
        return origin

    def rows() -> Iterator[RawRow | BadLine]:
        with _renaming(names):
            for row in origin.rows():
                yield BadLine(row.line, _renamed(row.problem, names)) if isinstance(row, BadLine) else row

    return replace(origin, name=names[name], rows=rows)


@contextmanager
def _renaming(names: Mapping[str, str], elsewhere: str = "") -> Iterator[None]:
    """Places the problems of an InputError raised inside by other names, and those without a place at `elsewhere`."""
    try:
        yield
    except InputError as error:
        problems = [_renamed(problem, names) if problem.where else replace(problem, where=elsewhere) for problem in error.problems]
        raise InputError.from_problems(problems) from error.__cause__


def _renamed(problem: Problem, names: Mapping[str, str]) -> Problem:
    for name, shown in names.items():
        if problem.where == name or problem.where.startswith(f"{name}:"):
            return replace(problem, where=shown + problem.where.removeprefix(name))
    return problem


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
