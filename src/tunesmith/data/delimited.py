"""Delimited text: cuts lines into fields, and recognises delimiter, quoting and header from a sample."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from tunesmith.data.text import BadLine, Line

DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}
"""What may stand between fields, in order of preference."""
MOST_RECORD_CHARS = 1 << 26
"""A quote that is not closed within so many characters never is; bounds the memory that a stray quote can take."""
ROLE_NAMES = frozenset(
    """
    text texts sentence sentence1 sentence2 sentence_1 sentence_2 sentence_a sentence_b sent1 sent2 review reviews comment comments
    tweet message document doc content body utterance title headline abstract summary premise hypothesis context passage query question
    question1 question2 answer label labels label_id label_text target targets class classes category categories sentiment
    emotion intent topic tag tags stars rating ratings score scores similarity quality polarity output outputs input inputs instruction
    response prompt completion messages conversation conversations dialogue dialog chat turns instances user human assistant reply
    system system_prompt history chosen rejected source id ids idx index guid uid split lang language date url author name
    """.split()  # noqa: SIM905 one name a line would be a page
)
"""Words that a header uses."""
MOST_CLASSES = 30
MOST_NAME_CHARS = 60
NUMBER = re.compile(r"\s*[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?%?\s*")


class Record(NamedTuple):
    """The fields of one row, and the lines it stands on."""

    line: int
    fields: list[str]
    num_lines: int = 1


class BrokenQuotes(NamedTuple):
    """A row that is not well quoted."""

    line: int
    text: str
    why: str
    at_end: bool = False
    """Whether a quote was opened that the text ends without closing."""


def read_records(lines: Iterable[Line | BadLine], delimiter: str, quoting: str) -> Iterator[Record | BadLine | BrokenQuotes]:
    """The rows of delimited text; blank lines are none. After a badly quoted row, reading goes on with the line after its first.

    Not csv.reader: that stops at 131,072 characters a field (a limit of the whole process), takes a lone carriage return for a line
    end, and loses every line that a stray quote swallows.
    """
    source = iter(lines)
    if quoting == "none":
        for line in source:
            if isinstance(line, BadLine):
                yield line
            elif line.text and not (line.text.isspace() and not (delimiter and delimiter in line.text)):
                yield Record(line.number, line.text.split(delimiter) if delimiter else [line.text])
        return
    waiting: deque[Line | BadLine] = deque()
    while True:
        item = waiting.popleft() if waiting else next(source, None)
        if item is None:
            return
        if isinstance(item, BadLine):
            yield item
        elif '"' in item.text:
            yield _quoted_record(item, waiting, source, delimiter)
        elif item.text and not (item.text.isspace() and delimiter not in item.text):
            yield Record(item.number, item.text.split(delimiter))


def _quoted_record(first: Line, waiting: deque[Line | BadLine], source: Iterator[Line | BadLine], delimiter: str) -> Record | BrokenQuotes:
    """One row that holds quotes (RFC 4180). Lines taken for it in vain go back to `waiting`."""
    fields: list[str] = []
    taken: list[Line | BadLine] = []
    broken = partial(_give_up, first, taken, waiting)
    text, at, num_chars = first.text, 0, 0

    while True:
        if not text.startswith('"', at):
            end = text.find(delimiter, at)
            fields.append(text[at:] if end < 0 else text[at:end])
            if end < 0:
                return Record(first.number, fields, len(taken) + 1)
            at = end + len(delimiter)
            continue
        parts: list[str] = []
        at += 1
        while True:
            end = text.find('"', at)
            if end < 0:
                parts.append(text[at:] + "\n")
                num_chars += len(text)
                following = waiting.popleft() if waiting else next(source, None)
                if following is None or num_chars > MOST_RECORD_CHARS:
                    taken.extend([following] if following is not None else [])
                    return broken("a quote is opened and never closed", at_end=following is None)
                taken.append(following)
                if isinstance(following, BadLine):
                    return broken(f"a quote is opened and not closed before line {following.line}, which cannot be read")
                text, at = following.text, 0
            elif text.startswith('"', end + 1):
                parts.append(text[at : end + 1])
                at = end + 2
            else:
                parts.append(text[at:end])
                at = end + 1
                break
        fields.append("".join(parts))
        if at == len(text):
            return Record(first.number, fields, len(taken) + 1)
        if not text.startswith(delimiter, at):
            closing = f" of line {first.number + len(taken)}" if taken else ""
            return broken(f"text stands after the closing quote, at column {at + 1}{closing}")
        at += len(delimiter)


def _give_up(first: Line, taken: list[Line | BadLine], waiting: deque[Line | BadLine], why: str, at_end: bool = False) -> BrokenQuotes:
    waiting.extendleft(reversed(taken))
    return BrokenQuotes(first.number, first.text, why, at_end)


@dataclass(frozen=True)
class Table:
    """A sample read with one delimiter."""

    delimiter: str
    quoting: str
    num_fields: int
    """The most common count."""
    num_fitting: int
    """Rows with that count."""
    rows: list[list[str]]
    quotes: str
    """What was seen of quotes, for the user."""

    @property
    def share(self) -> float:
        """Share of the rows with the most common count of fields."""
        return self.num_fitting / max(1, len(self.rows))

    @property
    def name(self) -> str:
        """The delimiter, for people."""
        return name_delimiter(self.delimiter)


def name_delimiter(delimiter: str) -> str:
    """A delimiter as messages name it."""
    return DELIMITERS.get(delimiter, repr(delimiter)) if delimiter else "no delimiter"


def read_table(lines: list[Line], delimiter: str, quoting: str, is_whole: bool) -> Table:
    """The sample read with a delimiter; `quoting` may be `auto`. `is_whole` says that the file ends where the sample does."""
    plain = [record.fields for record in read_records(lines, delimiter, "none") if isinstance(record, Record)]
    count, fitting = _most_common_count(plain)
    if not any('"' in line.text for line in lines):
        chosen = quoting if quoting != "auto" else "standard" if delimiter in (",", ";") else "none"
        return Table(delimiter, chosen, count, fitting, plain, "no quotes in the sample")
    if quoting == "none" or not delimiter:
        return Table(delimiter, "none", count, fitting, plain, "")
    quoted, why_not = _read_quoted(lines, delimiter, is_whole, Table(delimiter, "none", count, fitting, plain, ""))
    if why_not and quoting == "auto":
        return Table(delimiter, "none", count, fitting, plain, f"quotes are ordinary characters: {why_not}")
    count, fitting = _most_common_count(quoted)
    return Table(delimiter, "standard", count, fitting, quoted, "" if quoting == "standard" else "fields stand in double quotes")


def _read_quoted(lines: list[Line], delimiter: str, is_whole: bool, plain: Table) -> tuple[list[list[str]], str]:
    """The sample's rows under standard quoting, and why that is not how the file is written, if so."""
    opening = re.compile(f'(?:^|{re.escape(delimiter)})"')
    rows: list[list[str]] = []
    why_not = "" if any(opening.search(line.text) for line in lines) else "no field starts with one"
    num_plain_fields = {line.number: len(line.text.split(delimiter)) for line in lines}
    last = lines[-1].number
    for record in read_records(lines, delimiter, "standard"):
        if isinstance(record, BrokenQuotes):
            if record.at_end and not is_whole and last - record.line < len(lines) / 2:
                break
            why_not = why_not or f"line {record.line}: {record.why}"
        elif isinstance(record, Record):
            rows.append(record.fields)
            # prose has commas, so lines may look even by chance; a doubled quote inside says that quoting is meant
            is_meant = delimiter != "\t" and any('"' in field for field in record.fields)
            if record.num_lines > 1 and plain.num_fields > 1 and plain.share >= 0.9 and not is_meant:
                swallowed = range(record.line, record.line + record.num_lines)
                if all(num_plain_fields.get(number) == plain.num_fields for number in swallowed):
                    why_not = why_not or f"lines {record.line} to {swallowed[-1]} would become one row"
    _, fitting = _most_common_count(rows)
    if not why_not and fitting * len(plain.rows) < plain.num_fitting * len(rows):
        why_not = "the fields are more even without them"
    return rows, why_not


