"""Recognises how a file is written: format, encoding, delimiter, quoting, header. Settings of the spec rule over what is seen."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tunesmith.data.conll import find_columns, looks_like_sentences
from tunesmith.data.delimited import Table, choose_table, find_header, name_delimiter, read_table
from tunesmith.data.text import Line, byte_order_mark, content_suffix, place, read_chunks, resolve_encoding, shorten
from tunesmith.errors import InputError
from tunesmith.spec import DataSpec

SAMPLE_BYTES = 4 << 20
SAMPLE_LINES = 20_000
FORMAT_LINES = 2_000
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".conll": "conll",
    ".conllu": "conll",
    ".bio": "conll",
    ".iob": "conll",
}
"""What a suffix says; any other is decided by content."""
BINARY_FORMATS = ("parquet", "arrow")
SIGNATURES = (
    (b"PAR1", "a Parquet file", "parquet"),
    (b"ARROW1", "an Arrow file", "arrow"),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"%PDF", "a PDF document", ""),
    (b"PK\x03\x04", "a zip archive, such as .zip, .xlsx or .docx", ""),
    (b"\x1f\x8b", "a gzip archive", ".gz"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", ".zst"),
    (b"BZh", "a bzip2 archive", ""),
    (b"\xfd7zXZ", "an xz archive", ""),
    (b"7z\xbc\xaf", "a 7z archive", ""),
    (b"SQLite format 3", "an SQLite database", ""),
    (b"\xd0\xcf\x11\xe0", "an old Office document, such as .xls", ""),
    (b"\x93NUMPY", "a NumPy array", ""),
    (b"\x80\x04\x95", "a Python pickle", ""),
    (b"\x7fELF", "a program", ""),
    (b"version https://git-lfs", "a Git LFS pointer: the content was not fetched", ""),
)
JSON_START = re.compile(r'\{\s*(?:"|$)|\[\s*(?:\{|$)')
PROSE_STARTS = frozenset(
    "a an the i it is are was this that there what how who whom whose why when where which he she we you they in on my and if".split()  # noqa: SIM905
)
"""First words that say: not a label."""


@dataclass(frozen=True)
class Dialect:
    """How one file is written."""

    format: str
    """`jsonl`, `json`, `csv`, `lines`, `text`, `label_first`, `conll`, `parquet` or `arrow`."""
    encoding: str = "utf-8"
    """The codec; `utf-8-sig` and `utf-16-le` and the like when a byte-order mark says so."""
    delimiter: str = ""
    """Of csv, empty when there is one column; of conll, empty for runs of blanks."""
    header: bool = False
    quoting: str = "none"
    names: tuple[str, ...] = ()
    """The columns, where the format or its header fixes them."""
    because: tuple[str, ...] = ()
    """A phrase for each thing that was detected."""


@dataclass(frozen=True)
class Sample:
    """The start of a text file."""

    path: Path
    encoding: str
    lines: list[Line]
    is_whole: bool

    @property
    def start(self) -> str:
        """The first text that is not white space."""
        return next((line.text.lstrip() for line in self.lines if line.text.strip()), "")


def sniff(path: Path, data: DataSpec, running_text: bool = False) -> Dialect:
    """How the file is written; with `running_text`, a file that its name does not say to hold rows is text.

    Raises InputError when that cannot be seen, or a setting does not fit it.
    """
    start, is_whole = _read_start(path)
    if not start.strip():
        raise InputError("data.empty_file", "the file is empty", where=path.name, fix="name another file, or write this one again")
    format, because = _named_format(path, start, data)
    if format in BINARY_FORMATS:
        _refuse_settings(path, format, data)
        return Dialect(format, encoding="", names=_schema_names(path, format), because=because)
    sample, noted = _sample(path, start, is_whole, data)
    because += noted
    if data.format == "auto" and running_text and not format:
        format, because = "text", (*because, "running text, with its blank lines; data.format=lines reads one text a line")
    elif data.format == "auto":
        format, noted = _format_of_content(sample, format)
        because += noted
    _refuse_settings(path, format, data)
    dialect = Dialect(format, sample.encoding, because=because)
    if format == "csv":
        return _sniff_table(sample, dialect, data)
    if format == "conll":
        delimiter, columns, why = find_columns(sample.lines)
        return replace(dialect, delimiter=delimiter, names=columns, because=(*because, why))
    names = {"lines": ("text",), "text": ("text",), "label_first": ("label", "text")}.get(format, ())
    return replace(dialect, names=names)


def _read_start(path: Path) -> tuple[bytes, bool]:
    """The first bytes of the file, unpacked, and whether they are all of it."""
    pieces: list[bytes] = []
    for chunk in read_chunks(path):
        pieces.append(chunk)
        if sum(map(len, pieces)) > SAMPLE_BYTES:
            return b"".join(pieces)[:SAMPLE_BYTES], False
    return b"".join(pieces), True


def _named_format(path: Path, start: bytes, data: DataSpec) -> tuple[str, tuple[str, ...]]:
    """What setting and suffix say, `` when neither; raises when the file's first bytes contradict that."""
    suffix = content_suffix(path)
    named = data.format if data.format != "auto" else FORMATS.get(suffix, "")
    seems, means = next(((seems, means) for magic, seems, means in SIGNATURES if start.startswith(magic)), ("", ""))
    if means and means == (named or means) and means in BINARY_FORMATS:
        return means, () if named else (f"{means}: the file's first bytes say so",)
    if named == "arrow" and start.startswith(b"\xff\xff\xff\xff"):
        return named, ()
    head = start[:200].lstrip().lower()
    if not seems and named in ("csv", "jsonl", "json", "") and head.startswith((b"<!doctype", b"<html", b"<?xml")):
        seems = "an HTML or XML page, perhaps the error page of a failed download"
    if seems:
        fix = f"rename the file to end in {means}" if means.startswith(".") else f"data.format={means}" if means else "name a file of rows"
        raise InputError(
            "data.unreadable_file", "the file is not what its name says", where=path.name, found=f"it seems to be {seems}", fix=fix
        )
    if named in BINARY_FORMATS:
        raise InputError(
            "data.unreadable_file",
            f"this is not a {named} file, or it is damaged",
            where=path.name,
            found=f"it starts with {start[:12]!r}",
            fix="copy or write the file again; or say data.format, if it is another",
        )
    if named and data.format == "auto":
        return named, (f"{suffix}: {named}",) if FORMATS[suffix] != suffix[1:] else ()
    return named, ()


