"""Running text in blocks: passages that follow each other in a file are one document, and documents follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tunesmith.data.cells import read_cells
from tunesmith.data.text import PASSAGE
from tunesmith.registry import Fault, Role

TEXT_ROLE = Role("text", "text", known_names=("text", "content", "document", "body", "article", "sentence"))
CANONICAL = {"text": "text", "passage": "json"}
FILL = 1
"""What stands in the other columns beside a token that no text has."""


def read_running_text(section: Any, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """The text of a row, or a passage of a file and its number."""
    if PASSAGE in row:  # blank lines are text as well
        yield {"text": row[columns["text"]], "passage": str(row[PASSAGE])}
        return
    for found in read_cells({"text": "text"}, columns, row):
        yield {**found, "passage": None} if isinstance(found, dict) else found


def cut_blocks(
    batches: Iterable[dict[str, list[Any]]], size: int, names: Sequence[str] = ("input_ids",), end_last: bool = True
) -> Iterator[tuple[list[int], dict[str, list[list[int]]]]]:
    """(row that each block starts in, its columns) of batches of encoded rows; the last block of all may be shorter than `size`.

    A batch has `row`, the columns `names` (numbers, one a token; the first are the token ids), `passage` ((file, number) of a passage, or
    None for a document), and `begins` and `ends`: token ids that stand before and after a document; with `end_last` after the last as well.
    """
    waiting: dict[str, list[int]] = {name: [] for name in names}
    rows: list[int] = []
    before: tuple[int, int] | None = None
    ends: list[int] = []
    row = 0

    def take(columns: Sequence[Sequence[int]], row: int) -> None:
        for name, values in zip(names, columns, strict=True):
            waiting[name].extend(values)
        rows.extend([row] * len(columns[0]))

    def take_marks(ids: Sequence[int], row: int) -> None:
        take([ids, *([[FILL] * len(ids)] * (len(names) - 1))], row)

    def give(length: int) -> tuple[list[int], dict[str, list[list[int]]]]:
        starts = range(0, length, size)
        cut = {name: [values[start : start + size] for start in starts] for name, values in waiting.items()}
        found = [rows[start] for start in starts], cut
        for values in (*waiting.values(), rows):
            del values[:length]
        return found

    for batch in batches:
        for row, passage, begins, ends_after, *columns in zip(
            *(batch[name] for name in ("row", "passage", "begins", "ends", *names)), strict=True
        ):
            if before is None or passage != (before[0], before[1] + 1):
                take_marks(ends, row)
                take_marks(begins, row)
            take(columns, row)
            before, ends = passage, ends_after
        if len(rows) >= size:
            yield give(len(rows) - len(rows) % size)
    if end_last:
        take_marks(ends, row)
    if rows:
        yield give(len(rows))


def passages(batch: dict[str, list[Any]]) -> list[tuple[int, int] | None]:
    """(file, number) of each row that is a passage of running text."""
    numbered = zip(batch["file"], batch["passage"], strict=True)
    return [None if passage is None else (file, int(passage)) for file, passage in numbered]
