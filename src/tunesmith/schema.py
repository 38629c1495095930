"""Projections of the spec models: the JSON schema, the commented spec of `init`, and the reference in docs/."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, create_model

from tunesmith.errors import CODES
from tunesmith.registry import METHODS, TASKS, Decision
from tunesmith.spec import BeamSearchSpec, DataSpec, GenerationSpec, ModelSpec, NewModelSpec, RunSpec, SpeedSpec, TokenizerSpec, TrainSpec
from tunesmith.spec_file import dump_values

SHOWN_IN_INIT = {
    "data": ("validation", "test", "on_bad_row"),
    "train": ("epochs", "batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "seed", "early_stopping_patience"),
}
"""What `init` writes out; the rest is one `tunesmith schema` away."""


def json_schema() -> dict[str, Any]:
    """The JSON schema of a spec, with the sections of every task and method, and their short forms."""
    tasks = tuple(task.spec for task in TASKS)
    methods = tuple(method.spec for method in METHODS)
    model: Any = create_model(
        "RunSpec",
        __base__=RunSpec,
        task=(_union(tasks), ...),
        method=(_union(methods), "full"),
        model=(ModelSpec | NewModelSpec | str, ...),
    )
    schema: dict[str, Any] = model.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"] = ["data"]
    for name, registry in (("task", TASKS), ("method", METHODS)):
        schema["properties"][name]["anyOf"].append({"enum": registry.names()})
    schema["properties"]["data"] = {
        "anyOf": [schema["properties"]["data"], {"type": "string"}],
        "description": RunSpec.model_fields["data"].description,
    }
    return schema


def _union(models: Sequence[type[BaseModel]]) -> Any:
    union: Any = models[0]
    for model in models[1:]:
        union = union | model
    return union | str if len(models) == 1 else union


def comment_spec(spec: RunSpec, data: str, columns: dict[str, str], decisions: Sequence[Decision], rows: Sequence[str]) -> str:
    """YAML text of a spec with a comment for each setting."""
    lines = [f"# A spec for {data}. Check it with `tunesmith check`, train it with `tunesmith train`.", "#"]
    lines += [f"# {decision.field}: {decision.value} ({decision.because})" for decision in decisions]
    lines += [f"# a row: {row}" for row in rows]
    task, method = TASKS.get(spec.task.name), METHODS.get(spec.method.name)
    lines += [
        "",
        f"task: {spec.task.name}   # {task.summary}",
        f"model: {_value(spec.model.name)}   # an alias (`tunesmith models`), a folder or a hub id",
    ]
    lines += ["data:", f"  train: {_value(spec.data.train)}"]
    lines += _settings(DataSpec, spec.data, SHOWN_IN_INIT["data"])
    comment = "" if columns else "   # could not be seen: name them"
    lines.append(f"  columns: {_value(columns or {role.name: '...' for role in task.roles if role.required})}{comment}")
    lines += [
        f"method: {spec.method.name}   # {method.summary}; others: {', '.join(name for name in METHODS.names() if name != method.name)}"
    ]
    lines += ["train:"]
    lines += _settings(TrainSpec, spec.train, SHOWN_IN_INIT["train"])
    return "\n".join(lines) + "\n"


def _settings(model: type[BaseModel], section: BaseModel, names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        lines += [f"  {name}: {_value(getattr(section, name))}   # {_first_sentence(model.model_fields[name].description)}"]
    return lines


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).split("; ")[0].rstrip(".")


def _value(value: Any) -> str:
    return dump_values(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def spec_reference() -> str:
    """docs/spec.md: every section and setting."""
    lines = ["# The spec", "", "Generated from the spec models by `make docs`; a test holds it to them.", ""]
    lines += [
        "A spec is YAML or JSON. `task`, `model` and `method` may be a name (`method: lora`) or a mapping",
        "(`method: {name: lora, rank: 8}`); `data` may be a path.",
        "",
    ]
    lines += _table("data", DataSpec) + _table("model", ModelSpec) + _table("model: {new: ...}", NewModelSpec)
    lines += _table("model.tokenizer", TokenizerSpec) + _table("train", TrainSpec) + _table("speed", SpeedSpec)
    for task in TASKS:
        lines += _table(f"task: {task.name}", task.spec)
    lines += _table("task.generation", GenerationSpec) + _table("task.generation of seq2seq", BeamSearchSpec)
    for method in METHODS:
        lines += _table(f"method: {method.name}", method.spec)
    return "\n".join(lines)


def _table(title: str, model: type[BaseModel]) -> list[str]:
    lines = [
        f"## {title}",
        "",
        " ".join((model.__doc__ or "").split()),
        "",
        "| setting | default | values | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        value = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else f"see {name} below" if isinstance(value, BaseModel) else f"`{_value(value)}`"
        lines.append(
            f"| `{name}` | {default} | {_type_name(field.annotation)} | {' '.join((field.description or '').split())} |".replace(
                "||", "\\|\\|"
            )
        )
    return [*lines, ""]


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        return str(getattr(annotation, "__name__", annotation))
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if isinstance(origin, type) and origin is not UnionType:
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    return " or ".join(_type_name(argument) for argument in arguments)


def error_reference() -> str:
    """docs/errors.md: every code."""
    lines = ["# Errors", "", "Generated from `tunesmith.errors` by `make docs`; a test holds it to them.", ""]
    lines += [
        "An error has a code, says where and what was found, and how to mend it. Exit codes: 0 done; 1 the run failed;",
        "2 the spec, the data or the command line is wrong, and nothing was trained.",
        "[error_examples.md](error_examples.md) has an example of each.",
        "",
    ]
    return "\n".join([*lines, "| code | meaning |", "|---|---|", *(f"| `{code}` | {meaning} |" for code, meaning in CODES.items())]) + "\n"


def write_docs(folder: Path) -> None:
    """Writes the generated pages of docs/."""
    (folder / "spec.md").write_text(spec_reference(), encoding="utf-8")
    (folder / "errors.md").write_text(error_reference(), encoding="utf-8")


if __name__ == "__main__":
    write_docs(Path(sys.argv[1]))