def _sample(path: Path, start: bytes, is_whole: bool, data: DataSpec) -> tuple[Sample, tuple[str, ...]]:
    _, marked = byte_order_mark(start)
    because: tuple[str, ...] = ()
    if data.encoding == "auto":
        encoding = marked or "utf-8"
        because = (f"byte-order mark: {encoding}",) if marked else ()
    else:
        encoding = _check_codec(data.encoding)
        if marked.startswith(("utf-16", "utf-32")) and not encoding.startswith(marked[:6]):
            found = f"a byte-order mark of {marked}, and data.encoding={data.encoding}"
            raise InputError(
                "data.encoding", "the file starts with another encoding's mark", where=path.name, found=found, fix="data.encoding=auto"
            )
        encoding = "utf-8-sig" if encoding == "utf-8" and marked == "utf-8-sig" else encoding
    codec, num_mark_bytes = resolve_encoding(encoding, start)
    text = start[num_mark_bytes:].decode(codec, "replace")
    if data.encoding == "auto" and "\0" in text[:4096] and text[:4096].count("\0") > 3:
        _raise_binary(path, start)
    if "\n" not in text and "\r" in text.rstrip("\r"):
        fix = f"tr '\\r' '\\n' < {path.name} > {path.stem}.unix{path.suffix}"
        raise InputError("data.format", "lines end in lone carriage returns, as on the old Mac", where=path.name, fix=fix)
    pieces = text.split("\n")
    whole = is_whole and len(pieces) <= SAMPLE_LINES
    if not is_whole and len(pieces) > 1:
        pieces.pop()
    return Sample(
        path, encoding, [Line(number, piece.removesuffix("\r")) for number, piece in enumerate(pieces[:SAMPLE_LINES], 1)], whole
    ), because


