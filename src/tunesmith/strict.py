"""Reads a spec from YAML, JSON or a mapping, and says of each mistake where it stands and what was meant."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tunesmith.errors import InputError, Problem, did_you_mean, nearest
from tunesmith.registry import METHODS, TASKS
from tunesmith.spec import ModelSpec, NamedSection, NewModelSpec, RunSpec
from tunesmith.spec_file import KeyPath, Source, parse_override, parse_source

P = ParamSpec("P")
T = TypeVar("T")

SPEC_SUFFIXES = (".yaml", ".yml", ".json")
NAMED_SECTIONS = ("task", "method", "model")
CURRENT_FOLDER_KEYS = tuple(("data", name) for name in ("train", "validation", "test", "root"))
"""Paths that start from the current folder when an override says them."""


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
        try:
            return Source(_plain(source), "the spec", Path.cwd())
        except RecursionError:
            raise InputError("spec.value", "a value of the spec contains itself", where="the spec") from None
    path = Path(source)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("spec.no_such_file", "there is no such file", found=str(path.absolute()), fix=near_file(path)) from None
    except (OSError, ValueError) as error:
        raise InputError("spec.syntax", "the spec cannot be read", where=str(path), found=str(error), fix="name a file") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02x}"
        raise InputError("spec.syntax", "the spec is not UTF-8", where=f"{path}:{line}", found=found, fix="save it as UTF-8") from None
    return parse_source(text, str(path), path.absolute().parent)


def near_file(path: Path) -> str:
    """The file that a path which does not exist is most likely meant to be."""
    try:
        names = sorted(name for name in os.listdir(path.absolute().parent) if not name.startswith("."))
    except (OSError, ValueError):
        return f"there is no folder {path.absolute().parent}"
    match = nearest(path.name, names)
    if match is not None:
        return f"did you mean {path.with_name(match)}?"
    return f"{path.absolute().parent} holds {', '.join(names[:10]) or 'nothing'}{', ...' if len(names) > 10 else ''}"


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
    """Sets one dotted key of a source, as in `train.learning_rate=3e-5`; an override that cannot be read is one of its problems."""
    key, equals, text = override.partition("=")
    if not equals or not key or any(not part.strip() for part in key.split(".")):
        fix = "for example train.epochs=2"
        read.problems.append(Problem("spec.override", "an override has the form key=value", "the command line", override, fix))
        return
    path: tuple[str, ...] = tuple(key.split("."))
    for known in [known for known in read.places if known[: len(path)] == path]:
        del read.places[known]
    try:
        value = parse_override(text, path, read, override)
    except InputError as error:
        read.problems += error.problems
        return
    if path in CURRENT_FOLDER_KEYS or (path == ("data",) and isinstance(value, (str, list))):
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


def _from_current_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_current_folder(item) for item in value]
    is_path = isinstance(value, str) and value.strip() and not value.startswith("hub:") and value != "none" and not value.endswith("%")
    return os.path.abspath(os.path.expanduser(value)) if is_path else value


def validate(read: Source) -> RunSpec:
    """The spec that the values mean.

    Raises InputError with every problem that they have.
    """
    values = _expand(read)
    problems = list(read.problems)
    sections: dict[str, type[NamedSection]] = {"task": _UnknownSection, "method": _UnknownSection}
    for kind, registry in (("task", TASKS), ("method", METHODS)):
        section = values.get(kind)
        name = section.get("name") if isinstance(section, dict) else None
        if isinstance(name, str):
            try:
                sections[kind] = registry.get(name).spec
            except InputError as error:
                problem = error.problems[0]
                problems.append(replace(problem, where=read.place((kind, "name")), found=name))
    is_new = isinstance(values.get("model"), dict) and "new" in values["model"]
    model = spec_model(sections["task"], sections["method"], NewModelSpec if is_new else ModelSpec)
    try:
        spec = model.model_validate(values)
    except ValidationError as error:
        problems += _problems(error, read, model)
    except RecursionError:
        problems.append(Problem("spec.value", "the values are nested too deeply", read.name))
    if problems:
        raise InputError.from_problems(problems)
    spec.remember_places(read.places_by_key)
    return spec


class _UnknownSection(NamedSection):
    """Of a task or method that does not exist: what belongs to it is not known."""

    model_config = ConfigDict(extra="allow")


@cache
def spec_model(
    task: type[NamedSection], method: type[NamedSection], model: type[ModelSpec] | type[NewModelSpec] = ModelSpec
) -> type[RunSpec]:
    """RunSpec with the sections of one task, one method and one kind of model."""
    return create_model("RunSpec", __base__=RunSpec, task=(task, ...), method=(method, ...), model=(model, ...))


def naming_places(function: Callable[P, T]) -> Callable[P, T]:
    """For a function of a spec (or of what has a `spec`): its InputErrors say on which line of the spec a setting stands."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            first: Any = args[0] if args else None
            spec = first if isinstance(first, RunSpec) else getattr(first, "spec", None)
            if isinstance(spec, RunSpec):
                error.problems = [replace(problem, where=spec.place(problem.where)) for problem in error.problems]
            raise

    return run


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
            data["root"] = os.path.join(read.folder, os.path.expanduser(root))
        values["data"] = data
    if isinstance(values.get("model"), dict) and isinstance(values["model"].get("name"), str):
        name = values["model"]["name"]
        is_override = read.place(("model", "name")).startswith("override ")
        folder = os.path.join(Path.cwd() if is_override else read.folder, os.path.expanduser(name))
        if os.path.isdir(folder) and ("/" in name or name.startswith(".")):
            values["model"] = {**values["model"], "name": os.path.realpath(folder)}
    return values