def _most_common_count(rows: list[list[str]]) -> tuple[int, int]:
    counts = Counter(map(len, rows))
    return max(counts.items(), key=lambda item: (item[1], item[0])) if counts else (0, 0)


def choose_table(lines: list[Line], quoting: str, is_whole: bool, is_named_so: bool) -> Table | None:
    """The sample with the delimiter that cuts its lines most evenly, or None when it is not delimited text.

    `is_named_so`: the file's name or a setting says that it is delimited; then less evenness will do, and one column too.
    """
    tables = [read_table(lines, delimiter, quoting, is_whole) for delimiter in DELIMITERS]
    candidates = [table for table in tables if _is_even(table, is_named_so)]
    if candidates:

        def merit(table: Table) -> tuple[object, ...]:
            fits_first = bool(table.rows) and len(table.rows[0]) == table.num_fields
            return (
                table.share >= 0.95 and fits_first,
                table.share >= 0.95,
                table.delimiter == "\t",
                fits_first,
                table.share,
                table.num_fields,
            )

        return max(candidates, key=merit)
    if not is_named_so:
        return None
    named = [table for table in tables if table.rows and len(table.rows[0]) > 1 and has_role_name(table.rows[0])]
    if named:
        return max(named, key=lambda table: table.share)
    for table in sorted(tables, key=lambda table: table.delimiter != ","):
        if table.quoting == "standard" and table.num_fields == 1 and table.share > 0.5 and table.quotes.startswith("fields"):
            return table
    single = all(table.num_fields <= 1 for table in tables) or has_role_name([lines[0].text])
    return read_table(lines, "", "none", is_whole) if single else None


