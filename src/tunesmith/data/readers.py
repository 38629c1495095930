"""Reads the rows of one file, streaming, each with the line that it stands on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.conll import read_sentences
from tunesmith.data.delimited import BrokenQuotes, Record, name_delimiter, read_records
from tunesmith.data.json_document import check_surrogates, read_document, unique_keys
from tunesmith.data.text import COMPRESSIONS, PASSAGE, BadLine, Line, RawRow, bad_line, read_lines, shorten
from tunesmith.errors import InputError
from tunesmith.spec import DataSpec

if TYPE_CHECKING:
    from tunesmith.data.sniff import Dialect

ROWS_PER_BATCH = 1024
FASTTEXT_PREFIX = "__label__"
PASSAGE_CHARS = 8192
"""A passage of running text ends with the first line that takes it to this length: small enough to be drawn for validation."""


def read_rows(path: Path, dialect: Dialect, data: DataSpec) -> Iterator[RawRow | BadLine]:
    """The rows of a file as `dialect` says it is written, and in their places the lines that cannot be read.

    Raises InputError where nothing further can be read, and for a file without a row.
    """
    rows = _reader(path, dialect, data)
    first = next(rows, None)
    if first is None:
        found = "a header and no rows" if dialect.header else "no rows"
        fix = "name another file, or write this one again"
        raise InputError("data.empty_file", "the file holds no rows", where=path.name, found=found, fix=fix)
    yield first
    yield from rows


def _reader(path: Path, dialect: Dialect, data: DataSpec) -> Iterator[RawRow | BadLine]:
    if dialect.format in ("parquet", "arrow"):
        return _read_arrow(path, dialect.format)
    if dialect.format == "json":
        return read_document(path, dialect.encoding)
    if dialect.format == "csv":
        return _read_csv(path, dialect, data)
    if dialect.format == "conll":
        return read_sentences(path, dialect.encoding, dialect.delimiter, dialect.names)
    if dialect.format == "text":
        return _read_passages(path, dialect.encoding)
    read = {"jsonl": _read_object, "label_first": _read_label_first, "lines": _read_text}[dialect.format]
    return (read(path, line) if isinstance(line, Line) else line for line in read_lines(path, dialect.encoding) if not _is_blank(line))


def _is_blank(line: Line | BadLine) -> bool:
    return isinstance(line, Line) and not line.text.strip()


def _read_text(path: Path, line: Line) -> RawRow:
    return RawRow(line.number, {"text": line.text})


def _read_passages(path: Path, encoding: str) -> Iterator[RawRow | BadLine]:
    """Running text in numbered passages of whole lines, each with the line that it starts on; joined, they are the text."""
    lines: list[str] = []
    start, num_chars, passage = 1, 0, 0
    for line in read_lines(path, encoding):
        if not isinstance(line, Line):
            yield line
            continue
        if not lines:
            start = line.number
        lines.append(line.text + "\n")
        num_chars += len(lines[-1])
        if num_chars >= PASSAGE_CHARS:
            yield RawRow(start, {"text": "".join(lines), PASSAGE: passage})
            lines, num_chars, passage = [], 0, passage + 1
    if lines:
        yield RawRow(start, {"text": "".join(lines), PASSAGE: passage})


def _read_label_first(path: Path, line: Line) -> RawRow | BadLine:
    """`LABEL TEXT`, or fastText's `__label__A __label__B TEXT`: one label is text, several are a list."""
    label, space, text = line.text.partition(" ")
    labels = []
    while label.startswith(FASTTEXT_PREFIX) and space:
        labels.append(label.removeprefix(FASTTEXT_PREFIX))
        before = text
        label, space, text = text.partition(" ")
    if labels:
        return RawRow(line.number, {"label": labels[0] if len(labels) == 1 else labels, "text": before})
    if not space:
        fix = "write a label, a space and the text; or data.format=lines"
        return bad_line(path, line.number, "data.unreadable_line", "no space stands between a label and a text", shorten(line.text), fix)
    return RawRow(line.number, {"label": label, "text": text})


