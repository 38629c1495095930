from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.errors import CODES
from tunesmith.registry import METHODS, TASKS, Decision
from tunesmith.schema import comment_spec, error_reference, json_schema, spec_reference
from tunesmith.spec import DataSpec, ModelSpec, TrainSpec
from tunesmith.strict import load_spec
from tunesmith.verbs.init import write_spec

FULL: dict[str, Any] = {
    "task": {"name": "text_classification", "labels": ["a", "b"], "class_weights": "auto", "max_length": 128},
    "model": {"name": "minilm", "revision": "main"},
    "data": {"train": ["a.csv"], "validation": 0.1, "columns": {"text": "review", "label": "stars"}},
    "method": {"name": "lora", "rank": 8, "target_modules": ["query"]},
    "train": {"epochs": 2, "learning_rate": 1e-4, "eval_steps": 10, "extra": {"run_name": "x"}},
}
SHORT: dict[str, Any] = {"task": "text_classification", "model": "minilm", "data": "a.csv", "method": "full"}


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def accepts(schema: dict[str, Any], node: Any, value: Any) -> bool:
    """A validator of the keywords that a spec's schema uses; another keyword fails the test."""
    node = resolve(schema, node)
    known = {
        "$schema", "$defs", "title", "description", "default", "type", "properties", "required", "additionalProperties", "anyOf", "enum",
        "const", "items", "minimum", "exclusiveMinimum", "exclusiveMaximum", "maximum", "minLength", "minItems", "pattern", "uniqueItems",
        "propertyNames",
    }  # fmt: skip
    assert set(node) <= known, set(node) - known
    types = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None), "integer": int, "number": (int, float)}
    if "anyOf" in node and not any(accepts(schema, option, value) for option in node["anyOf"]):
        return False
    if "type" in node and (not isinstance(value, types[node["type"]]) or (isinstance(value, bool) and node["type"] != "boolean")):
        return False
    if ("const" in node and value != node["const"]) or ("enum" in node and value not in node["enum"]):
        return False
    if isinstance(value, (int, float)) and not (node.get("minimum", value) <= value <= node.get("maximum", value)):
        return False
    if isinstance(value, (int, float)) and ("exclusiveMinimum" in node and value <= node["exclusiveMinimum"]):
        return False
    if isinstance(value, (int, float)) and ("exclusiveMaximum" in node and value >= node["exclusiveMaximum"]):
        return False
    if isinstance(value, list):
        return all(accepts(schema, node.get("items", {}), item) for item in value)
    if not isinstance(value, dict):
        return True
    properties, more = node.get("properties", {}), node.get("additionalProperties", True)
    if any(name not in value for name in node.get("required", [])):
        return False
    return all(
        accepts(schema, properties[name], item)
        if name in properties
        else more is True or (more is not False and accepts(schema, more, item))
        for name, item in value.items()
    )


def changed(path: str, value: Any) -> dict[str, Any]:
    spec = {section: dict(values) for section, values in FULL.items()}
    section, _, key = path.partition(".")
    if key:
        spec[section][key] = value
    else:
        spec[section] = value
    return spec


@pytest.mark.parametrize("spec", [FULL, SHORT, {"data": "a.csv"}], ids=["full", "short", "data alone"])
def test_the_schema_accepts_specs(spec: dict[str, Any]) -> None:
    schema = json_schema()
    assert accepts(schema, schema, spec)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trian", {}),
        ("train.learning_rat", 1),
        ("train.epochs", -1),
        ("train.batch_size", "8"),
        ("train.precision", "fp16"),
        ("data.train", 3),
        ("data.validation", 1.5),
        ("method.rank", 0),
        ("method.rnak", 8),
        ("task", 3),
    ],
)
def test_the_schema_refuses_what_the_spec_refuses(path: str, value: Any) -> None:
    schema = json_schema()
    assert not accepts(schema, schema, changed(path, value))
    with pytest.raises(Exception, match="spec"):
        load_spec(changed(path, value))


