"""Sentences as columns, one word a line and a blank line between sentences, as CoNLL's shared tasks have them; and CoNLL-U."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from tunesmith.data.text import BadLine, Line, RawRow, bad_line, read_lines, shorten

CONLLU_NAMES = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
CONLLU_ID = re.compile(r"\d+(?:[-.]\d+)?")
DOCUMENT_START = "-DOCSTART-"
FEWEST_EVEN = 0.98
"""Share of the lines that must have one number of fields for a file to be recognised by its content."""
BLANKS = re.compile(r"[ \t]+")


def split_fields(text: str, delimiter: str) -> list[str]:
    """The fields of a line: between single tabs, or, without a delimiter, between runs of blanks."""
    return text.split(delimiter) if delimiter else BLANKS.split(text.strip(" \t"))


def find_columns(lines: Sequence[Line]) -> tuple[str, tuple[str, ...], str]:
    """(delimiter, names, why) of a file that holds sentences; the first column is `token`, the last `tag`."""
    words = [line.text for line in lines if line.text.strip() and not line.text.startswith((DOCUMENT_START, "# "))]
    tabbed = Counter(len(text.split("\t")) for text in words)
    numbered = sum(text.count("\t") == 9 and CONLLU_ID.fullmatch(text.split("\t", 1)[0]) is not None for text in words)
    if numbered > len(words) / 2:
        return "\t", CONLLU_NAMES, "CoNLL-U: ten columns, the first numbers the words"
    delimiter = "\t" if tabbed[1] < len(words) / 2 else ""
    count = Counter(len(split_fields(text, delimiter)) for text in words).most_common(1)[0][0] if words else 1
    names = ("token", *(f"column_{number}" for number in range(2, count)), *(["tag"] if count > 1 else []))
    return delimiter, names, f"{'tabs' if delimiter else 'blanks'} between {count} columns: {', '.join(names)}"


def looks_like_sentences(lines: Sequence[Line]) -> bool:
    """Whether lines are words with their tags, in sentences that blank lines part: an even number of fields, and few tags."""
    delimiter, names, _ = find_columns(lines)
    words = [line.text for line in lines if line.text.strip() and not line.text.startswith((DOCUMENT_START, "#"))]
    fields = [split_fields(text, delimiter) for text in words]
    num_sentences = 1 + sum(not before.text.strip() and bool(line.text.strip()) for before, line in pairwise(lines))
    if len(names) < 2 or num_sentences < 2 or len(words) < 2 * num_sentences:
        return False
    if sum(len(row) == len(names) and " " not in row[0] for row in fields) < FEWEST_EVEN * len(fields):
        return False
    if names == CONLLU_NAMES:
        return True
    tags = {row[-1] for row in fields if len(row) == len(names)}
    return all(" " not in tag and len(tag) < 30 for tag in tags) and len(tags) <= max(len(words) / 4, 3)


def read_sentences(path: Path, encoding: str, delimiter: str, names: tuple[str, ...]) -> Iterator[RawRow | BadLine]:
    """One row a sentence, each column a list of strings, on the line of its first word; a sentence with a bad line is left out."""
    sentence: list[list[str]] = []
    start, is_good = 0, True
    for line in read_lines(path, encoding):
        if isinstance(line, BadLine):
            is_good = False
            yield line
            continue
        fields = split_fields(line.text, delimiter)
        if not line.text.strip() or fields[0] == DOCUMENT_START:
            if sentence and is_good:
                yield _row(start, sentence, names)
            sentence, is_good = [], True
            continue
        if _is_comment(line.text, fields, names):
            continue
        fault = _fault(path, line, fields, delimiter, names)
        if fault is not None:
            is_good = False
            yield fault
            continue
        if not sentence:
            start = line.number
        sentence.append(fields)
    if sentence and is_good:
        yield _row(start, sentence, names)


def _row(start: int, sentence: list[list[str]], names: tuple[str, ...]) -> RawRow:
    """Multi-word tokens (3-4) and empty nodes (5.1) of CoNLL-U are no words of the sentence."""
    rows = [fields for fields in sentence if fields[0].isdigit()] if names == CONLLU_NAMES else sentence
    return RawRow(start, {name: [fields[index] for fields in rows] for index, name in enumerate(names)})


def _is_comment(text: str, fields: list[str], names: tuple[str, ...]) -> bool:
    """A line that starts with # is a word where it has a word's fields: `#hashtag O`."""
    return (
        text.startswith("#") and (names == CONLLU_NAMES or len(fields) != len(names)) and (names == CONLLU_NAMES or text[1:2] in (" ", ""))
    )


def _fault(path: Path, line: Line, fields: list[str], delimiter: str, names: tuple[str, ...]) -> BadLine | None:
    between = "a tab" if delimiter else "blanks"
    if len(fields) != len(names):
        plural = "" if len(fields) == 1 else "s"
        found = f"{len(fields)} field{plural}, {len(names)} expected ({', '.join(names)}): {shorten(line.text)}"
        fix = f"write one word a line with {between} between fields, and an empty line between sentences"
        return bad_line(path, line.number, "data.field_count", "the line has another number of fields than the columns", found, fix)
    if not all(field.strip() for field in fields):
        empty = names[next(index for index, field in enumerate(fields) if not field.strip())]
        fix = "write the field, or _ where there is nothing to say"
        return bad_line(path, line.number, "data.unreadable_line", f"the field {empty} is empty", shorten(line.text), fix)
    if names == CONLLU_NAMES and not CONLLU_ID.fullmatch(fields[0]):
        fix = "a number, or 3-4 for a multi-word token, or 5.1 for an empty node"
        return bad_line(path, line.number, "data.unreadable_line", "the first field numbers no word", shorten(line.text), fix)
    return None