def _raise_binary(path: Path, start: bytes) -> None:
    evens, odds = start[:4096:2].count(0), start[1:4096:2].count(0)
    if max(evens, odds) > 5 * (1 + min(evens, odds)):
        codec = "utf-16-le" if odds > evens else "utf-16-be"
        fix = f"data.encoding={codec}"
        raise InputError(
            "data.encoding", "the file is not UTF-8", where=path.name, found=f"it seems to be {codec} without a byte-order mark", fix=fix
        )
    found = f"NUL bytes; it starts with {start[:12]!r}"
    raise InputError("data.unreadable_file", "the file is not text", where=path.name, found=found, fix="name a file of rows")


def _check_codec(name: str) -> str:
    try:
        b"a".decode(name, "replace")
        "\n".encode(name)
        return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        fix = "`auto`, or a codec of Python that reads text, such as utf-8, latin-1, cp1252, utf-16, gb18030 or shift_jis"
        raise InputError("spec.value", "data.encoding names no text encoding", where="data.encoding", found=name, fix=fix) from None


def _refuse_settings(path: Path, format: str, data: DataSpec) -> None:
    """Raises for a setting that would do nothing to this file."""
    settings = {} if format == "csv" else {"delimiter": "auto", "header": "auto", "quoting": "auto", "extra_fields": "error"}
    if format in BINARY_FORMATS:
        settings["encoding"] = "auto"
    for key, default in settings.items():
        if (value := getattr(data, key)) != default:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            fix = f"leave out data.{key}" + ("" if format in BINARY_FORMATS else ", or say data.format=csv")
            problem = f"data.{key} has no effect on {path.name}, which is {format}"
            raise InputError("spec.no_effect", problem, where=f"data.{key}", found=shown, fix=fix)


def _schema_names(path: Path, format: str) -> tuple[str, ...]:
    from tunesmith.data.readers import open_arrow

    return tuple(open_arrow(path, format).names)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _format_of_content(sample: Sample, named: str) -> tuple[str, tuple[str, ...]]:
    """The format, where the suffix leaves it open or the content contradicts it."""
    start = sample.start
    if named == "csv":
        if start.startswith("{") and _is_object(start):
            fix = "data.format=jsonl, or rename the file to end in .jsonl"
            raise InputError(
                "data.format", "the file is not what its name says", where=sample.path.name, found="it seems to be JSON lines", fix=fix
            )
        return named, ()
    if named or JSON_START.match(start):
        return _json_format(sample, named)
    if looks_like_sentences(sample.lines):
        return "conll", ("conll: words in columns, with blank lines between sentences",)
    lines = [line for line in sample.lines if line.text.strip()]
    table = choose_table(sample.lines[:FORMAT_LINES], "auto", sample.is_whole and len(sample.lines) <= FORMAT_LINES, is_named_so=False)
    if table is not None:
        return "csv", (f"csv: {_evenness(table)}",)
    if seen := _label_first(lines):
        return "label_first", (f"label_first: {seen}",)
    return "lines", ("lines: no delimiter cuts the lines evenly, and no few words start them all",)


def _json_format(sample: Sample, named: str) -> tuple[str, tuple[str, ...]]:
    lines = list(islice((line.text.strip() for line in sample.lines if line.text.strip()), 2))
    # a first line that is damaged is one of lines of objects all the same; one that goes on in the next is not
    follows = len(lines) > 1 and lines[1].startswith("{") and not lines[0].endswith(("[", ","))
    starts_object = bool(lines) and lines[0].startswith("{") and (_is_object(lines[0]) or follows)
    if starts_object and (len(lines) > 1 or named != "json"):
        return "jsonl", () if named == "jsonl" else (
            "jsonl: every line is an object" + (", though the name ends in .json" if named else ""),
        )
    if (lines and lines[0].startswith("[")) or (lines and lines[0] == "{"):
        return "json", () if named == "json" else ("json: the file is one document" + (", though its name says lines" if named else ""),)
    if not named:
        return "json", ("json: the file starts with {",)
    return named, ()


