from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tunesmith.data.sniff import Dialect, sniff
from tunesmith.errors import InputError
from tunesmith.spec import DataSpec


def look(folder: Path, content: str | bytes, name: str = "rows.csv", **settings: Any) -> Dialect:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return sniff(path, DataSpec(train=name, **settings))


def code(folder: Path, content: str | bytes, name: str = "rows.csv", **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        look(folder, content, name, **settings)
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl", '{"text": "x"}\n', "jsonl"),
        ("a.ndjson", '{"text": "x"}\n', "jsonl"),
        ("a.jsonl", '[\n{"text": "x"}\n]\n', "json"),
        ("a.json", '[{"text": "x"}]', "json"),
        ("a.json", '{"data": [{"text": "x"}]}', "json"),
        ("a.json", '{\n "data": []\n}', "json"),
        ("a.json", '{"text": "x"}\n{"text": "y"}\n', "jsonl"),
        ("a.txt", '{"text": "x"}\n{"text": "y"}\n', "jsonl"),
        ("a.txt", '[{"text": "x"}]', "json"),
        ("a.tab", "x\t1\ny\t2\n", "csv"),
        ("a.txt", "x\t1\ny\t2\n", "csv"),
        ("a", "text|label\nx|1\ny|2\n", "csv"),
        ("a.txt", "One sentence, with a comma.\nAnother one, too.\nNone here.\n", "lines"),
        ("a.txt", "[Chorus]\nla la la\n", "lines"),
        ("a.label", "".join(f"{'pos' if i % 2 else 'neg'} text number {i}\n" for i in range(20)), "label_first"),
        ("a.txt", "__label__a one\n__label__b two\n", "label_first"),
        ("a.txt", "".join(f"{'Who' if i % 2 else 'What'} is it {i} ?\n" for i in range(40)), "lines"),
    ],
)
def test_the_format_follows_suffix_and_content(tmp_path: Path, name: str, content: str, format: str) -> None:
    assert look(tmp_path, content, name).format == format


def test_a_packed_file_is_named_by_the_suffix_before(tmp_path: Path) -> None:
    assert look(tmp_path, gzip.compress(b'{"a": 1}\n', mtime=0), "a.jsonl.gz").format == "jsonl"


def test_json_that_is_lines_says_so(tmp_path: Path) -> None:
    assert any("ends in .json" in phrase for phrase in look(tmp_path, '{"a": 1}\n{"a": 2}\n', "a.json").because)


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("text,label\nx,1\ny,2\n", ","),
        ("text;label\n1,5;1\n2,5;2\n", ";"),
        ("text|label\nx|1\ny|2\n", "|"),
        ("one, two\t1\nthree, four\t2\nfive, six\t3\n", "\t"),
        ("".join(f"a, b, {i}\t{i}\n" for i in range(9)), "\t"),
        ("text\nno comma\nnone either\n", ""),
        ("text\none, comma\ntwo, or, three\nthree, or, even, four\n", ""),
        ('text\n"a, b"\n"c"\n', ","),
    ],
)
def test_the_delimiter_cuts_lines_evenly(tmp_path: Path, content: str, delimiter: str) -> None:
    assert look(tmp_path, content).delimiter == delimiter


def test_the_field_count_is_the_most_common(tmp_path: Path) -> None:
    dialect = look(tmp_path, "a\tb\t1\n" * 8 + "a\tb\t1\tx\ty\n" * 2)
    assert dialect.names == ("column_1", "column_2", "column_3")
    assert "tab: 8 of 10 sampled lines have 3 fields" in dialect.because


def test_uneven_lines_have_no_delimiter(tmp_path: Path) -> None:
    assert code(tmp_path, "a,b\nc,d,e\nf,g,h,i\nk\n") == "data.format"


@pytest.mark.parametrize(
    ("content", "quoting"),
    [
        ('text,label\n"a, ""b""",1\nc,2\n', "standard"),
        ('text,label\n"two\nlines",1\n"and, two\nmore",2\n', "standard"),
        ("text,label\nx,1\n", "standard"),
        ("text\tlabel\nx\t1\n", "none"),
        ('text\tlabel\n"""quoted"""\t1\nplain\t0\n', "standard"),
        ('text\tlabel\n"so" he said\t1\nplain\t0\n', "none"),
        ('text\tlabel\nhe said "so"\t1\nplain\t0\n', "none"),
        ('text\tlabel\n"opened\t1\nplain\t0\nthen closed"\t1\nplain\t0\n', "none"),
        ('text\tlabel\n"never closed\t1\nplain\t0\n', "none"),
        ('1\t"\t"\tx\n2\tb\tc\tx\n', "none"),
    ],
)
def test_quoting_is_standard_only_when_the_sample_says_so(tmp_path: Path, content: str, quoting: str) -> None:
    assert look(tmp_path, content).quoting == quoting


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("text,label\nx,a\ny,b\n", ("text", "label")),
        ("Text , Stars\nx,1\ny,2\n", ("Text", "Stars")),
        (",id,x\n0,a,b\n1,c,d\n", ("column_1", "id", "x")),
        ("foo,bar\nx,1\ny,2\n", ("foo", "bar")),
        ("x,1\ny,2\n", ("column_1", "column_2")),
        ("a good one,pos\na bad one,neg\n", ("column_1", "column_2")),
        ("what,question\nwho,question\nno,statement\n", ("column_1", "column_2")),
        ("kind,words\n" + "".join(f"{'ham' if i % 2 else 'spam'},words {i}\n" for i in range(40)), ("kind", "words")),
        ("".join(f"{'spam' if i % 2 else 'ham'},words {i}\n" for i in range(40)), ("column_1", "column_2")),
        ('text,label\n"a\nb",1\n', ("text", "label")),
    ],
)
def test_a_header_is_seen(tmp_path: Path, content: str, names: tuple[str, ...]) -> None:
    dialect = look(tmp_path, content)
    assert dialect.names == names
    assert dialect.header == (names[-1] != "column_2")


