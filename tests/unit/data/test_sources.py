from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from tunesmith.data.sources import find_files, is_datasets_folder, open_dataset, place
from tunesmith.errors import InputError, Problem

# finding files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n")


def test_a_folder_gives_its_data_files_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "part10.csv", "part2.csv", "deep/a.jsonl.gz", ".hidden.csv", ".git/b.csv", "README.md", "notes.txt", "Part3.tsv")
    assert [str(path.relative_to(tmp_path)) for path in find_files(".", tmp_path)] == [
        "deep/a.jsonl.gz",
        "part2.csv",
        "Part3.tsv",
        "part10.csv",
    ]


def test_texts_are_taken_where_there_is_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt.gz", "README.txt", "LICENSE.txt", "SOURCE.txt")
    assert [path.name for path in find_files(str(tmp_path), Path("/elsewhere"))] == ["a.txt.gz", "b.txt"]


def test_a_link_to_the_folder_above_does_not_loop(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.name for path in find_files(".", tmp_path)] == ["a.csv"]


def found(source: str | list[str], root: Path) -> Problem:
    with pytest.raises(InputError) as caught:
        find_files(source, root)
    return caught.value.problems[0]


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "data/train.csv", "here/own.csv")
    assert found("data/trian.csv", tmp_path).fix == f"did you mean {tmp_path / 'data/train.csv'}?"
    assert "it holds train.csv" in found("data/zzz", tmp_path).fix
    monkeypatch.chdir(tmp_path / "here")
    assert "exists, but relative paths start from" in found("own.csv", tmp_path).fix
    assert "patterns" in found("data/*.csv", tmp_path).fix


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([], "data.no_files"),
        ("", "spec.value"),
        ("x\0y", "data.no_such_file"),
        ("y" * 5000, "data.no_such_file"),
        ("empty", "data.no_files"),
        (["a.csv", "./a.csv"], "spec.conflict"),
        (["a.csv", "."], "spec.conflict"),
        (["hub:a:train"], "spec.value"),
        ("pipe", "data.unreadable_file"),
    ],
)
def test_sources_that_are_wrong(tmp_path: Path, source: str | list[str], expected: str) -> None:
    touch(tmp_path, "a.csv", "empty/program.py")
    os.mkfifo(tmp_path / "pipe")
    assert found(source, tmp_path).code == expected


def test_place() -> None:
    assert place(Path("folder/a.csv"), 7) == "a.csv:7"


# datasets


def test_datasets_folders(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": ["x"]})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "dev": datasets.Dataset.from_dict({"text": ["y", "z"]})}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"dev": one}).save_to_disk(tmp_path / "three")
    assert [is_datasets_folder(tmp_path / name) for name in ("one", "two", "two@dev", ".")] == [True, True, True, False]
    assert [open_dataset(name, tmp_path).num_rows for name in ("one", "two", "two@dev")] == [1, 1, 2]
    for name, expected in (
        ("two@test", "data.no_such_file"),
        ("three", "data.no_such_file"),
        ("one@train", "spec.no_effect"),
        ("none", "data.no_such_file"),
        (".", "data.unreadable_file"),
    ):
        with pytest.raises(InputError) as caught:
            open_dataset(name, tmp_path)
        assert caught.value.code == expected
    assert found(["one"], tmp_path).code == "spec.value"
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.unreadable_file"):
        open_dataset("one", tmp_path)


def test_datasets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("hub:org/name:train", "hub:org/name:cfg:train[:10%]"):
        with pytest.raises(InputError, match="save_to_disk") as caught:
            open_dataset(source, tmp_path)
        assert caught.value.code == "data.hub"
    assert asked == [("org/name", None, "train"), ("org/name", "cfg", "train[:10%]")]
    with pytest.raises(InputError) as caught:
        open_dataset("hub:name", tmp_path)
    assert caught.value.code == "spec.value"