def _is_even(table: Table, is_named_so: bool) -> bool:
    if table.num_fields < 2:
        return False
    if is_named_so:
        return table.share > 0.5
    if table.delimiter == "\t":
        return table.share >= 0.75
    return table.share >= 0.95 and (len(table.rows) >= 5 or has_role_name(table.rows[0]))


def has_role_name(cells: list[str]) -> bool:
    """Whether one of the cells is a word that headers use."""
    return any(cell.strip().lower() in ROLE_NAMES for cell in cells)


def find_header(rows: list[list[str]], num_fields: int) -> tuple[bool, str]:
    """Whether the first row names the columns, and what says so."""
    first = [cell.strip() for cell in rows[0]]
    if not any(first) or any(not cell for cell in first[1:]):
        return False, "no header: line 1 has an empty field"
    if number := next((cell for cell in first if is_number(cell)), ""):
        return False, f"no header: {number} in line 1 is a number"
    if any(len(cell) > MOST_NAME_CHARS for cell in first):
        return False, "no header: a field of line 1 is too long for a name"
    body = [row for row in rows[1:] if len(row) == num_fields]
    columns = [[row[index].strip() for row in body] for index in range(num_fields)]
    for index, cell in enumerate(first):
        if cell.lower() in ROLE_NAMES and (index >= num_fields or cell not in columns[index]):
            return True, f"header: line 1 names a column {cell}"
    if len(first) != num_fields or len(set(first)) < len(first):
        return False, "no header: line 1 does not look like names"
    for cell, column in zip(first, columns, strict=True):
        values = [value for value in column if value]
        if len(values) >= 2 and all(map(is_number, values)):
            return True, f"header: {cell} stands over a column of numbers"
        classes = set(values)
        if len(values) >= 20 and len(classes) <= min(MOST_CLASSES, len(values) // 10) and cell not in classes:
            return True, f"header: {cell} is none of the {len(classes)} values below it"
    return False, "no header: line 1 looks like the lines below it"


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number."""
    return NUMBER.fullmatch(cell) is not None or cell.strip().lower() in ("nan", "inf", "-inf")
