from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from tunesmith.data.delimited import BrokenQuotes, Record, read_records
from tunesmith.data.sniff import Dialect, sniff
from tunesmith.data.sources import BadLine, RawRow, read_rows
from tunesmith.data.text import CHUNK_BYTES, Line
from tunesmith.errors import InputError, Problem
from tunesmith.spec import DataSpec


def read(folder: Path, content: str | bytes, name: str = "rows.csv", **settings: Any) -> list[RawRow | BadLine]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    data = DataSpec(train=name, **settings)
    return list(read_rows(path, sniff(path, data), data))


def rows(read: list[RawRow | BadLine]) -> list[tuple[int, Any]]:
    return [(row.line, row.values) for row in read if isinstance(row, RawRow)]


def bad(read: list[RawRow | BadLine]) -> list[tuple[int, str]]:
    return [(line.line, line.problem.code) for line in read if isinstance(line, BadLine)]


def problem(read: list[RawRow | BadLine]) -> Problem:
    return next(line.problem for line in read if isinstance(line, BadLine))


def code(folder: Path, content: str | bytes, name: str = "rows.csv", **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, content, name, **settings)
    return caught.value.code


# lines and encodings


def test_lines_end_only_at_line_feeds(tmp_path: Path) -> None:
    odd = "one\x85two\x0bthree\x0cfour\u2028five\x1csix"
    assert rows(read(tmp_path, f"{odd}\t1\r\nlast\t2")) == [
        (1, {"column_1": odd, "column_2": "1"}),
        (2, {"column_1": "last", "column_2": "2"}),
    ]


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    assert [line for line, _ in rows(read(tmp_path, "text,label\n\nx,1\n\n\ny,2\n"))] == [3, 6]
    assert [line for line, _ in rows(read(tmp_path, "\none\n \ntwo\n", "a.txt"))] == [2, 4]
    assert [line for line, _ in rows(read(tmp_path, '\n{"a": 1}\n\n{"a": 2}', "a.jsonl"))] == [2, 4]


def test_an_undecodable_line_is_named_and_reading_goes_on(tmp_path: Path) -> None:
    seen = read(tmp_path, b"text,label\nok,1\ncaf\xe9,2\nfine,3\n")
    assert [line for line, _ in rows(seen)] == [2, 4]
    assert bad(seen) == [(3, "data.encoding")]
    found = problem(seen)
    assert found.where == "rows.csv:3"
    assert "0xe9 at column 4" in found.found
    assert "café" in found.found
    assert "data.encoding=latin-1" in found.fix
    assert rows(read(tmp_path, b"text,label\ncaf\xe9,2\n", encoding="latin-1")) == [(2, {"text": "café", "label": "2"})]


def test_curly_quotes_of_windows_are_called_cp1252(tmp_path: Path) -> None:
    assert "data.encoding=cp1252" in problem(read(tmp_path, b"text,label\nok,1\n\x93so\x94,2\n")).fix


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32", "cp1140", "shift_jis", "utf-7", "utf-16-be"])
def test_codecs(tmp_path: Path, codec: str) -> None:
    text = "text,label\r\n" + "".join(f"row {i},{i}\r\n" for i in range(2000))
    settings = {"encoding": codec} if codec in ("cp1140", "shift_jis", "utf-7", "utf-16-be") else {}
    seen = rows(read(tmp_path, text.encode(codec), **settings))
    assert len(seen) == 2000
    assert seen[-1] == (2001, {"text": "row 1999", "label": "1999"})


def test_utf_16_is_cut_only_at_whole_units(tmp_path: Path) -> None:
    tricky = "\u0a0a\u0a00\u000b\u010a" * 3
    content = f"text,label\n{tricky},1\n{tricky},2\n"
    for codec in ("utf-16", "utf-16-be"):
        data = b"\xfe\xff" + content.encode(codec) if codec == "utf-16-be" else content.encode(codec)
        assert [values["text"] for _, values in rows(read(tmp_path, data))] == [tricky, tricky]


def test_a_cut_utf_16_file_loses_only_its_last_line(tmp_path: Path) -> None:
    seen = read(tmp_path, "text,label\nx,1\ny,2".encode("utf-16")[:-1])
    assert rows(seen) == [(2, {"text": "x", "label": "1"})]
    assert bad(seen) == [(3, "data.encoding")]


def test_a_nul_byte_is_named(tmp_path: Path) -> None:
    assert bad(read(tmp_path, "text,label\nx\0y,1\nz,2\n")) == [(2, "data.unreadable_line")]