def test_every_setting_is_described_in_the_schema() -> None:
    schema = json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    for name, section in schema["$defs"].items():
        for setting, node in section.get("properties", {}).items():
            assert node.get("description"), f"{name}.{setting}"


def test_the_schema_of_method_and_task_offers_their_names() -> None:
    schema = json_schema()
    for kind, registry in (("task", TASKS), ("method", METHODS)):
        assert all(accepts(schema, schema["properties"][kind], name) for name in registry.names())


# the commented spec


@pytest.mark.parametrize("columns", [{"text": "review", "label": "stars"}, {"text": "a: b", "label": "ünïcode #1"}])
def test_a_commented_spec_means_the_same(columns: dict[str, str], tmp_path: Path) -> None:
    spec = load_spec({**SHORT, "data": {"train": "odd: name #1.csv", "validation": "20%"}, "train": {"epochs": 2, "learning_rate": 2e-5}})
    text = comment_spec(spec, "odd: name #1.csv", columns, [Decision("task", "text_classification", "a reason")], ["{'text': '# not'}"])
    (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
    again = load_spec(tmp_path / "spec.yaml")
    assert (again.task, again.model, again.method, again.train) == (spec.task, spec.model, spec.method, spec.train)
    assert again.data.train == "odd: name #1.csv"
    assert again.data.validation == "20%"
    assert again.data.columns == columns


def test_every_setting_of_a_commented_spec_has_a_comment() -> None:
    text = comment_spec(load_spec(SHORT), "a.csv", {"text": "a", "label": "b"}, [], [])
    settings = [line for line in text.splitlines() if line.startswith("  ") and not line.startswith(("  train:", "  columns:"))]
    assert len(settings) > 8
    assert all("   # " in line for line in settings)


def test_columns_that_cannot_be_seen_are_left_to_fill_in() -> None:
    text = comment_spec(load_spec(SHORT), "a.csv", {}, [], [])
    assert yaml.safe_load(text)["data"]["columns"] == {"text": "...", "label": "..."}
    assert "name them" in text


def test_the_spec_that_init_writes_is_a_spec_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"a sentence of words number {index},{'good' if index % 2 else 'bad'}\n" for index in range(30))
    (tmp_path / "rows.csv").write_text("review,mood\n" + rows)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(write_spec("rows.csv", model="distilbert"), encoding="utf-8")
    spec = load_spec(tmp_path / "spec.yaml")
    assert spec.data.columns == {"text": "review", "label": "mood"}
    assert (spec.model.name, spec.task.name) == ("distilbert", "text_classification")
    assert (Path(spec.data.root) / str(spec.data.train)).exists()


# docs


def test_the_reference_names_every_setting_with_its_default() -> None:
    text = spec_reference()
    models = [DataSpec, ModelSpec, TrainSpec, *(task.spec for task in TASKS), *(method.spec for method in METHODS)]
    for model in models:
        for name in model.model_fields:
            assert f"| `{name}` |" in text, name
    assert "| `epochs` | `3` |" in text
    assert "| `train` | required |" in text


def test_the_tables_of_the_reference_have_four_cells_a_row() -> None:
    import re

    for text, cells in ((spec_reference(), 4), (error_reference(), 2)):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) > 20
        for row in rows:
            # A bar inside code is a bar of the table all the same, unless it is escaped.
            assert len(re.split(r"(?<!\\)\|", row)) == cells + 2, row


def test_the_reference_of_errors_names_every_code() -> None:
    text = error_reference()
    assert all(f"| `{code}` | {meaning} |" in text for code, meaning in CODES.items())


def test_nothing_of_the_machine_stands_in_the_references() -> None:
    text = spec_reference() + error_reference()
    assert "<class" not in text
    assert "typing." not in text
    assert "annotated_types" not in text
    assert "FieldInfo" not in text
