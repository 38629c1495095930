"""Sentences in columns: what is a sentence, a word, a comment, and a line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.conll import CONLLU_NAMES, looks_like_sentences
from tunesmith.data.readers import read_rows
from tunesmith.data.sniff import Dialect, sniff
from tunesmith.data.text import BadLine, Line, RawRow
from tunesmith.spec import DataSpec

TAGGED = "Ann B-person\nsings O\n\nin O\nRome B-place\n. O\n\nNo O\nsong O\n"


def read(folder: Path, content: str | bytes, name: str = "rows.conll", **settings: object) -> tuple[Dialect, list[RawRow | BadLine]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    spec = DataSpec(train=name, **settings)  # type: ignore[arg-type]
    dialect = sniff(path, spec)
    return dialect, list(read_rows(path, dialect, spec))


def conllu(*words: str) -> str:
    return "".join(f"{word}\t_\t{tag}\t_\t_\t0\troot\t_\t_\n" for word, tag in (item.rsplit("/", 1) for item in words))


def test_a_row_is_a_sentence_on_the_line_of_its_first_word(tmp_path: Path) -> None:
    dialect, rows = read(tmp_path, "\n-DOCSTART- -X-\n\n# a remark\n" + TAGGED)
    assert dialect.names == ("token", "tag")
    assert [row.line for row in rows] == [5, 8, 12]
    assert rows[1] == RawRow(8, {"token": ["in", "Rome", "."], "tag": ["O", "B-place", "O"]})


@pytest.mark.parametrize("separator", ["\t", " ", "   "])
def test_fields_stand_between_tabs_or_blanks(tmp_path: Path, separator: str) -> None:
    _, rows = read(tmp_path, TAGGED.replace(" ", separator))
    assert rows[0].values == {"token": ["Ann", "sings"], "tag": ["B-person", "O"]}  # type: ignore[union-attr]


def test_a_word_between_tabs_may_hold_a_blank(tmp_path: Path) -> None:
    _, [row] = read(tmp_path, "New York\tB-place\nsings\tO\n")
    assert row.values["token"] == ["New York", "sings"]  # type: ignore[union-attr]


def test_columns_between_word_and_tag_are_numbered(tmp_path: Path) -> None:
    dialect, [row] = read(tmp_path, "Ann NNP I-NP B-person\nsings VBZ I-VP O\n")
    assert dialect.names == ("token", "column_2", "column_3", "tag")
    assert row.values["column_2"] == ["NNP", "VBZ"]  # type: ignore[union-attr]


def test_words_alone_are_one_column(tmp_path: Path) -> None:
    dialect, rows = read(tmp_path, "Ann\nsings\n\nRome\n")
    assert dialect.names == ("token",)
    assert [row.values["token"] for row in rows] == [["Ann", "sings"], ["Rome"]]  # type: ignore[union-attr]


def test_a_line_of_blanks_ends_a_sentence_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    _, rows = read(tmp_path, "Ann\tO\r\n\t\r\nsings\tO\r\n")
    assert [row.values for row in rows] == [{"token": ["Ann"], "tag": ["O"]}, {"token": ["sings"], "tag": ["O"]}]  # type: ignore[union-attr]


def test_a_hashtag_is_a_word_and_a_remark_is_none(tmp_path: Path) -> None:
    _, [row] = read(tmp_path, "# id = 3, by hand\n#\tO\n#music\tO\nplays\tO\n")
    assert row == RawRow(2, {"token": ["#", "#music", "plays"], "tag": ["O", "O", "O"]})


def test_conllu_leaves_out_the_rows_of_words_that_stand_for_others(tmp_path: Path) -> None:
    text = (
        "# text = I don't\n"
        + conllu("1\tI/PRON", "2-3\tdon't/_", "2\tdo/AUX", "3\tn't/PART", "3.1\tgo/VERB")
        + "\n"
        + conllu("1\tYes/INTJ")
    )
    dialect, rows = read(tmp_path, text, "rows.conllu")
    assert dialect.names == CONLLU_NAMES
    assert [(row.line, row.values["form"], row.values["upos"]) for row in rows] == [  # type: ignore[union-attr]
        (2, ["I", "do", "n't"], ["PRON", "AUX", "PART"]),
        (8, ["Yes"], ["INTJ"]),
    ]


@pytest.mark.parametrize(
    ("line", "code", "found"),
    [
        ("sings", "data.field_count", "1 field, 2 expected"),
        ("sings\tO\tO", "data.field_count", "3 fields, 2 expected"),
        ("\tO", "data.unreadable_line", "'\\tO'"),
        ("sings\t", "data.unreadable_line", "'sings\\t'"),
        ("s\xffngs\tO", "data.encoding", "byte 0xff"),
        ("s\0ngs\tO", "data.unreadable_line", "column 2"),
    ],
)
def test_a_bad_line_is_named_and_its_sentence_left_out(tmp_path: Path, line: str, code: str, found: str) -> None:
    content = f"Ann\tO\nsings\tO\n\nThe\tO\n{line}\n\nRome\tO\nsings\tO\n".encode("latin-1")
    _, rows = read(tmp_path, content)
    assert [row.line for row in rows] == [1, 5, 7]
    bad = rows[1]
    assert isinstance(bad, BadLine)
    assert (bad.problem.code, bad.problem.where) == (code, "rows.conll:5")
    assert found in bad.problem.found


def test_a_conllu_row_without_a_number_is_named(tmp_path: Path) -> None:
    _, rows = read(tmp_path, conllu("1\tI/PRON", "x\tgo/VERB", "3\tnow/ADV"), "rows.conllu")
    assert [(row.problem.code, row.problem.where) for row in rows if isinstance(row, BadLine)] == [
        ("data.unreadable_line", "rows.conllu:2")
    ]


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (TAGGED, "conll"),
        (TAGGED.replace(" ", "\t"), "conll"),
        ("# text = Yes\n" + conllu("1\tYes/INTJ", "2\tsir/NOUN") + "\n" + conllu("1\tNo/INTJ", "2\tsir/NOUN"), "conll"),
        ("good film\t1\nbad film\t0\n", "csv"),
        ("good\t1\n\nbad\t0\n\nfine\t1\n", "csv"),  # a blank line after each row
        ("A first line.\nA second one.\n\nAnother paragraph here.\n", "lines"),
    ],
)
def test_sentences_are_recognised_by_content(tmp_path: Path, content: str, format: str) -> None:
    assert read(tmp_path, content, "rows.txt")[0].format == format


def test_tags_are_few() -> None:
    lines = [
        Line(number, text)
        for number, text in enumerate(["one 1", "two 2", "", "three 3", "four 4", "five 5", "six 6", "seven 7", "eight 8"], 1)
    ]
    assert not looks_like_sentences(lines)


def test_the_columns_can_be_said_to_be_sentences(tmp_path: Path) -> None:
    assert read(tmp_path, "Ann O\nsings O\n", "rows.txt", format="conll")[0].names == ("token", "tag")