def test_settings_rule(tmp_path: Path) -> None:
    content = 'text,label\n"x;y",1\n'
    dialect = look(tmp_path, content, delimiter=";", header=False, quoting="none", encoding="latin1")
    assert (dialect.delimiter, dialect.encoding, dialect.header, dialect.quoting) == (";", "iso8859-1", False, "none")
    assert look(tmp_path, "a\tb,c\nd\te\n", delimiter="\\t").delimiter == "\t"
    assert look(tmp_path, "x,1\ny,2\n", header=True).names == ("x", "1")
    assert look(tmp_path, "x,1\ny,2\n", format="lines").names == ("text",)
    assert look(tmp_path, "x::1\ny::2\n", delimiter="::").names == ("column_1", "column_2")


@pytest.mark.parametrize("setting", [{"delimiter": ","}, {"header": True}, {"quoting": "none"}, {"extra_fields": "ignore"}])
def test_a_setting_that_cannot_apply_is_an_error(tmp_path: Path, setting: dict[str, Any]) -> None:
    assert code(tmp_path, '{"text": "x"}\n', "a.jsonl", **setting) == "spec.no_effect"


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13", ""])
def test_an_unknown_codec_is_an_error(tmp_path: Path, encoding: str) -> None:
    assert code(tmp_path, "text,label\nx,1\n", encoding=encoding) == "spec.value"


@pytest.mark.parametrize("delimiter", ["", '"', "\n"])
def test_an_impossible_delimiter_is_an_error(tmp_path: Path, delimiter: str) -> None:
    assert code(tmp_path, "text,label\nx,1\n", delimiter=delimiter) == "spec.value"


@pytest.mark.parametrize(
    ("codec", "shown"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16-le"), ("utf-32", "utf-32-le")],
)
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, codec: str, shown: str) -> None:
    dialect = look(tmp_path, "text,label\nhé,1\n".encode(codec))
    assert (dialect.encoding, dialect.names) == (shown, ("text", "label"))


def test_a_mark_is_never_part_of_a_name(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "latin-1"):
        assert look(tmp_path, "text,label\nx,1\n".encode("utf-8-sig"), encoding=encoding).names == ("text", "label")
    assert code(tmp_path, "text,label\nx,1\n".encode("utf-16"), encoding="utf-8") == "data.encoding"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "data.empty_file"),
        ("a.csv", b"\n \n", "data.empty_file"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0", "data.unreadable_file"),
        ("a.csv", b"PK\x03\x04rest", "data.unreadable_file"),
        ("a.txt", b"%PDF-1.7", "data.unreadable_file"),
        ("a.csv", b"<!DOCTYPE html><html>", "data.unreadable_file"),
        ("a.csv", gzip.compress(b"text,label\nx,1\n", mtime=0), "data.unreadable_file"),
        ("a.csv.gz", b"text,label\nx,1\n", "data.unreadable_file"),
        ("a.csv.zst", b"text,label\nx,1\n", "data.unreadable_file"),
        ("a.parquet", b"text,label\nx,1\n", "data.unreadable_file"),
        ("a.parquet", b"PAR1 and nothing", "data.unreadable_file"),
        ("a.arrow", b"ARROW1 and nothing", "data.unreadable_file"),
        ("a.csv", b"PAR1 and more", "data.unreadable_file"),
        ("a.csv", b"\0\1\2\3\0\1\2\3\0\0\0\0", "data.unreadable_file"),
        ("a.csv", "text,label\nx,1\n".encode("utf-16-le"), "data.encoding"),
        ("a.csv", b"text,label\rx,1\ry,2\r", "data.format"),
        ("a.csv", b'{"text": "x", "label": 1}\n', "data.format"),
        ("a.csv", b"text,text\nx,1\n", "data.ambiguous_columns"),
        ("a.csv", b"text,label\nx,1,z\ny,2,z\n", "data.field_count"),
        ("a.csv", b"text,label,id\nx,1\ny,2\n", "data.field_count"),
    ],
)
def test_what_is_not_a_table_is_an_error(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert code(tmp_path, content, name) == expected


def test_columnar_files_name_their_columns(tmp_path: Path) -> None:
    table = pa.table({"text": ["x"], "label": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    dialect = sniff(tmp_path / "a.parquet", DataSpec(train="a"))
    assert (dialect.format, dialect.names) == ("parquet", ("text", "label"))
    with pytest.raises(InputError, match=r"spec\.no_effect"):
        sniff(tmp_path / "a.parquet", DataSpec(train="a", encoding="latin-1"))
    (tmp_path / "bare").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert sniff(tmp_path / "bare", DataSpec(train="a")).format == "parquet"


def test_a_folder_or_missing_file_is_an_error(tmp_path: Path) -> None:
    for path, expected in ((tmp_path, "data.unreadable_file"), (tmp_path / "none.csv", "data.no_such_file")):
        with pytest.raises(InputError) as caught:
            sniff(path, DataSpec(train="a"))
        assert caught.value.code == expected