def _label_first(lines: list[Line]) -> str:
    """What says that each line is a label, a space and a text; empty when nothing does."""
    words = [line.text.split(" ", 1) for line in lines]
    if all(parts[0].startswith("__label__") for parts in words):
        return "every line starts with __label__"
    labels = Counter(parts[0] for parts in words)
    fits = sum(len(parts) == 2 and bool(parts[0]) and bool(parts[1].strip()) for parts in words)
    is_closed = 2 <= len(labels) <= min(100, len(lines) // 5) and fits >= 0.99 * len(lines)
    if not is_closed or any(re.sub(r"\W", "", label.lower()) in PROSE_STARTS for label in labels):
        return ""
    shown = ", ".join(label for label, _ in labels.most_common(3))
    return f"{len(labels)} words ({shown}, ...) start all {len(lines):,} sampled lines"


def _evenness(table: Table) -> str:
    return f"{table.name}: {table.num_fitting:,} of {len(table.rows):,} sampled lines have {table.num_fields} fields"


def _sniff_table(sample: Sample, dialect: Dialect, data: DataSpec) -> Dialect:
    """The dialect with what only delimited text has."""
    because = [phrase for phrase in dialect.because if not phrase.startswith("csv: ")]
    if data.delimiter != "auto":
        table = read_table(sample.lines, _check_delimiter(data.delimiter), data.quoting, sample.is_whole)
    else:
        chosen = choose_table(sample.lines, data.quoting, sample.is_whole, is_named_so=True)
        if chosen is None:
            found = f"the first line is {shorten(sample.start, 100)}"
            fix = 'say data.delimiter, e.g. data.delimiter=","; or data.format=lines for one text a line'
            raise InputError("data.format", "no delimiter cuts the lines evenly", where=sample.path.name, found=found, fix=fix)
        table = chosen
        because.append(_evenness(table) if table.num_fields > 1 else "one column: no delimiter cuts the lines evenly")
    if not table.rows:
        raise InputError(
            "data.empty_file", "the file holds no rows", where=sample.path.name, fix="name another file, or write this one again"
        )
    because += [table.quotes] if table.quotes and data.quoting == "auto" else []
    named = {} if data.columns == "auto" else data.columns
    if data.header != "auto":
        has_header, why = data.header, ""
    elif named and set(named.values()) <= {cell.strip() for cell in table.rows[0]}:
        has_header, why = True, "header: line 1 holds the names in data.columns"
    else:
        has_header, why = find_header(table.rows, table.num_fields)
    because += [why] if why else []
    names = _names(sample, table, data) if has_header else tuple(f"column_{number}" for number in range(1, table.num_fields + 1))
    return replace(dialect, delimiter=table.delimiter, header=has_header, quoting=table.quoting, names=names, because=tuple(because))


def _check_delimiter(setting: str) -> str:
    delimiter = setting.replace("\\t", "\t")
    if not delimiter or any(char in delimiter for char in '"\r\n\0'):
        fix = 'a character such as "," or "\\t", but no quote or line end'
        raise InputError("spec.value", "data.delimiter cannot stand between fields", where="data.delimiter", found=repr(setting), fix=fix)
    return delimiter


def _names(sample: Sample, table: Table, data: DataSpec) -> tuple[str, ...]:
    """The header's cells; an empty one is named by its position."""
    line = next(line.number for line in sample.lines if line.text.strip())
    names = tuple(cell.strip() or f"column_{number}" for number, cell in enumerate(table.rows[0], 1))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        fix = f"rename one of them in line {line}; if that line is a row, data.header=false"
        raise InputError(
            "data.ambiguous_columns", "two columns have the same name", where=place(sample.path, line), found=twice[0], fix=fix
        )
    is_short = len(names) < table.num_fields and data.extra_fields == "error"
    if len(table.rows) > 1 and (is_short or len(names) > table.num_fields):
        found = f"{len(names)} names, and {_evenness(table)}"
        fix = "name every column in the header; or data.extra_fields=ignore" if is_short else "data.header=false if line 1 is not a header"
        fix += f"; or another data.delimiter ({name_delimiter(table.delimiter)} now) or data.quoting ({table.quoting} now)"
        raise InputError(
            "data.field_count", "the header does not fit the lines below it", where=place(sample.path, line), found=found, fix=fix
        )
    return names