@pytest.mark.parametrize("pack", [lambda raw: raw, gzip.compress, zstandard.compress])
def test_lines_over_chunk_ends(tmp_path: Path, pack: Any) -> None:
    long = "é" * (CHUNK_BYTES * 2 // 3)
    content = "".join(json.dumps({"n": n, "text": long if n % 3 == 0 else "s"}, ensure_ascii=False) + "\n" for n in range(9))
    name = {gzip.compress: "a.jsonl.gz", zstandard.compress: "a.jsonl.zst"}.get(pack, "a.jsonl")
    seen = rows(read(tmp_path, pack(content.encode()), name))
    assert [(line, values["n"]) for line, values in seen] == [(n + 1, n) for n in range(9)]
    assert seen[3][1]["text"] == long


def test_several_frames_are_one_file(tmp_path: Path) -> None:
    parts = [b'{"a": 1}\n', b'{"a": 2}\n']
    assert len(read(tmp_path, b"".join(map(zstandard.compress, parts)), "a.jsonl.zst")) == 2
    assert len(read(tmp_path, b"".join(map(gzip.compress, parts)), "a.jsonl.gz")) == 2


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (zstandard.compress, ".zst")])
def test_a_damaged_archive_is_an_error(tmp_path: Path, pack: Any, suffix: str) -> None:
    packed = pack(os.urandom(50_000).hex().encode() + b"\n")
    assert code(tmp_path, packed[: len(packed) // 2], f"a.txt{suffix}") == "data.unreadable_file"
    assert code(tmp_path, b"not packed at all\n", f"a.txt{suffix}") == "data.unreadable_file"


# delimited text


def test_quoted_fields_may_hold_anything(tmp_path: Path) -> None:
    content = 'text,label\n"a ""b"", c\nd",1\nplain,2\n"",3\n'
    assert rows(read(tmp_path, content)) == [
        (2, {"text": 'a "b", c\nd', "label": "1"}),
        (4, {"text": "plain", "label": "2"}),
        (5, {"text": "", "label": "3"}),
    ]


def test_bare_quotes_are_text(tmp_path: Path) -> None:
    assert rows(read(tmp_path, '"so" he said\t1\nshe "knew"\t2\n')) == [
        (1, {"column_1": '"so" he said', "column_2": "1"}),
        (2, {"column_1": 'she "knew"', "column_2": "2"}),
    ]


def test_a_field_may_be_huge(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(rows(read(tmp_path, f'text,label\n"{"x, " * 100_000}",1\n'))[0][1]["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_an_unclosed_quote_is_named_where_it_opens(tmp_path: Path) -> None:
    seen = read(tmp_path, 'text,label\nx,1\n"y,2\nz,3\n', quoting="standard")
    assert bad(seen) == [(3, "data.unreadable_line")]
    assert [line for line, _ in rows(seen)] == [2, 4]
    assert "data.quoting=none" in problem(seen).fix


def test_a_badly_quoted_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    seen = read(tmp_path, 'text,label\n"x,1\ny,2\n"z" w,3\nv,4\n', quoting="standard")
    assert bad(seen) == [(2, "data.unreadable_line"), (4, "data.unreadable_line")]
    assert [line for line, _ in rows(seen)] == [3, 5]


def test_field_counts(tmp_path: Path) -> None:
    content = "text,label\nx,1\ny\nz,3,4\nw,5\n"
    seen = read(tmp_path, content)
    assert bad(seen) == [(3, "data.field_count"), (4, "data.field_count")]
    assert problem(seen).found == "1 field, 2 expected: 'y'"
    seen = read(tmp_path, content, extra_fields="ignore")
    assert bad(seen) == [(3, "data.field_count")]
    assert (4, {"text": "z", "label": "3"}) in rows(seen)


def test_an_undecodable_header_is_not_replaced_by_a_row(tmp_path: Path) -> None:
    seen = read(tmp_path, b"text,label\xe9\nx,1\ny,2\n", header=True)
    assert bad(seen) == [(1, "data.encoding")]
    assert [line for line, _ in rows(seen)] == [2, 3]


def test_a_header_alone_is_an_empty_file(tmp_path: Path) -> None:
    assert code(tmp_path, "text,label\n", header=True) == "data.empty_file"


def texts(alphabet: str, most: int) -> list[str]:
    return ["".join(chars) for length in range(most + 1) for chars in itertools.product(alphabet, repeat=length)]


def test_what_csv_writes_is_read() -> None:
    table = [list(row) for row in itertools.product(texts('a,"\n', 3), repeat=2)]
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(table)
    lines = [Line(number, text) for number, text in enumerate(out.getvalue().removesuffix("\n").split("\n"), 1)]
    assert [record.fields for record in read_records(lines, ",", "standard") if isinstance(record, Record)] == table


def test_one_line_reads_as_strict_csv_reads_it() -> None:
    for text in texts('a,"', 7):
        try:
            expected: list[list[str]] | None = list(csv.reader([text], strict=True)) if text else []
        except csv.Error:
            expected = None
        seen = list(read_records([Line(1, text)], ",", "standard"))
        if expected is None:
            assert isinstance(seen[0], BrokenQuotes), text
        else:
            assert [record.fields for record in seen if isinstance(record, Record)] == expected, text


# other text


def test_labels_first(tmp_path: Path) -> None:
    seen = read(tmp_path, "NUM:dist How far ?\nnospace\nA  b c\n", format="label_first")
    assert rows(seen) == [(1, {"label": "NUM:dist", "text": "How far ?"}), (3, {"label": "A", "text": " b c"})]
    assert bad(seen) == [(2, "data.unreadable_line")]


def test_labels_of_fasttext(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "__label__a one two\n__label__a __label__b three\n", "a.txt")) == [
        (1, {"label": "a", "text": "one two"}),
        (2, {"label": ["a", "b"], "text": "three"}),
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"a": 1,}', "column 9"),
        ("[1]", "a list"),
        ("null", "null"),
        ('{"a": 1, "a": 2}', "'a' is said twice"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("[" * 100_000, ""),
        ('{"a": ' + "1" * 5000 + "}", "4300"),
    ],
)
def test_a_line_that_is_no_object(tmp_path: Path, line: str, found: str) -> None:
    seen = read(tmp_path, f'{{"a": 0}}\n{line}\n{{"a": NaN}}\n', "a.jsonl")
    assert [line for line, _ in rows(seen)] == [1, 3]
    assert bad(seen) == [(2, "data.unreadable_line")]
    assert found in problem(seen).found


# json documents


@pytest.mark.parametrize(
    "content",
    [
        '[\n {"text": "x"},\n\n {"text": "y"}]\n',
        '{"data":\n [{"text": "x"},\n\n {"text": "y"}]}',
        '{"version": "2", "names": ["a"],\n"data": [{"text": "x"},\n\n {"text": "y"}], "end": {"a": 1}}',
        '{"text":\n ["x",\n\n "y"]}',
    ],
)
def test_json_documents(tmp_path: Path, content: str) -> None:
    assert rows(read(tmp_path, content, "a.json")) == [(2, {"text": "x"}), (4, {"text": "y"})]


def test_json_of_pandas(tmp_path: Path) -> None:
    content = '{"text": {"0": "x", "1": "y"}, "label": {"0": 1, "1": 2}}'
    assert [values for _, values in rows(read(tmp_path, content, "a.json"))] == [{"text": "x", "label": 1}, {"text": "y", "label": 2}]


def test_a_large_document_streams(tmp_path: Path) -> None:
    items = [{"n": n, "text": 'wörd \\ " [{' * (20_000 if n == 50 else 200), "x": [True, None, -1.5e3]} for n in range(100)]
    seen = rows(read(tmp_path, "[\n" + ",\n".join(map(json.dumps, items)) + "\n]", "a.json"))
    assert [values for _, values in seen] == items
    assert [line for line, _ in seen] == list(range(2, 102))


def test_items_that_are_no_rows(tmp_path: Path) -> None:
    seen = read(tmp_path, '[{"a": 1},\n3,\n{"a": 1, "a": 2},\n{"a": "\\udc00"},\n{"a": 2}]', "a.json")
    assert [line for line, _ in rows(seen)] == [1, 5]
    assert bad(seen) == [(2, "data.unreadable_line"), (3, "data.unreadable_line"), (4, "data.unreadable_line")]


ARTICLES = """{"version": "v2.0", "data": [
 {"title": "a \\"paragraphs\\": [", "paragraphs": [
  {"qas": [
    {"question": "q1",
     "id": "1"},
    {"question": "q2", "id": "2"}
   ], "context": "c1"},
  {"context": "c2", "qas": []},
  {"context": "c3", "source": "s", "qas": [{"question": "q3", "id": "3"}]}
 ]},
 {"paragraphs": [{"context": "c4", "qas": [{"question": "q4", "context": "own"}]}]}
]}"""


@pytest.mark.parametrize("as_list", [False, True])
def test_a_row_for_each_question_of_squads_articles(tmp_path: Path, as_list: bool) -> None:
    content = ARTICLES.partition('"data": ')[2][:-1] if as_list else ARTICLES
    title = {"title": 'a "paragraphs": ['}
    assert rows(read(tmp_path, content, "squad.json")) == [
        (4, {**title, "context": "c1", "question": "q1", "id": "1"}),
        (6, {**title, "context": "c1", "question": "q2", "id": "2"}),
        (9, {**title, "context": "c3", "source": "s", "question": "q3", "id": "3"}),
        (11, {"context": "own", "question": "q4"}),
    ]
    assert rows(read(tmp_path, content.replace("\n", " "), "squad.json"))[3] == (1, {"context": "own", "question": "q4"})


@pytest.mark.parametrize(
    ("before", "after", "line", "code"),
    [
        ('"context": "c2", "qas": []', '"context": "c2"', 8, "data.unreadable_line"),
        ('{"question": "q2", "id": "2"}', '"q2"', 6, "data.unreadable_line"),
        ('"id": "2"', '"question": "q2"', 6, "data.unreadable_line"),
    ],
)
def test_questions_that_cannot_be_read(tmp_path: Path, before: str, after: str, line: int, code: str) -> None:
    found = read(tmp_path, ARTICLES.replace(before, after), "squad.json")
    assert bad(found) == [(line, code)]
    assert [values["question"] for _, values in rows(found)][-1] == "q4"


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ('"qas": []', '"qas": {}', "squad.json:8"),
        ('"context": "c2"', '"context": "c2", "context": "c"', "squad.json:8"),
        ("]}\n]}", "", "squad.json:11"),
        ('"paragraphs": [{', '"paragraphs": 3, "x": [{', "squad.json:11"),
        ('"qas": []},', '"qas": []}, 5,', "squad.json:8"),
    ],
)
def test_articles_that_break_off(tmp_path: Path, before: str, after: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, ARTICLES.replace(before, after), "squad.json")
    assert caught.value.problems[0].where == place


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1}, {"a": 2}', "data.unreadable_line"),
        ('[{"a": 1}, {"a" 2}]', "data.unreadable_line"),
        ('[{"a": 1} {"a": 2}]', "data.unreadable_line"),
        ('[{"a": 1}] tail', "data.unreadable_line"),
        ('[{"a": "open]', "data.unreadable_line"),
        ('{"a": 1}', "data.format"),
        ("{}", "data.format"),
        ('"text"', "data.format"),
        ('{"a": [1], "b": [1, 2]}', "data.format"),
        ('{"train": [{"a": 1}], "test": [{"a": 1}]}', "data.format"),
        ('{"columns": ["a"], "data": {"x": 1}}', "data.format"),
        ("[]", "data.empty_file"),
        ('{"a": ]}', "data.unreadable_line"),
        ("{1: 2}", "data.unreadable_line"),
        (b'[{"a": "\xff"}]', "data.encoding"),
    ],
)
def test_documents_that_are_no_table(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert code(tmp_path, content, "a.json") == expected


# columnar files


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(3000)], "label": pa.array(["a", "b"] * 1500).dictionary_encode()})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    pa.feather.write_feather(table, tmp_path / "a.feather")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    data = DataSpec(train="a")
    for name in ("a.parquet", "a.feather", "a.arrow"):
        seen = list(read_rows(tmp_path / name, sniff(tmp_path / name, data), data))
        assert len(seen) == 3000
        assert seen[2999] == (3000, {"text": "row 2999", "label": "b"})


def test_damaged_columnar_files(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"text": ["row"] * 3000}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    assert code(tmp_path, whole[:-20], "b.parquet") == "data.unreadable_file"
    assert code(tmp_path, gzip.compress(whole), "b.parquet.gz") == "data.unreadable_file"
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    assert code(tmp_path, (tmp_path / "c.parquet").read_bytes(), "c.parquet") == "data.empty_file"


def test_reading_without_sniffing_reports_too(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        for format in ("csv", "jsonl", "json", "lines", "parquet", "arrow"):
            with pytest.raises(InputError):
                list(read_rows(path, Dialect(format, delimiter=",", names=("a",)), DataSpec(train="a")))


def test_arrow_bytes_that_point_outside_do_not_crash(tmp_path: Path) -> None:
    pa.feather.write_feather(pa.table({"text": ["abcd"] * 50}), tmp_path / "a.arrow", compression="uncompressed")
    offsets = b"".join((4 * n).to_bytes(4, "little") for n in range(1, 50))
    whole = (tmp_path / "a.arrow").read_bytes()
    assert offsets in whole
    assert code(tmp_path, whole.replace(offsets, b"\xff" * len(offsets)), "b.arrow") == "data.unreadable_file"
