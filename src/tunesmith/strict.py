"""Reads a spec from YAML, JSON or a mapping, and says of each mistake where it stands and what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError, create_model

from tunesmith.errors import InputError, Problem, did_you_mean
from tunesmith.registry import METHODS, TASKS
from tunesmith.spec import NamedSection, RunSpec

SPEC_SUFFIXES = (".yaml", ".yml", ".json")
NAMED_SECTIONS = ("task", "method", "model")


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of its version 1.2: `2e-5` is a number, `no` and `on` are words."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))


class Source:
    """A spec as it was written: plain values, and where each key stands."""

    def __init__(self, values: dict[str, Any], name: str, folder: Path) -> None:
        self.values = values
        self.name = name
        self.folder = folder
        self.places: dict[tuple[str | int, ...], str] = {}

    def place(self, path: Sequence[str | int]) -> str:
        """`file:line` or `override key=value` of the innermost part of `path` that was written down."""
        for end in range(len(path), -1, -1):
            found = self.places.get(tuple(path[:end]))
            if found is not None:
                return found
        return self.name


def load_spec(source: str | Path | Mapping[str, Any] | RunSpec, overrides: Iterable[str] = ()) -> RunSpec:
    """The spec in a file, a mapping or a spec, with dotted overrides such as `train.epochs=2` applied.

    Relative paths of a file's `data` and `model` become absolute: they start from the folder of the file (or from `data.root`),
    those of overrides and mappings from the current folder.
    Raises InputError with every problem found.
    """
    read = read_source(source)
    for override in overrides:
        apply_override(read, override)
    return validate(read)


def read_source(source: str | Path | Mapping[str, Any] | RunSpec) -> Source:
    """The plain values of a spec, not yet checked."""
    if isinstance(source, RunSpec):
        return Source(source.model_dump(), "the spec", Path.cwd())
    if isinstance(source, Mapping):
        return Source(_plain(source), "the spec", Path.cwd())
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("spec.no_such_file", "there is no such file", found=str(path.absolute())) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("spec.syntax", "the spec cannot be read as text", where=str(path), found=str(error)) from error
    return parse_source(text, str(path), path.absolute().parent)


def parse_source(text: str, name: str, folder: Path) -> Source:
    """The plain values of a spec's text; JSON is read as the YAML that it is."""
    try:
        node = yaml.compose(text.replace("\t", " ") if name.endswith(".json") else text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError("spec.syntax", "the spec is not valid YAML or JSON", where=where, found=_yaml_problem(error)) from error
    if not isinstance(node, yaml.MappingNode):
        raise InputError(
            "spec.syntax", "a spec is a mapping of sections", where=f"{name}:1", fix="start with `data:`; see `tunesmith init`"
        )
    read = Source({}, name, folder)
    loader = _Loader("")
    try:
        read.values = _construct(loader, node, (), read)
    except yaml.YAMLError as error:
        raise InputError("spec.syntax", "a value cannot be read", where=name, found=_yaml_problem(error)) from error
    return read


def _yaml_problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


def _construct(loader: _Loader, node: yaml.Node, path: tuple[str | int, ...], read: Source) -> Any:
    read.places[path] = f"{read.name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else str(key_node.tag)
            where = f"{read.name}:{key_node.start_mark.line + 1}"
            if key in values:
                raise InputError("spec.duplicate_key", f"{'.'.join(map(str, (*path, key)))} is said twice", where=where, fix="keep one")
            values[key] = _construct(loader, value_node, (*path, key), read)
            read.places[(*path, key)] = where
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, index), read) for index, item in enumerate(node.value)]
    return loader.construct_object(node)


