from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import InputError, Problem
from tunesmith.spec import RunSpec
from tunesmith.strict import load_spec

MINIMAL = "task: text_classification\nmodel: minilm\nmethod: full\ndata: a.csv\n"


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def load(folder: Path, text: str, *overrides: str) -> RunSpec:
    return load_spec(write(folder, text), overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    return caught.value.problems


# what a spec means


def test_short_forms_are_names(tmp_path: Path) -> None:
    spec = load(tmp_path, MINIMAL)
    assert (spec.task.name, spec.model.name, spec.method.name, spec.data.train) == ("text_classification", "minilm", "full", "a.csv")
    long = "task: {name: text_classification}\nmodel: {name: minilm}\nmethod: {name: full}\ndata: {train: a.csv}\n"
    assert load(tmp_path, long) == spec


def test_a_list_of_files_is_short_for_training_files(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL.replace("a.csv", "[a.csv, b.csv]")).data.train == ["a.csv", "b.csv"]


def test_json_is_read_too(tmp_path: Path) -> None:
    values = {"task": "text_classification", "model": "minilm", "method": "full", "data": {"train": "a.csv"}, "train": {"epochs": 2}}
    path = write(tmp_path, json.dumps(values, indent="\t"), "spec.json")
    assert load_spec(path).train.epochs == 2
    assert load_spec(values).train == load_spec(path).train


@pytest.mark.parametrize(("text", "value"), [("2e-5", 2e-5), ("2E-5", 2e-5), ("1e5", 1e5), (".5", 0.5), ("3", 3), ("5.", 5.0)])
def test_numbers_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    assert load(tmp_path, f"{MINIMAL}train: {{learning_rate: {text}}}\n").train.learning_rate == value


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "n", "NO", "12:30", "2024-01-01", "0x1f", "1_000"])
def test_words_stay_words(word: str, tmp_path: Path) -> None:
    spec = load(tmp_path, MINIMAL.replace("text_classification", f"{{name: text_classification, labels: [{word}, other]}}"))
    assert spec.task.labels == [word, "other"]  # type: ignore[attr-defined]


def test_unicode_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = MINIMAL.replace("a.csv", "дані.csv")
    (tmp_path / "spec.yaml").write_text("\ufeff" + text, encoding="utf-8")
    assert load_spec(tmp_path / "spec.yaml").data.train == "дані.csv"


# overrides


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    spec = load(
        tmp_path, MINIMAL, "train.learning_rate=3e-5", "method=lora", "method.rank=4", "task.labels=[a, b]", "train.extra.run_name=x"
    )
    assert spec.train.learning_rate == 3e-5
    assert spec.method.rank == 4  # type: ignore[attr-defined]
    assert spec.task.labels == ["a", "b"]  # type: ignore[attr-defined]
    assert spec.train.extra == {"run_name": "x"}


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL, "train.epochs=2", "train.epochs=4").train.epochs == 4


def test_an_override_of_a_short_form_keeps_the_name(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL.replace("full", "lora"), "method.rank=3").method.name == "lora"
    assert load(tmp_path, MINIMAL, "data.test=none").data.train == "a.csv"


def test_a_mapping_and_a_spec_can_be_overridden(tmp_path: Path) -> None:
    spec = load_spec({"task": "text_classification", "model": "minilm", "method": "full", "data": Path("a.csv")}, ["train.seed=5"])
    assert spec.train.seed == 5
    assert load_spec(spec, ["train.seed=6"]).train.seed == 6
    assert load_spec(spec).train.seed == 5


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", ".=3"])
def test_an_override_without_key_or_value(override: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, MINIMAL, override)
    assert problem.code == "spec.override"
    assert problem.found == override


def test_an_override_that_is_wrong_is_named_as_such(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, MINIMAL + "train:\n  epochs: 3\n", "train.epochs=many")
    assert problem.code == "spec.value"
    assert problem.where == "override train.epochs=many"


# paths


def test_paths_of_a_file_start_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs" / "model").mkdir(parents=True)
    (tmp_path / "specs" / "spec.yaml").write_text(MINIMAL.replace("minilm", "./model"))
    monkeypatch.chdir(tmp_path)
    spec = load_spec("specs/spec.yaml")
    assert Path(spec.data.root) == tmp_path / "specs"
    assert Path(spec.model.name) == tmp_path / "specs" / "model"


def test_root_moves_the_start(tmp_path: Path) -> None:
    spec = load(tmp_path, MINIMAL.replace("a.csv", "{train: a.csv, root: data}"))
    assert Path(spec.data.root) == tmp_path / "data"
    assert Path(load(tmp_path, MINIMAL.replace("a.csv", "{train: a.csv, root: /data}")).data.root) == Path("/data")


