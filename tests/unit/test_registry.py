from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import tunesmith.registry as registry_module
from tunesmith.errors import InputError
from tunesmith.methods.full import FULL
from tunesmith.registry import METHODS, TASKS, Method, Registry, Task, load_plugin, register_method, register_task
from tunesmith.strict import load_spec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Registry[Method]:
    """An own registry in the place of METHODS."""
    own: Registry[Method] = Registry("method", "tunesmith.methods", {"full": "tunesmith.methods.full:FULL"})
    monkeypatch.setattr(registry_module, "METHODS", own)
    return own


def test_the_built_in_records_carry_their_names() -> None:
    assert TASKS.names() == [
        "question_answering",
        "chat",
        "embedding",
        "token_classification",
        "seq2seq",
        "text_classification",
        "causal_lm",
        "masked_lm",
    ]
    assert {"full", "lora"} <= set(METHODS.names())
    for name in TASKS.names():
        assert TASKS.get(name).name == name
        assert isinstance(TASKS.get(name), Task)
    for name in METHODS.names():
        assert METHODS.get(name).name == name
        assert METHODS.get(name).spec.model_fields["name"].default == name


def test_a_registered_record_is_found(methods: Registry[Method]) -> None:
    mine = replace(FULL, name="mine")
    assert register_method(mine) is mine
    assert methods.get("mine") is mine
    assert methods.names() == ["full", "mine"]
    assert [method.name for method in methods] == ["full", "mine"]


def test_registering_the_same_record_twice_is_harmless(methods: Registry[Method]) -> None:
    mine = replace(FULL, name="mine")
    register_method(mine)
    register_method(mine)
    assert methods.names() == ["full", "mine"]


@pytest.mark.parametrize("name", ["full", "mine"])
def test_a_name_that_is_taken_is_refused(methods: Registry[Method], name: str) -> None:
    register_method(replace(FULL, name="mine"))
    with pytest.raises(InputError) as caught:
        register_method(replace(FULL, name=name, summary="another"))
    assert caught.value.code == "spec.unknown_name"
    assert f"named {name} exists already" in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest(methods: Registry[Method]) -> None:
    with pytest.raises(InputError) as caught:
        methods.get("ful")
    assert caught.value.problems[0].fix == "did you mean full?"


def test_entry_points_are_read_when_a_name_is_not_built_in(methods: Registry[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("extra", "tunesmith.methods.lora:LORA", group), EntryPoint("full", "nowhere:NOTHING", group)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert methods.get("full") is FULL
    assert asked == []
    assert methods.get("extra").name == "lora"
    assert methods.names() == ["full", "extra"]
    assert methods.get("full") is FULL, "an entry point cannot take the place of what is built in"
    assert asked == ["tunesmith.methods"]


PLUGIN = """
from dataclasses import replace
from tunesmith import register_method
from tunesmith.methods.full import FULL

register_method(replace(FULL, name="planted", learning_rate=1.0))
"""


def test_a_plugin_file_registers(methods: Registry[Method], tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    load_plugin(str(tmp_path / "plugin.py"))
    assert methods.get("planted").learning_rate == 1.0


@pytest.mark.parametrize("content", [None, "def broken(:\n", "import no_such_package_at_all\n", "1 / 0\n"])
def test_a_plugin_that_cannot_be_loaded_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_plugin(str(path))
    assert caught.value.code == "usage.argument"
    assert caught.value.problems[0].where == str(path)


def test_a_file_that_is_not_python_is_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "plugin.yaml").write_text("a: 1\n")
    with pytest.raises(InputError) as caught:
        load_plugin(str(tmp_path / "plugin.yaml"))
    assert caught.value.code == "usage.argument"


def test_an_error_that_a_plugin_raises_itself_is_kept(methods: Registry[Method], tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("planted", "full"))
    with pytest.raises(InputError) as caught:
        load_plugin(str(tmp_path / "plugin.py"))
    assert caught.value.code == "spec.unknown_name"


def test_a_task_of_ones_own_is_a_changed_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_records", dict(TASKS._records))
    register_task(replace(TEXT_CLASSIFICATION, name="stance", summary="a stance"))
    spec = load_spec({"task": {"name": "stance", "max_length": 8}, "model": "minilm", "data": "a.csv", "method": "full"})
    assert spec.task.name == "stance"
    assert spec.task.max_length == 8  # type: ignore[attr-defined]
