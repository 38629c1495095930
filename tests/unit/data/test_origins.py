from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.findings import Findings
from tunesmith.data.origins import open_sources, shown_names
from tunesmith.data.rows import decide_columns, read_split
from tunesmith.errors import InputError
from tunesmith.spec import DataSpec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION
from tunesmith.tasks.text_classification.section import TextClassificationSpec

CSV = "text,label\nthe good film,good\nthe dull day,bad\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", CSV)
    spec = DataSpec(train="a.csv", root=str(tmp_path))
    before = open_sources(spec).fingerprint
    assert before == open_sources(spec).fingerprint
    path.write_text(CSV.replace("dull", "dulL"))
    assert before != open_sources(spec).fingerprint
    assert [file["name"] for file in before["train"]] == ["a.csv"]


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["d/a.csv", "d/b.csv"], ["a.csv", "b.csv"]),
        (["train/x.csv", "test/x.csv", "y.csv"], ["train/x.csv", "test/x.csv", "y.csv"]),
        (["1/old/x.csv", "2/old/x.csv", "new/x.csv"], ["1/old/x.csv", "2/old/x.csv", "new/x.csv"]),
        (["x.csv", "a/x.csv"], ["x.csv", "a/x.csv"]),
        (["x.csv", "x.csv"], ["x.csv", "x.csv"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_their_folders(paths: list[str], shown: list[str]) -> None:
    assert list(map(shown_names(list(map(Path, paths))).__getitem__, map(Path, paths))) == shown


def test_bad_rows_and_files_of_one_name_are_placed_by_their_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/x.csv", CSV)
    write(tmp_path, "test/x.csv", CSV + ",good\n" + "a,b,c\n")
    spec = DataSpec(root=str(tmp_path), train="train/x.csv", test="test/x.csv")
    opened = open_sources(spec)
    columns, _ = decide_columns(opened, spec, TEXT_CLASSIFICATION.roles)
    findings = Findings(False)
    (tmp_path / "work").mkdir()
    read_split("test", opened.origins["test"], columns, TEXT_CLASSIFICATION, TextClassificationSpec(), tmp_path / "work", findings)
    assert sorted(problem.where for problem in findings.problems) == ["test/x.csv:4", "test/x.csv:5"]
    write(tmp_path, "test/x.csv", "")
    with pytest.raises(InputError) as caught:
        open_sources(spec)
    assert [problem.where for problem in caught.value.problems] == ["test/x.csv"]


def test_pairs_of_one_name_are_placed_by_their_folders(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        write(tmp_path, f"{folder}/a.en", "one\ntwo\n")
        write(tmp_path, f"{folder}/a.de", "eins\nzwei\n" if folder == "train" else "eins\n")
    spec = DataSpec(root=str(tmp_path), train=["train/a.en", "train/a.de"], test=["test/a.en", "test/a.de"])
    with pytest.raises(InputError) as caught:
        open_sources(spec)
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [("data.line_count", "test/a.en+test/a.de")]
    write(tmp_path, "test/a.de", "eins\nzwei\n")
    assert [origin.name for origin in open_sources(spec).origins["test"]] == ["test/a.en+test/a.de"]