def _plain(value: Any) -> Any:
    """Mappings and tuples of Python as the plain values of a spec; paths as text."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def apply_override(read: Source, override: str) -> None:
    """Sets one dotted key of a source, as in `train.learning_rate=3e-5`."""
    key, equals, text = override.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise InputError("spec.override", "an override has the form key=value", found=override, fix="for example train.epochs=2")
    try:
        value = yaml.load(text, Loader=_Loader) if text.strip() else ""
    except yaml.YAMLError as error:
        raise InputError("spec.override", "the value cannot be read", found=override, fix=_yaml_problem(error)) from error
    path = key.split(".")
    if path[0] == "data" and path[1:] in (["train"], ["validation"], ["test"], ["root"]):
        value = _from_current_folder(value)
    target = read.values
    for depth, part in enumerate(path[:-1]):
        inner = target.get(part)
        if not isinstance(inner, dict):
            short = depth == 0 and part in (*NAMED_SECTIONS, "data") and isinstance(inner, str)
            inner = {"train" if part == "data" else "name": inner} if short else {}
        target[part] = inner
        target = inner
    target[path[-1]] = value
    for known in [known for known in read.places if known[: len(path)] == tuple(path)]:
        del read.places[known]
    read.places[tuple(path)] = f"override {override}"


def _from_current_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_current_folder(item) for item in value]
    is_path = isinstance(value, str) and not value.startswith("hub:") and value != "none" and not value.endswith("%")
    return str(Path(value).absolute()) if is_path else value


def validate(read: Source) -> RunSpec:
    """The spec that the values mean, or every problem that they have."""
    values = _expand(read)
    problems: list[Problem] = []
    records: dict[str, Any] = {}
    for kind, registry in (("task", TASKS), ("method", METHODS)):
        section = values.get(kind)
        name = section.get("name") if isinstance(section, dict) else None
        if isinstance(name, str):
            try:
                records[kind] = registry.get(name)
            except InputError as error:
                problem = error.problems[0]
                problems.append(Problem(problem.code, problem.problem, read.place((kind, "name")), name, problem.fix))
    if problems:
        raise InputError.from_problems(problems)
    model = spec_model(*(records[kind].spec if kind in records else NamedSection for kind in ("task", "method")))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(detail, read, model) for detail in error.errors()]
        unique = {(problem.where, problem.problem): problem for problem in problems}
        raise InputError.from_problems(list(unique.values())) from None


@cache
def spec_model(task: type[NamedSection], method: type[NamedSection]) -> type[RunSpec]:
    """RunSpec with the sections of one task and one method."""
    return create_model("RunSpec", __base__=RunSpec, task=(task, ...), method=(method, ...))


def _expand(read: Source) -> dict[str, Any]:
    """Short forms written out, and relative paths made absolute."""
    values = dict(read.values)
    for kind in NAMED_SECTIONS:
        if isinstance(values.get(kind), str):
            values[kind] = {"name": values[kind]}
    if isinstance(values.get("data"), (str, list)):
        values["data"] = {"train": values["data"]}
    if isinstance(values.get("data"), dict):
        data = dict(values["data"])
        root = data.get("root", ".")
        if isinstance(root, str):
            data["root"] = str(read.folder / root)
        values["data"] = data
    if isinstance(values.get("model"), dict) and isinstance(values["model"].get("name"), str):
        folder = read.folder / Path(values["model"]["name"]).expanduser()
        if folder.is_dir() and ("/" in values["model"]["name"] or values["model"]["name"].startswith(".")):
            values["model"] = {**values["model"], "name": str(folder.resolve())}
    return values


def _problem(detail: Any, read: Source, model: type[BaseModel]) -> Problem:
    """One of pydantic's errors in the words of the spec."""
    path = tuple(part for part in detail["loc"])
    key_path = _known_path(path, model)
    key = ".".join(map(str, key_path))
    where = read.place(key_path)
    kind = detail["type"]
    if kind == "extra_forbidden":
        owner = _section_at(model, key_path[:-1])
        names = list(owner.model_fields) if owner else []
        named = read.values.get(str(key_path[0])) if key_path else None
        owner_name = f" of {_name_of(named)}" if len(key_path) == 2 and key_path[0] in NAMED_SECTIONS else ""
        return Problem(
            "spec.unknown_key", f"{key} does not exist{owner_name}", where, str(key_path[-1]), did_you_mean(str(key_path[-1]), names)
        )
    if kind == "missing":
        example = {
            "data": "data: {train: reviews.csv}",
            "task": "task: text_classification",
            "model": "model: minilm",
            "method": "method: full",
        }
        return Problem("spec.missing_key", f"{key} is missing", where, fix=f"add `{example.get(key, key + ': ...')}`")
    found = "null" if detail["input"] is None else repr(detail["input"])
    return Problem("spec.value", f"{key} {_expectation(detail)}", where, found[:200], _value_fix(model, key_path))


def _name_of(section: Any) -> str:
    return str(section.get("name")) if isinstance(section, dict) else str(section)


def _expectation(detail: Any) -> str:
    message = str(detail["msg"])
    return message.replace("Input should be", "should be", 1).replace("Value error, ", "", 1)


def _known_path(path: tuple[Any, ...], model: type[BaseModel]) -> tuple[Any, ...]:
    """The part of pydantic's location that is a key of the spec, without the branches of unions."""
    known: list[Any] = []
    owner: type[BaseModel] | None = model
    for part in path:
        if owner is None:
            break
        known.append(part)
        owner = _section_at(owner, (part,)) if part in owner.model_fields else None
    return tuple(known)


def _section_at(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = model
    for part in path:
        field = owner.model_fields.get(str(part)) if owner else None
        annotation = field.annotation if field else None
        owner = cast(type[BaseModel], annotation) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return owner


def _value_fix(model: type[BaseModel], path: Sequence[Any]) -> str:
    owner = _section_at(model, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner and path else None
    if field is None:
        return ""
    words = [str(word) for option in (field.annotation, *get_args(field.annotation)) for word in get_args(option) if isinstance(word, str)]
    hint = f"allowed words: {', '.join(dict.fromkeys(words))}; " if words else ""
    summary = " ".join((field.description or "").split())
    return f"{hint}{summary}"