def test_paths_of_overrides_start_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "specs").mkdir()
    path = write(tmp_path / "specs", MINIMAL)
    monkeypatch.chdir(tmp_path / "here")
    spec = load_spec(path, ["data.train=b.csv", "data.test=[t.csv, hub:x:y]", "data.validation=20%"])
    assert spec.data.train == str(tmp_path / "here" / "b.csv")
    assert spec.data.test == [str(tmp_path / "here" / "t.csv"), "hub:x:y"]
    assert spec.data.validation == "20%"


def test_a_mapping_starts_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec({"task": "text_classification", "model": "minilm", "method": "full", "data": "a.csv"})
    assert Path(spec.data.root).resolve() == tmp_path.resolve()


def test_an_alias_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minilm").mkdir()
    assert load(tmp_path, MINIMAL).model.name == "minilm"


# mistakes


@pytest.mark.parametrize(
    ("text", "code", "line", "key", "fix"),
    [
        (MINIMAL + "train:\n  epochs: 2\n  learning_rat: 1\n", "spec.unknown_key", 7, "train.learning_rat", "learning_rate"),
        (MINIMAL + "trian:\n  epochs: 2\n", "spec.unknown_key", 5, "trian", "train"),
        (MINIMAL.replace("full", "{name: lora, rnak: 3}"), "spec.unknown_key", 3, "method.rnak", "rank"),
        (MINIMAL.replace("full", "loora"), "spec.unknown_name", 3, "", "lora"),
        (MINIMAL.replace("text_classification", "text_clasification"), "spec.unknown_name", 1, "", "text_classification"),
        (MINIMAL + "train:\n  epochs: -1\n", "spec.value", 6, "train.epochs", ""),
        (MINIMAL + "train:\n  batch_size: '8'\n", "spec.value", 6, "train.batch_size", ""),
        (MINIMAL + "train:\n  batch_size: 8.5\n", "spec.value", 6, "train.batch_size", ""),
        (MINIMAL + "train:\n  precision: fp16\n", "spec.value", 6, "train.precision", "bf16"),
        (MINIMAL + "train:\n  learning_rate: .nan\n", "spec.value", 6, "train.learning_rate", ""),
        (MINIMAL + "train:\n  seed: null\n", "spec.value", 6, "train.seed", ""),
        (MINIMAL + "train: 3\n", "spec.value", 5, "train", ""),
        ("task: text_classification\nmodel: minilm\ndata: a.csv\n", "spec.missing_key", None, "method", "method: full"),
        (MINIMAL.replace("a.csv", "{validation: 10%}"), "spec.missing_key", 4, "data.train", ""),
    ],
)
def test_a_mistake_is_said_with_its_line_and_the_nearest_name(
    text: str, code: str, line: int | None, key: str, fix: str, tmp_path: Path
) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.code == code
    path = tmp_path / "spec.yaml"
    assert problem.where == (f"{path}:{line}" if line else problem.where)
    assert problem.where.startswith(str(path))
    assert key in problem.problem
    assert fix in problem.fix


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, MINIMAL + "train:\n  epochs: no\n  sed: 1\nextra: 1\n")
    assert {problem.where.rpartition(":")[2] for problem in found} == {"6", "7", "8"}


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (MINIMAL + "train:\n  epochs: 2\n  epochs: 3\n", "spec.duplicate_key", 7),
        (MINIMAL + "task: text_classification\n", "spec.duplicate_key", 5),
        (MINIMAL + "train: {epochs: 2\n", "spec.syntax", None),
        (MINIMAL + "train:\n\tepochs: 2\n", "spec.syntax", 6),
        ("- a\n- b\n", "spec.syntax", 1),
        ("just text\n", "spec.syntax", 1),
        ("", "spec.syntax", 1),
        (MINIMAL + "train: !!python/object/apply:os.getcwd []\n", None, None),
    ],
)
def test_what_is_no_spec(text: str, code: str | None, line: int | None, tmp_path: Path) -> None:
    found = problems(tmp_path, text)
    assert code is None or found[0].code == code
    assert found[0].where.startswith(str(tmp_path / "spec.yaml"))
    assert line is None or found[0].where.endswith(f":{line}")


def test_a_file_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(InputError) as caught:
        load_spec(tmp_path / "spce.yaml")
    assert caught.value.code == "spec.no_such_file"
    assert "spec.yaml" in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"task: \xff\xfe\n")
    with pytest.raises(InputError) as caught:
        load_spec(tmp_path / "spec.yaml")
    assert caught.value.code == "spec.syntax"


def test_a_spec_is_frozen() -> None:
    spec: Any = load_spec({"task": "text_classification", "model": "minilm", "method": "full", "data": "a.csv"})
    with pytest.raises(ValueError, match="frozen"):
        spec.train.epochs = 5