EXAMPLES = {
    "data": "data: {train: reviews.csv}",
    "data.train": "train: reviews.csv",
    "task": "task: text_classification",
    "model": "model: minilm",
    "method": "method: full",
}
"""What to add where a key is missing."""


def _problems(error: ValidationError, read: Source, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors in the words of the spec, one for each key: the branches of a union are said together."""
    by_key: dict[KeyPath, list[Any]] = {}
    for detail in error.errors():
        by_key.setdefault(_known_path(detail["loc"], read, model), []).append(detail)
    # what is wrong inside a value says more than that the value is none of the other things it might be
    outer = {path[:end] for path in by_key for end in range(len(path))}
    return [_problem(path, details, read, model) for path, details in by_key.items() if path not in outer]


def _problem(path: KeyPath, details: Sequence[Any], read: Source, model: type[BaseModel]) -> Problem:
    key = ".".join(map(str, path))
    where = read.place(path)
    kinds = {detail["type"] for detail in details}
    if "extra_forbidden" in kinds:
        return _unknown_key(path, key, where, read, model)
    if "missing" in kinds:
        return Problem("spec.missing_key", f"{key} is missing", where, fix=f"add `{EXAMPLES.get(key, f'{path[-1]}: ...')}`")
    # the branch of a union that got furthest says most
    deepest = max(len(detail["loc"]) for detail in details)
    value = next(detail["input"] for detail in details if len(detail["loc"]) == deepest)
    wanted = " or ".join(dict.fromkeys(_expectation(detail) for detail in details))
    found = "null" if value is None else _shown(value)
    unquoted = isinstance(value, (bool, int, float)) and "string_type" in kinds
    fix = f'if it is meant as text, write it in quotes: "{_shown(value)}"; ' if unquoted else ""
    return Problem("spec.value", f"{key} should be {wanted}", where, found[:200], fix + _value_fix(model, path))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("nan", ".nan").replace("inf", ".inf")
    try:
        return repr(value)
    except RecursionError:
        return "a value that contains itself"


def _unknown_key(path: KeyPath, key: str, where: str, read: Source, model: type[BaseModel]) -> Problem:
    name = str(path[-1])
    owner = _section_at(model, path[:-1])
    names = list(owner.model_fields) if owner else []
    named = read.values.get(str(path[0]))
    owner_name = f" of {named.get('name') if isinstance(named, dict) else named}" if len(path) == 2 and path[0] in NAMED_SECTIONS else ""
    fix = did_you_mean(name, names)
    if owner is ModelSpec and name in NewModelSpec.model_fields:
        fix = "a pretrained model brings its own; it belongs to a new model, as in `model: {new: bert}`"
    elif owner is NewModelSpec and name in ModelSpec.model_fields:
        fix = "a model is new or has a name: keep one of them"
    elif nearest(name, names) is None:
        # a setting of another section is more likely than any of this one's
        places = [(section, field) for section, kind in _sections(model) for field in kind.model_fields]
        match = nearest(name, [field for _, field in places])
        home = next((f"{section}.{field}" for section, field in places if field == match), "")
        fix = f"did you mean {home}?" if home else fix
    return Problem("spec.unknown_key", f"{key} does not exist{owner_name}", where, name, fix)


def _sections(model: type[BaseModel]) -> Iterable[tuple[str, type[BaseModel]]]:
    for name in model.model_fields:
        section = _section_at(model, (name,))
        if section is not None:
            yield name, section


def _expectation(detail: Any) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in ("model_type", "dict_type"):
        return "a mapping"
    message = re.sub(r"^(?:Input )?should (?:be|have) ", "", message)
    return (
        message.replace("a valid string", "text")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
        .replace("a boolean", "true or false")
    )


def _known_path(path: tuple[Any, ...], read: Source, model: type[BaseModel]) -> KeyPath:
    """The part of pydantic's location that is a key of the spec, without the branches of unions."""
    known: list[Any] = []
    owner: type[BaseModel] | None = model
    for part in path:
        if owner is not None:
            known.append(part)
            owner = _section_at(owner, (part,)) if part in owner.model_fields else None
        elif (*known, part) in read.places or _holds(read.values, known, part):
            known.append(part)
    return tuple(known)


def _holds(values: Any, path: Sequence[Any], key: Any) -> bool:
    """Whether the value at `path` is a list or mapping with this key."""
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return key in values if isinstance(values, dict) else isinstance(values, list) and isinstance(key, int)


def _section_at(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = model
    for part in path:
        field = owner.model_fields.get(str(part)) if owner else None
        annotation = field.annotation if field else None
        owner = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return owner


def _value_fix(model: type[BaseModel], path: Sequence[Any]) -> str:
    """What the setting at `path`, or the one that holds it, may be."""
    owner = _section_at(model, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner and path else None
    if field is None:
        return _value_fix(model, path[:-1]) if path else "see `tunesmith schema`"
    words = [str(word) for option in (field.annotation, *get_args(field.annotation)) for word in get_args(option) if isinstance(word, str)]
    hint = f"allowed words: {', '.join(dict.fromkeys(words))}; " if words else ""
    summary = " ".join((field.description or "").split())
    example = EXAMPLES.get(".".join(map(str, path)))
    return f"{hint}{summary}" or (f"for example `{example}`" if example else "see `tunesmith schema`")
