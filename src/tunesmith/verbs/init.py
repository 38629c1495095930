"""`init`: a commented spec for some data; and what a data file in place of a spec means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Opened, decide_columns, open_sources
from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import TASKS, Decision
from tunesmith.schema import comment_spec
from tunesmith.spec import DataSpec, RunSpec
from tunesmith.strict import SPEC_SUFFIXES, Source, apply_override, read_source, validate

SPEC_SECTIONS = ("task", "model", "method", "train")


def spec_of(source: str | Path | Mapping[str, Any] | RunSpec, overrides: Iterable[str] = ()) -> RunSpec:
    """The spec that a spec file, a data file, a mapping or a spec means; sections left out are filled in as `init` would.

    Raises InputError.
    """
    if isinstance(source, RunSpec) and not list(overrides):
        return source
    read = _data_source(str(source)) if isinstance(source, (str, Path)) and not is_spec_file(source) else read_source(_with_files(source))
    for override in overrides:
        apply_override(read, override)
    _fill_in(read)
    return validate(read)


def is_spec_file(path: str | Path) -> bool:
    """Whether a file is a spec rather than data: YAML always is; JSON is when it is a mapping with a spec's sections."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        return path.suffix.lower() in SPEC_SUFFIXES
    try:
        start = path.read_bytes()[:1_000_000].decode("utf-8-sig", "replace").lstrip()
    except OSError:
        return True
    return start.startswith("{") and '"data"' in start and any(f'"{section}"' in start for section in SPEC_SECTIONS)


def _data_source(path: str) -> Source:
    read = Source({"data": {"train": path if path.startswith("hub:") else str(Path(path).absolute())}}, "the command line", Path.cwd())
    if not path.startswith("hub:") and not Path(path.rpartition("@")[0] if "@" in path and not Path(path).exists() else path).exists():
        folder = Path(path).absolute().parent
        names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
        raise InputError(
            "spec.no_such_file", "there is no such spec or data file", found=path, fix=did_you_mean(Path(path).name, sorted(names))
        )
    return read


def _with_files(source: Any) -> Any:
    """A mapping whose tables in memory were written to Parquet files, so that the run can be resumed without them."""
    if not isinstance(source, Mapping) or not isinstance(source.get("data"), Mapping):
        return source
    from tunesmith.data.tables import keep_table

    return {
        **source,
        "data": {key: keep_table(value) if key in ("train", "validation", "test") else value for key, value in source["data"].items()},
    }


def _fill_in(read: Source) -> None:
    """Names the task, the model and the method where the spec does not."""
    if "data" not in read.values or not isinstance(read.values["data"], (dict, str, list)):
        return
    if "method" not in read.values:
        read.values["method"] = "full"
    task = read.values.get("task")
    if task is None:
        task = next(iter(TASKS.names()))
        read.values["task"] = task
    name = task.get("name") if isinstance(task, dict) else task
    if isinstance(task, dict) and name is None:
        task["name"] = name = next(iter(TASKS.names()))
    if isinstance(read.values.get("method"), dict):
        read.values["method"].setdefault("name", "full")
    if "model" not in read.values and isinstance(name, str) and name in TASKS.names():
        read.values["model"] = TASKS.get(name).default_model


def write_spec(data: str, task: str | None = None, model: str | None = None) -> str:
    """A commented spec for a data file, as YAML text.

    Raises InputError when the data cannot be read.
    """
    overrides = [*([f"task={task}"] if task else []), *([f"model={model}"] if model else [])]
    spec = spec_of(data, overrides)
    opened = open_sources(spec.data)
    record = TASKS.get(spec.task.name)
    why = record.recognise(opened)
    decisions = [Decision("task", spec.task.name, why or "as asked"), *opened.decisions]
    try:
        columns, found = decide_columns(opened, spec.data, record.roles)
    except InputError as error:
        columns, found = {}, [Decision("data.columns", "to be named", error.problems[0].found)]
    return comment_spec(spec, data, columns, [*decisions, *found], _first_rows(opened))


def _first_rows(opened: Opened) -> list[str]:
    return [str(row)[:160] for row in opened.sample[:2]]


def data_spec(source: str, like: DataSpec) -> DataSpec:
    """The reading settings of a run's data, for another file."""
    return like.model_copy(update={"train": source, "validation": "none", "test": "none", "root": "."})