def _read_object(path: Path, line: Line) -> RawRow | BadLine:
    def bad(problem: str, found: str, fix: str) -> BadLine:
        return bad_line(path, line.number, "data.unreadable_line", problem, found, fix)

    fix = 'write one object a line, such as {"text": "...", "label": "..."}'
    try:
        values = json.loads(line.text, object_pairs_hook=unique_keys)
        check_surrogates(line.text, values)
    except json.JSONDecodeError as error:
        around = shorten(line.text[max(0, error.pos - 30) : error.pos + 30])
        return bad("the line is not valid JSON", f"{error.msg}, at column {error.colno}, near {around}", fix)
    except (ValueError, RecursionError) as error:
        return bad("the object cannot be read", str(error), "mend the object")
    if not isinstance(values, dict):
        kinds = {list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number", type(None): "null"}
        return bad("the line is JSON, but not an object", f"{kinds[type(values)]}: {shorten(line.text)}", fix)
    return RawRow(line.number, values)


def _read_csv(path: Path, dialect: Dialect, data: DataSpec) -> Iterator[RawRow | BadLine]:
    names, num_fields = dialect.names, len(dialect.names)
    is_header = dialect.header
    for record in read_records(read_lines(path, dialect.encoding), dialect.delimiter, dialect.quoting):
        if isinstance(record, Record):
            if is_header:
                is_header = False
            elif len(record.fields) == num_fields:
                yield RawRow(record.line, dict(zip(names, record.fields, strict=True)))
            elif len(record.fields) > num_fields and data.extra_fields == "ignore":
                yield RawRow(record.line, dict(zip(names, record.fields, strict=False)))
            else:
                yield _wrong_count(path, record, dialect)
            continue
        is_header = False
        if isinstance(record, BrokenQuotes):
            fix = "data.quoting=none when quotes are ordinary characters in this file; otherwise double the quotes inside the field"
            found = f"{record.why}: {shorten(record.text)}"
            yield bad_line(path, record.line, "data.unreadable_line", "the line is not well quoted", found, fix)
        else:
            yield record


def _wrong_count(path: Path, record: Record, dialect: Dialect) -> BadLine:
    count, expected = len(record.fields), len(dialect.names)
    start = shorten(dialect.delimiter.join(record.fields))
    now = f"data.delimiter ({name_delimiter(dialect.delimiter)} now) and data.quoting ({dialect.quoting} now)"
    fix = f"mend the line, or check {now}"
    if count > expected:
        fix = f"data.extra_fields=ignore leaves out all beyond the last column; or check {now}"
    plural = "" if count == 1 else "s"
    found = f"{count} field{plural}, {expected} expected: {start}"
    return bad_line(path, record.line, "data.field_count", "the line has another number of fields than the columns", found, fix)


def open_arrow(path: Path, format: str) -> Any:
    """The schema's `names` and `batches` of a parquet or arrow file (arrow: file or stream). Raises InputError."""
    return _ArrowFile(path, format)


class _ArrowFile:
    """A columnar file that is read batch by batch."""

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        if path.suffix.lower() in COMPRESSIONS:
            fix = f"unpack it first; {format} files are compressed inside"
            raise InputError("data.unreadable_file", f"a packed {format} file cannot be read in pieces", where=path.name, fix=fix)
        self._file = self._guard(lambda: _open_arrow_file(path, format), format)
        self.names: list[str] = self._guard(
            lambda: list((self._file.schema_arrow if format == "parquet" else self._file.schema).names), format
        )
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            problem = "two columns have the same name"
            raise InputError(
                "data.ambiguous_columns", problem, where=path.name, found=", ".join(twice), fix="write the file with other names"
            )
        self.format = format

    def _guard(self, read: Any, format: str) -> Any:
        try:
            return read()
        except StopIteration:
            return None
        except PermissionError:
            fix = f"chmod u+r {self.path}"
            raise InputError("data.unreadable_file", "the file may not be read by this user", found=str(self.path), fix=fix) from None
        except Exception as error:  # damaged bytes make pyarrow raise almost anything, SystemError too
            found = " ".join(str(error).split())[:200]
            problem = f"this is not a {format} file, or it is damaged"
            fix = "copy or write the file again"
            raise InputError("data.unreadable_file", problem, where=self.path.name, found=found, fix=fix) from error

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The rows, ROWS_PER_BATCH or so at a time."""
        if self.format == "parquet":
            parts = self._guard(lambda: self._file.iter_batches(batch_size=ROWS_PER_BATCH), self.format)
        elif hasattr(self._file, "num_record_batches"):
            parts = (self._file.get_batch(index) for index in range(self._file.num_record_batches))
        else:
            parts = iter(self._file)
        while (batch := self._guard(lambda: next(parts), self.format)) is not None:
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield self._guard(partial(self._values, batch.slice(start, ROWS_PER_BATCH)), self.format)

    def _values(self, batch: Any) -> Any:
        if self.format == "arrow":
            # its bytes are used as they are: offsets that point outside would crash the process
            batch.validate(full=True)
        return batch.to_pylist()


def _open_arrow_file(path: Path, format: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    if format == "parquet":
        return pyarrow.parquet.ParquetFile(path)
    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_file(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_stream(source)


def _read_arrow(path: Path, format: str) -> Iterator[RawRow]:
    number = 0
    for rows in open_arrow(path, format).batches():
        for number, values in enumerate(rows, number + 1):  # noqa: B020 goes on counting
            yield RawRow(number, values)
