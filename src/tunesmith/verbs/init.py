"""`init`: a commented spec for some data; and what a data file in place of a spec means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.origins import Opened, open_sources
from tunesmith.data.rows import decide_columns
from tunesmith.data.sniff import FORMATS
from tunesmith.data.sources import shorten_name
from tunesmith.data.text import content_suffix
from tunesmith.errors import InputError
from tunesmith.registry import TASKS, Decision
from tunesmith.schema import comment_spec
from tunesmith.spec import DataSpec, RunSpec
from tunesmith.spec_file import Source
from tunesmith.strict import SPEC_SUFFIXES, apply_override, near_file, read_source, validate

DEFAULT_TASK = "text_classification"
"""What rows are taken for that look like no task."""
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
    _fill_in(read, guess_task(read))
    return validate(read)


def guess_task(read: Source) -> str:
    """The task that a spec which names none is for: the first that its data looks like."""
    task = read.values.get("task", {})
    if "data" not in read.values or not isinstance(task, dict) or "name" in task:
        return DEFAULT_TASK
    only_data = Source({"data": read.values["data"], "task": DEFAULT_TASK, "model": "minilm", "method": "full"}, read.name, read.folder)
    try:
        opened = open_sources(validate(only_data).data)
        return next((record.name for record in TASKS if record.recognise(opened)), DEFAULT_TASK)
    except InputError:  # is said in full when the spec is validated, or the rows are read
        return DEFAULT_TASK


def is_spec_file(path: str | Path) -> bool:
    """Whether a file is a spec rather than data: YAML always is; JSON is when it is a mapping with a spec's sections."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        return path.suffix.lower() in SPEC_SUFFIXES
    try:
        start = path.read_bytes()[:1_000_000].decode("utf-8-sig", "replace").lstrip()
    except OSError:
        return True
    if not start.startswith("{") or '"data"' not in start or re.search(r'"data"\s*:\s*\[\s*\{', start):
        return False
    return any(f'"{section}"' in start for section in SPEC_SECTIONS)


def _data_source(path: str) -> Source:
    if not path.strip():
        raise InputError("spec.no_such_file", "the name of the spec or data file is empty", fix="name a file")
    if path.startswith("hub:"):
        return Source({"data": {"train": path}}, "the command line", Path.cwd())
    absolute = os.path.abspath(os.path.expanduser(path))
    folder, at, _ = absolute.rpartition("@")
    if not os.path.exists(absolute) and not (at and os.path.exists(folder)):
        fix = near_file(Path(absolute))
        raise InputError("spec.no_such_file", "there is no such spec or data file", found=shorten_name(path), fix=fix)
    return Source({"data": {"train": absolute}}, "the command line", Path.cwd())


def _with_files(source: Any) -> Any:
    """A mapping whose tables in memory were written to Parquet files, so that the run can be resumed without them."""
    if not isinstance(source, Mapping) or not isinstance(source.get("data"), Mapping):
        return source
    from tunesmith.data.tables import keep_table

    def keep(key: str, value: Any) -> Any:
        # what cannot be a table at all is left to the spec, which says everything that is wrong
        return keep_table(value) if key in ("train", "validation", "test") and not isinstance(value, (int, type(None))) else value

    return {**source, "data": {key: keep(key, value) for key, value in source["data"].items()}}


def _fill_in(read: Source, default: str) -> None:
    """Names the task, the model and the method where the spec does not."""
    values = read.values
    for kind, name in (("task", default), ("method", "full")):
        section = values.setdefault(kind, name)
        if isinstance(section, dict):
            section.setdefault("name", name)
    if "model" not in values:
        task = values["task"].get("name") if isinstance(values["task"], dict) else values["task"]
        values["model"] = TASKS.get(task if task in TASKS.names() else default).default_model


def write_spec(data: str, task: str | None = None, model: str | None = None) -> str:
    """A commented spec for a data file, as YAML text.

    Raises InputError when the data cannot be read.
    """
    overrides = [*([f"task={task}"] if task else []), *([f"model={model}"] if model else [])]
    spec = spec_of(data, overrides)
    record = TASKS.get(spec.task.name)
    opened = open_sources(spec.data, record.running_text)
    why = record.recognise(opened)
    decisions = [Decision("task", spec.task.name, why or "as asked"), *opened.decisions]
    try:
        columns, found = decide_columns(opened, spec.data, record.roles)
    except InputError as error:
        columns, found = {}, [Decision("data.columns", "to be named", error.problems[0].found)]
    return comment_spec(spec, data, columns, [*decisions, *found], _first_rows(opened))


def _first_rows(opened: Opened) -> list[str]:
    return [str(row)[:160] for row in opened.sample[:2]]


def data_spec(source: str | list[str], like: DataSpec) -> DataSpec:
    """The reading settings of a run's data, for another file or list of files; how fields are laid out only where the first is of the same
    format, and a file alone is not one of two parallel texts."""

    def absolute(path: str) -> str:
        return path if path.startswith("hub:") else str(Path(path).absolute())

    files = absolute(str(source)) if isinstance(source, (str, Path)) else [absolute(str(path)) for path in source]
    firsts = [names if isinstance(names, str) else names[0] for names in (like.train, files)]
    formats = [FORMATS.get(content_suffix(Path(name)), "") for name in firsts]
    layout = ("format", "delimiter", "header", "quoting", "extra_fields") if formats[0] != formats[1] else ()
    is_alone = like.format == "parallel" and isinstance(files, str)
    plain = {name: DataSpec.model_fields[name].default for name in (*layout, *(["format"] if is_alone else []))}
    return like.model_copy(update={**plain, "train": files, "validation": "none", "test": "none", "root": "."})
