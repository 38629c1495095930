from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tunesmith.data.cells import canonical_label, canonical_text
from tunesmith.data.findings import Findings
from tunesmith.data.origins import open_sources
from tunesmith.data.rows import Rows, decide_columns, read_split, row_facts
from tunesmith.data.tables import keep_table
from tunesmith.errors import InputError
from tunesmith.spec import DataSpec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION
from tunesmith.tasks.text_classification.section import TextClassificationSpec

SECTION = TextClassificationSpec()
ROLES = TEXT_CLASSIFICATION.roles


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def read(folder: Path, split: str = "train", skip: bool = False, **data: Any) -> tuple[Rows, Findings]:
    spec = DataSpec(root=str(folder), **data)
    opened = open_sources(spec)
    columns, _ = decide_columns(opened, spec, ROLES)
    findings = Findings(skip)
    (folder / "work").mkdir(exist_ok=True)
    return read_split(split, opened.origins[split], columns, TEXT_CLASSIFICATION, SECTION, folder / "work", findings), findings


CSV = "text,label\nthe good film,good\nthe dull day,bad\n"


def test_rows_know_their_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", CSV)
    write(tmp_path, "b.jsonl", '{"text": "a grim town", "label": "bad"}\n\n{"text": "a warm town", "label": "good"}\n')
    rows, findings = read(tmp_path, train=["a.csv", "b.jsonl"])
    assert [rows.place(index) for index in range(4)] == ["a.csv:2", "a.csv:3", "b.jsonl:1", "b.jsonl:3"]
    assert rows.dataset["text"][:] == ["the good film", "the dull day", "a grim town", "a warm town"]
    assert rows.dataset["label"][:] == [["good"], ["bad"], ["bad"], ["good"]]
    assert findings.counts == {}
    chosen = rows.select([3, 0], "test")
    assert (chosen.split, chosen.place(0), len(chosen)) == ("test", "b.jsonl:3", 2)


