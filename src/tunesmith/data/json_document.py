"""Reads one JSON document that holds a table, streaming, and says on which line each row starts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunesmith.data.text import BadLine, Line, RawRow, bad_line, place, read_lines, shorten
from tunesmith.errors import InputError

SPACE = re.compile(r"\s*")
ARTICLES = re.compile(r'\[\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[\w.+-]+)\s*,\s*)*"paragraphs"\s*:\s*\[')
"""How a list of SQuAD's articles starts."""
FEED_CHARS = 1 << 16
LOOKAHEAD_CHARS = 16
"""An error this near to the end of what was read may only mean that more is needed, as after `tru`."""
EXPECTED = 'a list of objects, as in [{"text": ..., "label": ...}], or an object with one such list, or one list a column'


class DuplicateKeyError(ValueError):
    """An object says the same key twice."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: refuses what json would silently overwrite."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"the key {next(name for name in names if names.count(name) > 1)!r} is said twice")
    return values


def check_surrogates(text: str, value: Any) -> None:
    """Raises ValueError for half a surrogate pair, which no tokenizer or file can take."""
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the escape \\u{ord(error.object[error.start]):04x} is half a surrogate pair") from None


class Document:
    """The text of a JSON file, read as far as is needed, and the line that is reached."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.line = 1
        self._lines = read_lines(path, encoding)
        self._text = ""
        self._at = 0
        self._is_first = True
        self._is_read = False
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_keys)

    def _feed(self) -> None:
        """Reads on, as much again as there is, so that one long value costs linear time."""
        wanted = max(FEED_CHARS, len(self._text) - self._at)
        pieces = [self._text[self._at :]]
        num_chars = 0
        while num_chars < wanted:
            line = next(self._lines, None)
            if line is None:
                self._is_read = True
                break
            if not isinstance(line, Line):
                raise InputError.from_problems([line.problem])
            pieces.append(line.text if self._is_first else "\n" + line.text)
            self._is_first = False
            num_chars += len(pieces[-1])
        self._text, self._at = "".join(pieces), 0

    def _advance(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            match = SPACE.match(self._text, self._at)
            assert match is not None
            self._advance(match.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_read:
                return ""
            self._feed()

    def take(self, expected: str) -> str:
        """Takes one of the characters of `expected`."""
        char = self.peek()
        if not char or char not in expected:
            wanted = " or ".join(expected)
            raise self.error(f"{wanted} is expected", f"found {char!r}" if char else "the file ends", self.line)
        self._advance(self._at + 1)
        return char

    def starts_with(self, pattern: re.Pattern[str]) -> bool:
        """Whether what comes next is of this pattern."""
        if len(self._text) - self._at < FEED_CHARS and not self._is_read:
            self._feed()
        return pattern.match(self._text, self._at) is not None

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; the value of each is read before the next key."""
        self.take("{")
        seen: set[str] = set()
        while self.peek() != "}" or seen:
            if self.peek() != '"':
                self.take('"')
            key = str(self.value()[1])
            self.take(":")
            if key in seen:
                raise self.error("the object cannot be read", f"the key {key!r} is said twice", self.line)
            seen.add(key)
            yield key
            if self.take(",}") == "}":
                return
        self.take("}")

    def elements(self) -> Iterator[None]:
        """The elements of the list that comes next; each is read before the next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        yield
        while self.take(",]") == ",":
            yield

    def member(self) -> Any:
        """The value of a key."""
        try:
            return self.value()[1]
        except ValueError as error:
            raise self.error("a value cannot be read", str(error), self.line) from None

    def value(self) -> tuple[int, Any]:
        """The next value and its line. Raises ValueError, having read past it, when it is complete but cannot be accepted."""
        self.peek()
        line = self.line
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - LOOKAHEAD_CHARS
                if is_cut and not self._is_read:
                    self._feed()
                    continue
                line += self._text.count("\n", self._at, error.pos)
                column = error.pos - self._text.rfind("\n", 0, error.pos)
                raise self.error("the JSON is not valid", f"{error.msg}, at column {column}", line) from None
            except DuplicateKeyError:
                _, end = json.JSONDecoder().raw_decode(self._text, self._at)
                self._advance(end)
                raise
            except (ValueError, RecursionError) as error:
                raise self.error("the JSON cannot be read", str(error), line) from None
            if end == len(self._text) and not self._is_read:
                self._feed()
                continue
            text = self._text[self._at : end]
            self._advance(end)
            check_surrogates(text, value)
            return line, value

    def error(self, problem: str, found: str, line: int) -> InputError:
        """What says that the text is no JSON at `line`."""
        fix = "mend the file there; nothing after it can be read"
        return InputError("data.unreadable_line", problem, where=place(self.path, line), found=found, fix=fix)

    def shape_error(self, found: str, fix: str = EXPECTED) -> InputError:
        """What says that the JSON is not one table."""
        return InputError("data.format", "the JSON document does not hold one table of rows", where=self.path.name, found=found, fix=fix)


def read_document(path: Path, encoding: str) -> Iterator[RawRow | BadLine]:
    """The rows of a JSON document; reading ends with an InputError where it is not JSON."""
    document = Document(path, encoding)
    opening = document.peek()
    if not opening:
        return
    if opening == "[" and document.starts_with(ARTICLES):
        yield from _read_articles(document)
    elif opening == "[":
        for line, value in _items(document):
            yield _row(document, line, value)
    elif opening == "{":
        yield from _read_object(document)
    else:
        raise document.shape_error(f"it starts with {opening!r}")
    if rest := document.peek():
        found = f"found {rest!r}; if each line is an object of its own, data.format=jsonl"
        raise document.error("text follows the end of the document", found, document.line)


def _items(document: Document) -> Iterator[tuple[int, Any]]:
    """The items of a list; one that is complete but not acceptable is a ValueError in place of its value."""
    for _ in document.elements():
        try:
            yield document.value()
        except ValueError as error:
            yield document.line, error


def _row(document: Document, line: int, value: Any) -> RawRow | BadLine:
    if isinstance(value, dict):
        return RawRow(line, value)
    if isinstance(value, ValueError):
        return bad_line(document.path, line, "data.unreadable_line", "the object cannot be read", str(value), "mend the object")
    found, fix = shorten(json.dumps(value)), 'write it as {"text": ..., "label": ...}'
    return bad_line(document.path, line, "data.unreadable_line", "a row of the list is not an object", found, fix)


def _read_object(document: Document) -> Iterator[RawRow | BadLine]:
    """The rows of an object: those of its one list of objects, else of its columns."""
    rows_key = ""
    columns: dict[str, Any] = {}
    lines: list[int] = []
    for key in document.members():
        if document.peek() == "[" and not rows_key and document.starts_with(ARTICLES):
            rows_key = key
            yield from _read_articles(document)
        elif document.peek() == "[":
            items = _items(document)
            numbered = list(islice(items, 1))
            if numbered and isinstance(numbered[0][1], dict):
                if rows_key:
                    raise document.shape_error(f"two lists of objects, {rows_key!r} and {key!r}", "write each list to a file of its own")
                rows_key = key
                for line, value in chain(numbered, items):
                    yield _row(document, line, value)
            else:
                numbered += items
                columns[key] = [value for _, value in numbered]
                lines = lines or [line for line, _ in numbered]
        else:
            columns[key] = document.member()
    if not rows_key:
        yield from _read_columns(document, columns, lines)


def _read_articles(document: Document) -> Iterator[RawRow | BadLine]:
    """A row for each question of a list of SQuAD's articles, with the context of its paragraph and the title of its article."""
    for _ in document.elements():
        article: dict[str, Any] = {}
        for key in document.members():
            if key != "paragraphs":
                article[key] = document.member()
                continue
            for _ in document.elements():
                yield from _read_paragraph(document, article)


def _read_paragraph(document: Document, article: dict[str, Any]) -> Iterator[RawRow | BadLine]:
    document.peek()
    start, paragraph = document.line, dict(article)
    questions: list[tuple[int, Any]] | None = None
    for key in document.members():
        if key == "qas":
            questions = list(_items(document))
        else:
            paragraph[key] = document.member()
    if questions is None:
        fix = 'write {"context": "...", "qas": [{"question": "...", "answers": [...]}]}'
        yield bad_line(document.path, start, "data.unreadable_line", "a paragraph has no qas", ", ".join(map(repr, paragraph))[:200], fix)
    for line, value in questions or ():
        row = _row(document, line, value)
        yield RawRow(line, {**paragraph, **row.values}) if isinstance(row, RawRow) else row


def _read_columns(document: Document, columns: dict[str, Any], lines: list[int]) -> Iterator[RawRow]:
    """The rows of one list a column, or of pandas' `{column: {index: value}}`."""
    first = next(iter(columns.values()), None)
    if isinstance(first, dict) and all(isinstance(column, dict) and list(column) == list(first) for column in columns.values()):
        if not all(index.isdigit() for index in first):
            raise document.shape_error(f"objects named {', '.join(map(repr, list(columns)[:5]))}")
        columns = {name: list(column.values()) for name, column in columns.items()}
        lines = [1] * len(first)
    lengths = {name: len(column) for name, column in columns.items() if isinstance(column, list)}
    if not lengths or len(lengths) < len(columns):
        others = [name for name in columns if name not in lengths]
        raise document.shape_error(f"an object whose {others[0]!r} is no list" if others else "an empty object")
    if len(set(lengths.values())) > 1:
        raise document.shape_error("columns of different lengths: " + ", ".join(f"{name} {length:,}" for name, length in lengths.items()))
    for line, values in zip(lines, zip(*columns.values(), strict=True), strict=True):
        if error := next((value for value in values if isinstance(value, ValueError)), None):
            raise document.error("a value cannot be read", str(error), line)
        yield RawRow(line, dict(zip(columns, values, strict=True)))
