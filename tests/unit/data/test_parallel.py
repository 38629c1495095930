from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tunesmith.data.origins import open_sources
from tunesmith.data.parallel import find_pairs, languages, read_pair
from tunesmith.data.text import BadLine
from tunesmith.errors import InputError
from tunesmith.spec import DataSpec


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode("latin-1"))
    return path


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("train.en", "train.de", ("en", "de")),
        ("train.en.gz", "train.de.gz", ("en", "de")),
        ("tatoeba.deu-eng.deu", "tatoeba.deu-eng.eng", ("deu", "eng")),
        ("news.en_XX.txt", "news.pt-BR.txt", ("en_XX", "pt-BR")),
        ("a.csv", "a.tsv", ("source", "target")),  # formats, no languages
        ("a.txt", "b.txt", ("source", "target")),
        ("train.en", "valid.de", ("source", "target")),
        ("train.english", "train.german", ("source", "target")),
        ("one.csv", "two.csv", ("source", "target")),
        ("reviews.pos", "reviews.neg", ("source", "target")),
    ],
)
def test_languages_are_seen_from_names(first: str, second: str, found: tuple[str, str]) -> None:
    assert languages(Path(first), Path(second)) == found


def test_pairs_are_found_by_name_or_as_told() -> None:
    files = [Path(name) for name in ("a.en", "a.de", "b.en", "b.de")]
    assert find_pairs(files, "auto", running_text=False) == [(files[0], files[1]), (files[2], files[3])]
    assert find_pairs(files, "auto", running_text=True) == []
    assert find_pairs(files[:3], "auto", running_text=False) == []
    assert find_pairs([files[0], Path("x.txt")], "auto", running_text=False) == []
    assert find_pairs([files[0], Path("x.txt")], "parallel", running_text=False) == [(files[0], Path("x.txt"))]
    with pytest.raises(InputError, match="pairs of files"):
        find_pairs(files[:3], "parallel", running_text=False)


def test_lines_are_read_side_by_side(tmp_path: Path) -> None:
    pair = write(tmp_path, "a.en.gz", 'one\ntwo, "three"\n\nfour\n'), write(tmp_path, "a.de.gz", 'eins\nzwei, "drei"\n\nvier')
    rows = list(read_pair(pair, ("utf-8", "utf-8")))
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert rows[1].values == {"translation": {"en": 'two, "three"', "de": 'zwei, "drei"'}}  # type: ignore[union-attr]
    assert rows[2].values == {"translation": {"en": "", "de": ""}}  # type: ignore[union-attr]


def test_a_line_that_cannot_be_read_takes_its_partner_along(tmp_path: Path) -> None:
    pair = write(tmp_path, "a.en", "one\ntwo\nthree\n"), write(tmp_path, "a.de", "eins\nzw\xe9i\ndrei\n")
    first, bad, last = read_pair(pair, ("utf-8", "utf-8"))
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.problem.where, bad.problem.code) == (2, "a.de:2", "data.encoding")
    assert last.values == {"translation": {"en": "three", "de": "drei"}}  # type: ignore[union-attr]
    assert first.line == 1


@pytest.mark.parametrize(("one", "other"), [("a\nb\nc\n", "a\n"), ("a\n", "a\nb\nc\n")])
def test_both_numbers_are_said_when_one_file_is_longer(tmp_path: Path, one: str, other: str) -> None:
    write(tmp_path, "a.en", one)
    write(tmp_path, "a.de", other)
    with pytest.raises(InputError) as caught:
        open_sources(DataSpec(train=["a.en", "a.de"], validation="none", root=str(tmp_path)))
    problem = caught.value.problems[0]
    assert (problem.code, problem.where) == ("data.line_count", "a.en+a.de")
    assert {"3", "1"} == {part.split()[0] for part in problem.found.split(", ")}


def test_a_pair_is_one_origin_with_the_hashes_of_both(tmp_path: Path) -> None:
    write(tmp_path, "a.en", "one\n")
    write(tmp_path, "a.de", "eins\n")
    opened = open_sources(DataSpec(train=["a.de", "a.en"], validation="none", root=str(tmp_path)))
    (origin,) = opened.origins["train"]
    assert origin.name == "a.de+a.en"
    assert len(origin.fingerprint) == 2 * 64 + 1
    assert opened.sample == [{"translation": {"de": "eins", "en": "one"}}]
    assert "named alike" in opened.decisions[0].because