def test_bad_rows_are_found_and_the_others_kept(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", CSV + ",bad\nfine,\ntoo,many,fields\nlast one here,good\n")
    rows, findings = read(tmp_path, train="a.csv")
    assert rows.dataset["line"][:] == [2, 3, 7]
    assert findings.counts == {"data.empty_text": 1, "data.empty_label": 1, "data.field_count": 1}
    assert [problem.where for problem in findings.problems] == ["a.csv:4", "a.csv:5", "a.csv:6"]


def test_a_batch_starts_where_the_last_ended(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "text,label\n" + "".join(f"row {index},{index % 2}\n" for index in range(7)))
    rows, _ = read(tmp_path, train="a.csv")
    assert [(start, len(batch["text"])) for start, batch in rows.batches(3)] == [(0, 3), (3, 3), (6, 1)]


def test_splits_are_opened_and_shares_are_not(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", CSV)
    write(tmp_path, "t.csv", CSV)
    opened = open_sources(DataSpec(train="a.csv", validation="20%", test="t.csv", root=str(tmp_path)))
    assert list(opened.origins) == ["train", "test"]
    assert opened.names == ["text", "label"]
    assert len(opened.sample) == 2
    assert list(open_sources(DataSpec(train="a.csv", validation="none", root=str(tmp_path))).origins) == ["train"]


def test_a_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", CSV)
    write(tmp_path, "t.csv", "text,lable\nthe good film,good\nthe dull day,bad\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path, train="a.csv", test="t.csv")
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == ("data.missing_column", "t.csv:1")
    assert "did you mean lable?" in problem.fix


def test_facts_count_cells_and_their_kinds(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "".join(f'{{"text": "row {index}", "label": {index % 3}}}\n' for index in range(9)))
    spec = DataSpec(train="a.jsonl", root=str(tmp_path))
    opened = open_sources(spec)
    columns, _ = decide_columns(opened, spec, ROLES)
    rows, _ = read(tmp_path, train="a.jsonl")
    facts = row_facts(rows, TEXT_CLASSIFICATION, opened, columns, tmp_path, ("x",))
    assert facts.label_counts == {("0",): 3, ("1",): 3, ("2",): 3}
    assert facts.label_kinds == {"int"}
    assert (facts.num_rows, facts.root, facts.pretrained_labels) == (9, tmp_path, ("x",))


@pytest.mark.parametrize(
    ("value", "label"),
    [("a", ["a"]), (3, ["3"]), (0.5, ["0.5"]), (True, ["true"]), (False, ["false"]), (["a", 2], ["a", "2"]), ([], []), ((1,), ["1"])],
)
def test_labels_become_lists_of_strings(value: Any, label: list[str]) -> None:
    assert canonical_label(value) == (label, None)


@pytest.mark.parametrize(
    ("value", "code"),
    [(None, "data.empty_label"), ("  ", "data.empty_label"), ({"a": 1}, "data.column_type"), ([None], "data.column_type")],
)
def test_labels_that_are_none(value: Any, code: str) -> None:
    label, problem = canonical_label(value)
    assert label is None
    assert problem is not None
    assert problem[0] == code


@pytest.mark.parametrize(
    ("value", "code"), [(None, "data.empty_text"), (" \n", "data.empty_text"), (3, "data.column_type"), (["a"], "data.column_type")]
)
def test_texts_that_are_none(value: Any, code: str) -> None:
    text, problem = canonical_text(value)
    assert text is None
    assert problem is not None
    assert problem[0] == code


def test_texts_are_kept_as_they_are() -> None:
    assert canonical_text("  Two\nlines\t ") == ("  Two\nlines\t ", None)


# tables in memory

TABLE = {"text": ["the good film", "the dull day"], "label": ["good", "bad"]}


def tables() -> list[Any]:
    import datasets
    import pandas

    rows = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
    return [pandas.DataFrame(TABLE, index=[7, 3]), datasets.Dataset.from_dict(TABLE), rows, pa.table(TABLE)]


@pytest.mark.parametrize("index", range(4), ids=["pandas", "datasets", "mappings", "arrow"])
def test_a_table_is_kept_as_parquet(index: int, own_cache: Path) -> None:
    path = Path(keep_table(tables()[index]))
    assert path.parent == own_cache / "tables"
    assert parquet.read_table(path).to_pydict() == TABLE
    assert keep_table(tables()[index]) == str(path)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_selection_of_a_dataset_keeps_only_its_rows(own_cache: Path) -> None:
    import datasets

    path = keep_table(datasets.Dataset.from_dict(TABLE).select([1]))
    assert parquet.read_table(path).to_pydict() == {"text": ["the dull day"], "label": ["bad"]}


def test_other_tables_have_other_names(own_cache: Path) -> None:
    assert keep_table([{"text": "a", "label": "b"}]) != keep_table([{"text": "a", "label": "c"}])


@pytest.mark.parametrize("value", ["a.csv", 0.1, Path("a.csv"), ["a.csv", "b.csv"]])
def test_paths_and_shares_are_left_alone(value: Any, own_cache: Path) -> None:
    assert keep_table(value) == value
    assert not own_cache.exists()


@pytest.mark.parametrize("value", [{"text": ["a"]}, [{"a": 1}, 2], object()])
def test_what_is_no_table_is_refused(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        keep_table(value)
    assert caught.value.code == "spec.value"


@pytest.mark.parametrize("as_frame", [False, True])
def test_columns_of_mixed_types_are_refused_in_our_words(as_frame: bool) -> None:
    import pandas

    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "two"}]
    with pytest.raises(InputError) as caught:
        keep_table(pandas.DataFrame(rows) if as_frame else rows)
    assert caught.value.code == "spec.value"
    assert "two" in caught.value.problems[0].found


def test_columns_that_the_first_mapping_lacks_are_kept(own_cache: Path) -> None:
    path = keep_table([{"text": "a"}, {"text": "b", "label": "x"}])
    assert parquet.read_table(path).to_pydict() == {"text": ["a", "b"], "label": [None, "x"]}
